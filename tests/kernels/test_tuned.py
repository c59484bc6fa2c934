"""Launches of the memory-bound kernels: measured tables, and tuning."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from comparing import DEVICE, laid_out, random_tensor

import kernels
from kernels import launch_settings, tuned
from kernels.tuned import Entry, Launch

GPU = "NVIDIA Test 80GB"
LAUNCH = Launch(32, 1)
# Each operator with the kernels that it launches, forward and backward.
OPERATORS: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], list[str]]] = {
    "lrn": (lambda x: kernels.local_response_norm(x, 5), ["lrn_fwd_kernel", "lrn_bwd_kernel"]),
    "max_pool": (lambda x: kernels.max_pool2d(x, 3, 2), ["max_pool_fwd_kernel", "max_pool_bwd_kernel"]),
    "lrn_max_pool": (lambda x: kernels.lrn_max_pool2d(x), ["lrn_pool_fwd_kernel", "lrn_pool_bwd_kernel"]),
    "same_map_norm": (
        lambda x: kernels.same_map_norm(x, 3),
        ["same_map_fwd_kernel", "same_map_spread_kernel", "same_map_bwd_kernel"],
    ),
    "same_map_norm_max_pool": (
        lambda x: kernels.same_map_norm_max_pool2d(x, 3),
        ["same_map_pool_fwd_kernel", "same_map_pool_bwd_kernel"],
    ),
}


@pytest.fixture
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder of tables, and tensors that seem to be on a GPU."""
    monkeypatch.setattr(launch_settings, "TABLES", tmp_path)
    monkeypatch.setattr(launch_settings, "gpu_of", lambda _: GPU)
    tuned.forget()
    yield tmp_path
    tuned.forget()


def write(*entries: dict[str, Any]) -> Path:
    path = launch_settings.table_path(GPU)
    path.write_text(json.dumps({"entries": [], "launches": entries}))
    return path


def entry_of(kernel: str, ms: float = 1.0, dtype: str = "float32") -> dict[str, Any]:
    """An entry where the default launch takes 2 ms."""
    return tuned.table_entry((kernel, dtype), Entry(LAUNCH, ms, 2.0))


def launches(name: str, x: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> tuple[list[tuple], torch.Tensor]:
    """(kernel, programs, items, warps) of each launch, forward and backward, and the gradient of x."""
    operator, names = OPERATORS[name]
    module, found = importlib.import_module(f"kernels.{name}"), []

    class Recorded:
        def __init__(self, kernel: str) -> None:
            self.name, self.kernel = kernel, getattr(module, kernel)

        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            def launch(*args: Any, **options: Any) -> None:
                found.append((self.name, *grid, options["ITEMS"], options["num_warps"]))
                self.kernel[grid](*args, **options)

            return launch

    with monkeypatch.context() as patched, kernels.using("triton"):
        for kernel in names:
            patched.setattr(module, kernel, Recorded(kernel))
        x = x.detach().requires_grad_()
        y = operator(x)
        (gradient,) = torch.autograd.grad(y, x, random_tensor(y.shape, 1, x.dtype))
    return found, gradient


@pytest.mark.parametrize("name", OPERATORS)
def test_every_kernel_has_the_launch_of_its_entry(name: str, tables: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = OPERATORS[name][1]
    x = laid_out(random_tensor((1, 64, 7, 7), 0, torch.float32), "channels_last")
    default, wanted = launches(name, x, monkeypatch)
    assert [(kernel, *launch) for kernel, _, *launch in default] == [(kernel, 128, 4) for kernel in names]
    for chosen in names:
        write(entry_of(chosen))
        tuned.forget()
        found, gradient = launches(name, x, monkeypatch)
        assert [(kernel, *launch) for kernel, _, *launch in found] == [
            (kernel, 32, 1) if kernel == chosen else (kernel, 128, 4) for kernel in names
        ]
        more = [one[1] > other[1] for one, other in zip(found, default, strict=True)]
        assert more == [kernel == chosen for kernel in names]
        assert torch.equal(gradient, wanted)


def test_an_entry_is_for_its_dtype_and_channels_last_and_only_if_it_is_faster(tables: Path) -> None:
    maps = laid_out(random_tensor((1, 4, 3, 3), 0, torch.float32), "channels_last")
    write(entry_of("one"), entry_of("noise", 1.96), entry_of("other", dtype="bfloat16"))
    assert tuned.launch_of("one", maps) == LAUNCH
    assert tuned.launch_of("one", maps.contiguous()) == Launch()
    assert [tuned.launch_of(name, maps) for name in ("noise", "other", "unknown")] == [Launch()] * 3
    assert tuned.launch_of("other", maps.bfloat16()) == LAUNCH


def test_without_a_gpu_or_a_table_launches_are_the_default(tables: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = laid_out(random_tensor((1, 4, 3, 3), 0, torch.float32), "channels_last")
    assert tuned.launch_of("one", x) == Launch() == Launch(128, 4)
    write(entry_of("one"))
    tuned.forget()
    monkeypatch.setattr(launch_settings, "gpu_of", lambda _: None)
    assert tuned.launch_of("one", x) == Launch()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"items": 96}, "items must be a power of two, got 96"),
        ({"num_warps": True}, "num_warps must be a power of two, got True"),
        ({"ms": 0.0}, r"ms must be a positive number, got 0\.0"),
        ({"default_ms": "fast"}, "default_ms must be a positive number, got 'fast'"),
    ],
)
def test_a_damaged_entry_is_named(tables: Path, changes: dict[str, Any], message: str) -> None:
    path = write(entry_of("one") | changes)
    with pytest.raises(ValueError, match=message) as raised:
        tuned.load(path)
    assert str(path) in str(raised.value)
    assert "delete it or write it again with python bench/conv_relu.py --tune" in str(raised.value)


def test_the_shipped_tables_are_tables() -> None:
    for path in launch_settings.TABLES.glob("*.json"):
        assert all(isinstance(entry.launch, Launch) for entry in tuned.load(path).values())


# ---------------------------------------------------------------------------------------------------------- tuning


@pytest.fixture
def tuning():
    from tuning import launches

    return launches


def test_tuning_knows_every_kernel_with_a_launch_of_its_own(tuning) -> None:
    root = Path(kernels.__file__).parent
    named = {
        name
        for path in root.glob("*.py")
        for name in re.findall(r'"(\w+_kernel)", x|"(\w+_kernel)", grad', path.read_text())
        for name in name
        if name
    }
    of_operators = [name for _, *directions in tuning.OPERATORS for names in directions for name in names]
    assert sorted(of_operators) == sorted(named)


def test_the_fastest_launch_with_the_right_result_is_chosen(tuning, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the interpreter, with times that are made up; one launch fails, one is wrong, one differs each time."""
    slow, good, wrong, random, failing = (Launch(items, 1) for items in (16, 32, 64, 256, 512))
    ms = {Launch(): 2.0, slow: 3.0, good: 1.0, wrong: 0.5, random: 0.4, failing: 0.1}
    x = laid_out(random_tensor((1, 8, 3, 3), 0, torch.float32), "channels_last")
    count = iter(range(100))

    def launch_now() -> Launch:
        return tuned.launch_of("lrn_fwd_kernel", x)

    def run() -> torch.Tensor:
        if launch_now() == failing:
            raise RuntimeError("out of resource: registers")
        with kernels.using("triton"):
            y = kernels.local_response_norm(x, 5)
        return {wrong: y * 1.1, random: y * (1 + 1e-6 * next(count))}.get(launch_now(), y)

    candidates = [slow, Launch(), wrong, random, failing, good]
    entry, refused = tuning.best("lrn_fwd_kernel", [run, run], torch.float32, candidates, lambda _: ms[launch_now()])
    assert entry == Entry(good, 2.0, 4.0)
    assert set(refused) == {wrong, random, failing}
    assert "is off by" in refused[wrong]
    assert refused[random] == "is not deterministic"
    assert tuned._tried == {}


def test_both_kinds_of_settings_share_a_table(tuning, tables: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writing one of them keeps the other, and what was read before is read again."""
    from tuning.tables import write_table

    settings = launch_settings.Settings(16, 16, 16, 4, 1)
    problem = launch_settings.Problem(1, 2, 3, 3, 2, (1, 1), 1, (0, 0, 0, 0), 1, "float32", "ieee")
    entries = {("forward", problem): launch_settings.Entry(settings, 1.0, 2.0)}
    path = launch_settings.table_path(GPU)
    x = laid_out(random_tensor((1, 4, 3, 3), 0, torch.float32), "channels_last")
    assert tuned.launch_of("one", x) == Launch()
    write_table(path, GPU, entries)
    write_table(path, GPU, launches={("one", "float32"): Entry(LAUNCH, 1.0, 2.0)})
    assert tuned.launch_of("one", x) == LAUNCH
    write_table(path, GPU, entries)
    assert tuned.launch_of("one", x) == LAUNCH
    assert launch_settings.load_table(path) == entries
    launch_settings.load_table.cache_clear()


@pytest.mark.skipif(DEVICE != "cpu", reason="on a GPU, tuning takes its time")
def test_all_kernels_are_tuned_at_all_shapes(tuning, capsys: pytest.CaptureFixture[str]) -> None:
    ms = iter(float(100 - number) for number in range(100))  # the later, the faster
    with kernels.using("triton"):
        found = tuning.tune([torch.float32], [(1, 8, 5, 5)], [LAUNCH], lambda _: next(ms))
    assert {kernel for kernel, _ in found} == {name for _, names in OPERATORS.values() for name in names}
    assert all(entry.launch == LAUNCH and entry.ms < entry.default_ms for entry in found.values())
    assert capsys.readouterr().out.count("0 refused") == len(found)

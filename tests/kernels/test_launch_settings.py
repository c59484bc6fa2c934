"""Launch settings of the convolution: measured tables, the heuristic, and tuning."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
from comparing import DEVICE, examples, random_tensor
from hypothesis import given

from kernels import launch_settings
from kernels.launch_settings import DIRECTIONS, Entry, Problem, Settings, choose, heuristic, table_path

PROBLEM = Problem(128, 96, 27, 27, 256, (5, 5), 1, (2, 2, 2, 2), 2, "bfloat16", "ieee")
SETTINGS = Settings(128, 64, 32, 4, 5)
GPU = "NVIDIA Test 80GB"


@pytest.fixture
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of tables instead of the shipped one."""
    monkeypatch.setattr(launch_settings, "TABLES", tmp_path)
    choose.cache_clear()
    yield tmp_path
    choose.cache_clear()
    launch_settings.load_table.cache_clear()


def write(**changes: object) -> Path:
    """Write a table with one entry, for the forward direction, where Triton takes 1 ms and cuDNN 2 ms."""
    entry = launch_settings.table_entry("forward", PROBLEM, Entry(SETTINGS, 1.0, 2.0)) | changes
    path = table_path(GPU)
    path.write_text(json.dumps({"entries": [entry]}))
    return path


def test_triton_computes_if_the_table_says_that_it_is_faster(tables: Path) -> None:
    write()
    assert choose("forward", PROBLEM, GPU, False) == SETTINGS
    assert choose("forward", PROBLEM, GPU, True) == SETTINGS
    # Another direction, precision or GPU has no entry, so cuDNN computes.
    assert choose("data_gradient", PROBLEM, GPU, False) is None
    assert choose("forward", dataclasses.replace(PROBLEM, dtype="float32", precision="tf32"), GPU, False) is None
    assert choose("forward", PROBLEM, "NVIDIA Test 40GB", False) is None


def test_a_batch_without_an_entry_uses_the_nearest(tables: Path) -> None:
    small, large = Settings(64, 64, 32, 4, 3), Settings(128, 128, 64, 8, 3)
    entries = [
        launch_settings.table_entry("forward", dataclasses.replace(PROBLEM, batch=batch), Entry(settings, 1.0, 2.0))
        for batch, settings in ((64, small), (512, large), (32, SETTINGS))
    ]
    table_path(GPU).write_text(json.dumps({"entries": entries}))
    nearest = {3: None, 4: SETTINGS, 32: SETTINGS, 45: SETTINGS, 46: small, 181: small, 182: large, 4096: large}
    for batch, settings in (nearest | {4097: None}).items():
        assert choose("forward", dataclasses.replace(PROBLEM, batch=batch), GPU, False) == settings, batch


def test_cudnn_computes_if_it_is_faster_unless_triton_is_forced(tables: Path) -> None:
    # A difference of 2 % is noise.
    write(library_ms=1.02)
    assert choose("forward", PROBLEM, GPU, False) is None
    assert choose("forward", PROBLEM, GPU, True) == SETTINGS


def test_without_an_entry_the_heuristic_chooses_and_logs(tables: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "kernels.launch_settings"):
        settings = choose("weight_gradient", PROBLEM, GPU, True)
    assert settings == heuristic("weight_gradient", PROBLEM)
    (message,) = caplog.messages
    assert "weight_gradient of Problem(batch=128" in message
    assert f"no entry for {GPU}; the heuristic chose {settings}" in message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"direction": "sideways"}, "direction must be one of forward, data_gradient, weight_gradient, got 'sideways'"),
        ({"settings": {"block_m": 128}}, "missing 4 required positional arguments"),
        ({"settings": dataclasses.asdict(SETTINGS) | {"block_m": 96}}, "block_m must be a power of two.*got 96"),
        ({"settings": dataclasses.asdict(SETTINGS) | {"num_stages": 0}}, "num_stages must be an int and at least 1"),
        ({"settings": dataclasses.asdict(SETTINGS) | {"rearranged": 1}}, "rearranged must be true or false, got 1"),
        (
            {"settings": dataclasses.asdict(SETTINGS) | {"rearranged": True}},
            "rearranged must be false for the forward of .*, got true",
        ),
        ({"problem": {"batch": 1, "colour": 2}}, "colour"),
        ({"ms": "fast"}, "ms must be a positive number, got 'fast'"),
        ({"ms": True}, "ms must be a positive number, got True"),
        ({"ms": 0.0}, "ms must be a positive number, got 0.0"),
        ({"library_ms": float("nan")}, "library_ms must be a positive number, got nan"),
    ],
)
def test_a_damaged_entry_is_named(tables: Path, changes: dict, message: str) -> None:
    path = write(**changes)
    with pytest.raises(ValueError, match=message) as raised:
        choose("forward", PROBLEM, GPU, False)
    assert str(path) in str(raised.value)
    assert "delete it or write it again with python bench/conv_relu.py --tune" in str(raised.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"entries": 3}'])
def test_a_file_that_is_not_a_table_is_named(tables: Path, text: str) -> None:
    table_path(GPU).write_text(text)
    with pytest.raises(ValueError, match=r"nvidia-test-80gb\.json is not a table of launch settings"):
        choose("forward", PROBLEM, GPU, True)


@pytest.mark.parametrize("allowed", [True, False])
def test_the_precision_follows_pytorchs_switch(allowed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", allowed)
    x, weight = torch.ones(1, 1, 3, 3), torch.ones(1, 1, 1, 1)
    assert launch_settings.problem_of(x, weight, 1, (0, 0, 0, 0), 1).precision == ("tf32" if allowed else "ieee")
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        assert launch_settings.problem_of(x.to(dtype), weight.to(dtype), 1, (0, 0, 0, 0), 1).precision == "ieee"


@pytest.mark.parametrize(
    ("channels", "itemsize", "width"),
    [(96, 2, 8), (96, 4, 4), (96, 8, 2), (12, 2, 4), (6, 4, 2), (3, 2, 1), (48, 1, 8)],
)
def test_a_thread_loads_at_most_16_bytes(channels: int, itemsize: int, width: int) -> None:
    assert launch_settings.vector_width(channels, itemsize) == width


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({}, True),
        ({"stride": 1}, False),
        # 8 channels of 2 bytes are loaded 16 bytes at a time without it.
        ({"channels": 8}, False),
        # 5 x 5 taps would become 8 x 8.
        ({"kernel": (5, 5)}, False),
        # 2^14 x 2^14 pixels have 3 * 2^28 channels, which fit 32 bits, but with its padding an image does not.
        ({"height": 2**14, "width": 2**14}, True),
        ({"height": 2**15, "width": 2**15}, False),
    ],
)
def test_space_to_depth_is_for_narrow_loads_and_few_more_terms(changes: dict, wanted: bool) -> None:
    conv1 = Problem(128, 3, 224, 224, 96, (11, 11), 4, (0, 3, 0, 3), 1, "bfloat16", "ieee")
    problem = dataclasses.replace(conv1, **changes)
    assert problem.can_be_rearranged() == wanted
    for direction in DIRECTIONS:
        assert heuristic(direction, problem).rearranged == (wanted and direction != "data_gradient")


def test_shipped_tables_can_be_read() -> None:
    for path in launch_settings.TABLES.glob("*.json"):
        table = launch_settings.load_table(path)
        assert table
        assert path == table_path(json.loads(path.read_text())["device"])


@examples(300)
@given(
    st.integers(1, 512),
    st.integers(1, 600),
    st.integers(1, 230),
    st.integers(1, 600),
    st.tuples(st.integers(1, 11), st.integers(1, 11)),
    st.integers(1, 5),
    st.sampled_from([1, 2, 3, 8]),
    st.sampled_from(["float64", "float32", "float16", "bfloat16"]),
    st.booleans(),
)
def test_the_heuristic_fits_every_gpu(batch, channels, side, filters, kernel, stride, groups, dtype, tf32):
    padding = (kernel[0] - 1, 0, 0, kernel[1] - 1)
    precision = "tf32" if tf32 and dtype == "float32" else "ieee"
    problem = Problem(
        batch, channels * groups, side, side, filters * groups, kernel, stride, padding, groups, dtype, precision
    )
    for direction in DIRECTIONS:
        settings = heuristic(direction, problem)
        tiles = settings.block_k * (settings.block_m + settings.block_n) * problem.itemsize
        # Consumer GPUs allow one program 99 KiB of shared memory.
        assert settings.num_stages * tiles <= 99 * 1024
        assert settings.num_warps == 4
        assert settings.splits == 1 or direction == "weight_gradient"
        # No split is empty.
        _, _, terms = problem.product(direction)
        assert settings.splits * settings.block_k <= terms or settings.splits == 1


# ---------------------------------------------------------------------------------------------------------- tuning


@pytest.fixture
def tuning(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "bench")
    from tuning import convolution

    return convolution


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_setting_that_computes_wrongly_is_never_chosen(
    tuning, direction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fastest is wrong in one element, the second fails to run, the others leave a tile zero or unwritten."""
    problem = Problem(2, 4, 5, 5, 6, (3, 3), 1, (1, 1, 1, 1), 2, "float32", "ieee")
    good, slow = Settings(16, 16, 16, 4, 1), Settings(32, 16, 16, 4, 1)
    wrong, failing, short = Settings(64, 16, 16, 4, 1), Settings(16, 64, 16, 4, 1), Settings(16, 16, 64, 4, 1)
    unwritten = Settings(32, 32, 16, 4, 1)
    times = {wrong: 0.1, failing: 0.2, short: 0.3, unwritten: 0.35, good: 0.4, slow: 0.5}
    run = tuning.run

    def run_damaged(direction: str, operands: list[torch.Tensor], problem: Problem, settings: Settings) -> torch.Tensor:
        if settings == failing:
            raise RuntimeError("out of resource: shared memory")
        result = run(direction, operands, problem, settings)
        if settings == wrong:
            result[-1, -1, -1, -1] += 0.1 * result.abs().max()
        if settings == short:
            result[-1:, -1:] = 0
        if settings == unwritten:
            # Instead of what another candidate has left there.
            fresh = torch.empty(1, device=DEVICE).item()
            result[-1:, -1:] = fresh if math.isnan(fresh) else result[-1:, -1:]
        return result

    monkeypatch.setattr(tuning, "run", run_damaged)
    refused: dict[Settings, str] = {}
    taken = tuning.timings(direction, problem, list(times), lambda work, settings: times[settings], refused)
    assert list(taken.items()) == [(good, 0.4), (slow, 0.5)]
    assert set(refused) == {wrong, failing, short, unwritten}
    assert "shared memory" in refused[failing]
    assert "is off by" in refused[wrong]


def test_nothing_is_chosen_if_every_candidate_is_wrong(tuning, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem(1, 2, 3, 3, 2, (1, 1), 1, (0, 0, 0, 0), 1, "float32", "ieee")
    monkeypatch.setattr(tuning, "run", lambda *_: random_tensor((1, 2, 3, 3), 0, torch.float32))
    assert tuning.timings("forward", problem, [SETTINGS], lambda work, settings: 1.0, {}) == {}


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_candidates_are_tried_once_and_rearranged_if_possible(tuning, direction: str) -> None:
    conv1 = Problem(128, 3, 224, 224, 96, (11, 11), 4, (0, 3, 0, 3), 1, "bfloat16", "ieee")
    for problem, can_be in ((conv1, direction != "data_gradient"), (PROBLEM, False)):
        found = list(tuning.candidates(direction, problem))
        assert found[0] == heuristic(direction, problem)
        assert len(found) == len(set(found))
        assert {settings.rearranged for settings in found} == ({True, False} if can_be else {False})
        assert (len({settings.splits for settings in found}) > 1) == (direction == "weight_gradient")


def test_a_further_batch_size_tries_the_fastest_of_the_one_before(
    tuning, tiny_gpu, tables: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "_SHORTLIST", 1)
    measured, tried = tuning.measured, []

    def recorded(direction: str, problem: Problem, settings: list[Settings], seconds: float):
        tried.append((problem.batch, problem.filters, len(settings)))
        return measured(direction, problem, settings, seconds)

    monkeypatch.setattr(tuning, "measured", recorded)
    larger = [(direction, dataclasses.replace(problem, batch=8)) for direction, problem in tiny_gpu]
    path = tuning.tune(tiny_gpu + larger, tables, 60.0, lambda: ThreadPoolExecutor(1))
    assert tried == [(1, 2, 2), (1, 4, 2), (8, 2, 1), (8, 4, 1)]
    assert set(launch_settings.load_table(path)) == {*tiny_gpu, *larger}


@pytest.fixture
def tiny_gpu(tuning, tables: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Problem]]:
    """A GPU with two candidates per product, which are compiled when they run."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: GPU)
    monkeypatch.setattr(tuning, "candidates", lambda *_: [Settings(16, 16, 16, 4, 1), Settings(32, 16, 16, 4, 1)])
    monkeypatch.setattr(tuning, "compile_ahead", lambda *_: None)
    monkeypatch.setattr(tuning.harness, "timed", lambda *_: [1.0, 1.0, 1.0])
    return [
        ("forward", Problem(1, 2, 3, 3, filters, (1, 1), 1, (0, 0, 0, 0), 1, "float32", "ieee")) for filters in (2, 4)
    ]


def test_successive_measurements_fill_one_table(tuning, tiny_gpu, tables: Path) -> None:
    for problem in tiny_gpu:
        # The choice before the measurement is cached, as in training.
        assert choose(*problem, GPU, True) == heuristic(*problem)
        path = tuning.tune([problem], tables, 60.0, lambda: ThreadPoolExecutor(1))
        assert choose(*problem, GPU, True) == Settings(16, 16, 16, 4, 1)
    assert set(launch_settings.load_table(path)) == set(tiny_gpu)


def test_a_candidate_that_breaks_the_gpu_costs_a_process_and_not_the_rest(
    tuning, tiny_gpu, tables: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, processes = tuning.run, []

    def run_broken(direction: str, operands: list, problem: Problem, settings: Settings) -> torch.Tensor:
        if settings.block_m == 16:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return run(direction, operands, problem, settings)

    def new_process() -> ThreadPoolExecutor:
        processes.append(ThreadPoolExecutor(1))
        return processes[-1]

    monkeypatch.setattr(tuning, "run", run_broken)
    monkeypatch.setattr(tuning, "_device_is_lost", lambda: True)
    path = tuning.tune(tiny_gpu, tables, 60.0, new_process)
    # One at the start, and one after each of the two products.
    assert len(processes) == 3
    settings = [entry.settings for entry in launch_settings.load_table(path).values()]
    assert settings == [Settings(32, 16, 16, 4, 1)] * 2


def test_without_time_nothing_is_measured(tuning, tiny_gpu, tables: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tuning.tune(tiny_gpu, tables, 0.0, lambda: ThreadPoolExecutor(1))
    assert not path.exists()
    assert capsys.readouterr().out.count("no time left") == 2

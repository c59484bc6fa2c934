"""What the operators' benchmarks share: who gets a time, and what a record says."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import kernels
from kernels import reference


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> Iterator:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "bench")
    import harness

    yield harness
    sys.modules.pop("harness", None)


@pytest.fixture
def bench(harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["bench", "--quick", "--output", str(tmp_path)])
    # A copy of a few bytes will do for a limit.
    monkeypatch.setattr(harness.Benchmark, "_copy_bandwidth", lambda self: 1.0)
    made = harness.Benchmark("tiny", "Doubling")
    made.budget_s = 0.0
    return made


def double(x: Tensor) -> Tensor:
    return x * 2


def fail(x: Tensor) -> Tensor:
    raise RuntimeError("out of memory\nTried to allocate 20.00 GiB")


def fail_in_backward(x: Tensor) -> Tensor:
    y = double(x)
    y.register_hook(lambda _: fail(x))
    return y


def test_a_provider_that_is_wrong_or_fails_gets_a_reason_and_no_time(harness, bench, tmp_path: Path) -> None:
    providers = {
        "fails": fail,
        "fails in backward": fail_in_backward,
        "wrong result": lambda x: x * 2.1,
        # The result is right, and its gradient is not.
        "wrong gradient": lambda x: x * 3 - x.detach(),
        "right": double,
    }
    shape = (6, 2, 3, 3)
    moved = {"forward": 864, "backward": 864, "both": 1728}
    cases = {name: (operator, "channels_last") for name, operator in providers.items()}
    bench.run(harness.Case("double", shape, torch.float32, double, cases, moved))
    for name, work, judge in (("fails", fail, None), ("wrong", double, "is off"), ("right", double, None)):
        x = torch.ones(3, device=harness.DEVICE)
        bench.run_in_place(
            "in place", (3,), torch.float32, name, lambda w=work, x=x: partial(w, x), 24, lambda j=judge: j
        )
    bench.finish()

    record = json.loads((tmp_path / harness.slug(harness.device_name()) / "tiny-quick.json").read_text())
    assert {"device", "versions", "commit", "date", "settings", "rows"} == set(record)
    assert (tmp_path / harness.slug(harness.device_name()) / "tiny-quick.png").exists()
    common = {"op", "provider", "direction", "shape", "dtype", "layout", "saved_bytes", "peak_bytes"}
    common |= {"ms_p20", "ms_p50", "ms_p80", "gb_per_s", "fraction_of_limit"}
    rows = {(row["op"], row["provider"], row["direction"]): row for row in record["rows"]}
    assert len(rows) == len(record["rows"]) == 5 * 3 + 3
    for (op, provider, direction), row in rows.items():
        assert common == set(row) - {"wrong"}
        assert (row["ms_p50"] is not None) == (provider == "right"), (op, provider, direction)
        assert ("wrong" in row) == (provider != "right")
    assert rows["double", "fails", "forward"]["wrong"] == "RuntimeError: out of memory"
    assert rows["double", "fails in backward", "both"]["wrong"] == "RuntimeError: out of memory"
    assert rows["double", "wrong result", "both"]["wrong"].startswith("result is off by")
    assert rows["double", "wrong gradient", "forward"]["wrong"].startswith("gradient 0 is off by")
    assert rows["in place", "fails", "forward"]["wrong"] == "RuntimeError: out of memory"
    right = rows["double", "right", "forward"]
    assert (right["shape"], right["dtype"], right["layout"]) == ([6, 2, 3, 3], "float32", "channels_last")
    assert right["ms_p20"] <= right["ms_p50"] <= right["ms_p80"]


def test_a_result_without_dimensions_is_judged_by_all_images(harness, bench) -> None:
    def total(x: Tensor) -> Tensor:
        return x.square().sum()

    providers = {"right": (total, "flat"), "wrong in the last row": (lambda x: x[:-1].square().sum(), "flat")}
    moved = dict.fromkeys(("forward", "backward", "both"), 96)
    bench.run(harness.Case("total", (12, 2), torch.float32, total, providers, moved))
    wrong = {row["provider"]: row.get("wrong") for row in bench.rows}
    assert wrong["right"] is None
    assert "is off by" in wrong["wrong in the last row"]


def test_kept_and_peak_bytes_are_those_of_the_operator(harness) -> None:
    def squared(x: Tensor) -> Tensor:
        return (x * x).sum()

    x = torch.ones(2**18, device=harness.DEVICE, requires_grad=True)
    kept, peak = harness._memory(squared, [x])
    assert kept == x.nbytes  # x itself
    # The square in forward; in backward the sum's gradient takes no memory, each factor's does, and so does their sum.
    assert 2 * x.nbytes <= peak <= 4 * x.nbytes


def test_every_case_is_compiled_however_many_share_a_function(harness, bench) -> None:
    compiled = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]):
        compiled.append(graph)
        return graph.forward

    def scaled(x: Tensor, factor: int) -> Tensor:
        return x * factor

    moved = dict.fromkeys(("forward", "backward", "both"), 1)
    factors = range(2, 12)
    for factor in factors:
        operator = partial(scaled, factor=factor)
        provider = (torch.compile(operator, backend=backend, dynamic=False), "nchw")
        bench.run(harness.Case("scale", (5, 1, 1, 1), torch.float32, operator, {"torch.compile": provider}, moved))
    assert len(compiled) >= len(factors)
    assert not any("wrong" in row for row in bench.rows)


def test_maxima_chosen_by_rounding_are_no_error_and_wrong_gradients_are(harness) -> None:
    def definition(x: Tensor) -> Tensor:
        return reference.lrn_max_pool2d(x, 5, 1e-4, 0.75, 2.0, groups=1, kernel_size=3, stride=2, bias=None, relu=None)

    def rounded_before_pooling(x: Tensor) -> Tensor:
        return kernels.max_pool2d(kernels.local_response_norm(x))

    def spread_over_windows(x: Tensor) -> Tensor:
        normalised = kernels.local_response_norm(x)
        mean = F.avg_pool2d(normalised, 3, 2)
        return kernels.max_pool2d(normalised).detach() - mean.detach() + mean

    verdicts = []
    for chooses in (False, True):
        case = harness.Case("pool", (4, 16, 27, 27), torch.float16, definition, {}, scale=10.0, chooses=chooses)
        for operator in (rounded_before_pooling, spread_over_windows):
            verdicts.append(harness._error(operator, case, *harness._laid_out(case, *harness._inputs(case), "nchw")))
    assert verdicts[0].startswith("gradient 0 is off by")
    assert verdicts[2] is None
    assert verdicts[1].startswith("gradient 0 is off by")
    assert verdicts[3].startswith("gradient 0 is off by")


def test_a_timing_that_is_repeated_prepares_its_work_anew(harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """Backward goes through a graph once: what was prepared for an attempt cannot serve another."""
    late = iter([True, True, False])
    event = SimpleNamespace(
        record=lambda: None, query=lambda: next(late), synchronize=lambda: None, elapsed_time=lambda _: 1.5
    )
    leads: list[int] = []
    monkeypatch.setattr(torch.cuda, "Event", lambda **_: event)
    monkeypatch.setattr(torch.cuda, "_sleep", leads.append)
    x = torch.ones(3, requires_grad=True)
    clock = harness.DeviceClock()
    assert clock.time(lambda: x.exp().sum(), lambda y: y.backward()) == 1.5
    assert leads == [leads[0], 2 * leads[0], 4 * leads[0]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--batches 0", "argument --batches: must be above 0 and finite, not 0"),
        ("--seconds-per-timing nan", "argument --seconds-per-timing: must be above 0 and finite, not nan"),
        ("--dtypes bf16", "invalid choice: 'bf16'"),
    ],
)
def test_bad_options_are_named(harness, options: str, message: str, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["bench", *options.split()])
    with pytest.raises(SystemExit):
        harness.Benchmark("test", "A test")
    assert message in capsys.readouterr().err


def test_a_provider_that_there_is_not_writes_no_record(harness, tmp_path: Path, monkeypatch) -> None:
    options = ["--quick", "--providers", "oars", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["bench", *options])
    bench = harness.Benchmark("test", "A test", sized=False)
    bench.run_in_place("op", (1,), torch.float32, "ours", lambda: lambda: None, 1, lambda: None)
    with pytest.raises(SystemExit, match="--providers oars is part of no provider's name; there are ours"):
        bench.finish()
    assert not list(tmp_path.iterdir())

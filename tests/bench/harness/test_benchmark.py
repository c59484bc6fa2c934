"""Operator benchmarks: which providers get a time, and what a record contains."""

from __future__ import annotations

import json
import runpy
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from harness import DEVICE, ROOT, Benchmark, Case, device_name, run_script, slug
from torch import Tensor


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Benchmark:
    monkeypatch.setattr(sys, "argv", ["bench", "--quick", "--output", str(tmp_path)])
    monkeypatch.setattr("harness.benchmark.copy_bandwidth", lambda _: 1.0)
    made = Benchmark("tiny", "Doubling")
    made.seconds = 0.0
    return made


def double(x: Tensor) -> Tensor:
    return x * 2


def fail(x: Tensor) -> Tensor:
    raise RuntimeError("out of memory\nTried to allocate 20.00 GiB")


def fail_in_backward(x: Tensor) -> Tensor:
    y = double(x)
    y.register_hook(lambda _: fail(x))
    return y


def test_a_provider_that_is_wrong_or_fails_gets_a_reason_and_no_time(bench, tmp_path: Path) -> None:
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
    bench.run(Case("double", shape, torch.float32, double, cases, moved))
    for name, work, error in (("fails", fail, None), ("wrong", double, "is off"), ("right", double, None)):
        x = torch.ones(3, device=DEVICE)
        bench.run_in_place(
            "in place", (3,), torch.float32, name, lambda w=work, x=x: partial(w, x), 24, lambda e=error: e
        )
    bench.finish()

    record = json.loads((tmp_path / slug(device_name()) / "tiny-quick.json").read_text())
    assert {"device", "versions", "commit", "date", "settings", "rows"} == set(record)
    assert (tmp_path / slug(device_name()) / "tiny-quick.png").exists()
    common = {"op", "provider", "direction", "shape", "dtype", "memory_format", "saved_bytes", "peak_bytes"}
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
    assert (right["shape"], right["dtype"], right["memory_format"]) == ([6, 2, 3, 3], "float32", "channels_last")
    assert right["ms_p20"] <= right["ms_p50"] <= right["ms_p80"]


def test_ctrl_c_prints_the_rows_so_far_in_place_of_a_traceback(bench, tmp_path: Path, capsys) -> None:
    def interrupted(x: Tensor) -> Tensor:
        raise KeyboardInterrupt

    moved = dict.fromkeys(("forward", "backward", "both"), 1)
    case = {"finished": (double, "nchw"), "slow": (interrupted, "nchw")}
    with pytest.raises((SystemExit, KeyboardInterrupt)) as caught:
        run_script(lambda: bench.run(Case("double", (2, 1, 1, 1), torch.float32, double, case, moved)))
    assert getattr(caught.value, "code", None) == 130
    out, err = capsys.readouterr()
    assert err == "interrupted; no record was written\n"
    table = out.partition("Doubling (interrupted)")[2]
    assert [direction in table for direction in ("forward", "backward", "both")] == [True] * 3
    assert "finished" in table
    assert "slow" not in table
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["conv_relu", "cross_entropy", "dropout", "fusions", "lrn", "max_pool", "sgd"])
def test_ctrl_c_before_any_row_prints_one_line(name: str, monkeypatch, capsys) -> None:
    def interrupted(_: float) -> float:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", [name])
    monkeypatch.setattr("harness.benchmark.copy_bandwidth", interrupted)
    with pytest.raises((SystemExit, KeyboardInterrupt)) as caught:
        runpy.run_path(str(ROOT / "bench" / f"{name}.py"), run_name="__main__")
    assert getattr(caught.value, "code", None) == 130
    out, err = capsys.readouterr()
    assert (out.strip(), err) == ("", "interrupted; no record was written\n")


def test_a_result_without_dimensions_is_checked_for_all_images(bench) -> None:
    def total(x: Tensor) -> Tensor:
        return x.square().sum()

    providers = {"right": (total, "flat"), "wrong in the last row": (lambda x: x[:-1].square().sum(), "flat")}
    moved = dict.fromkeys(("forward", "backward", "both"), 96)
    bench.run(Case("total", (12, 2), torch.float32, total, providers, moved))
    wrong = {row["provider"]: row.get("wrong") for row in bench.rows}
    assert wrong["right"] is None
    assert "is off by" in wrong["wrong in the last row"]


def test_every_case_is_compiled_even_if_many_share_a_function(bench) -> None:
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
        bench.run(Case("scale", (5, 1, 1, 1), torch.float32, operator, {"torch.compile": provider}, moved))
    assert len(compiled) >= len(factors)
    assert not any("wrong" in row for row in bench.rows)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--batches 0", "argument --batches: must be above 0 and finite, got 0"),
        ("--seconds-per-timing nan", "argument --seconds-per-timing: must be above 0 and finite, got nan"),
        ("--dtypes bf16", "invalid choice: 'bf16'"),
    ],
)
def test_bad_options_are_named(options: str, message: str, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["bench", *options.split()])
    with pytest.raises(SystemExit):
        Benchmark("test", "A test")
    assert message in capsys.readouterr().err


def test_an_unknown_provider_writes_no_record(tmp_path: Path, monkeypatch) -> None:
    options = ["--quick", "--providers", "oars", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["bench", *options])
    bench = Benchmark("test", "A test", sized=False)
    bench.run_in_place("op", (1,), torch.float32, "ours", lambda: lambda: None, 1, lambda: None)
    with pytest.raises(SystemExit, match="--providers oars matches no provider; choose from ours"):
        bench.finish()
    assert not list(tmp_path.iterdir())

"""Operator benchmarks: which providers get a time, and what a record contains."""

from __future__ import annotations

import json
import re
import runpy
import statistics
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from harness import DEVICE, ROOT, Benchmark, Case, InPlace, device_name, run_script, slug, turns
from harness.limits import Limit
from harness.turns import FEWEST_ROUNDS
from torch import Tensor

MOVED = dict.fromkeys(("forward", "backward", "both"), 96)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Benchmark:
    monkeypatch.setattr(sys, "argv", ["bench", "--quick", "--output", str(tmp_path)])
    copied = torch.ones(3, device=DEVICE)
    monkeypatch.setattr("harness.benchmark.copy_limit", lambda: Limit("copy_gb_per_s", 1e6, 24, copied.clone))
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
    x = torch.ones(3, device=DEVICE)
    works = {"fails": (fail, None), "wrong": (double, "is off"), "right": (double, None)}
    in_place = {
        name: InPlace(lambda w=work: partial(w, x), 24, lambda e=error: e) for name, (work, error) in works.items()
    }
    bench.run_in_place("in place", (3,), torch.float32, in_place)
    bench.finish()

    record = json.loads((tmp_path / slug(device_name()) / "tiny-quick.json").read_text())
    assert {"device", "versions", "commit", "date", "settings", "rows"} == set(record)
    assert (tmp_path / slug(device_name()) / "tiny-quick.png").exists()
    common = {"op", "provider", "direction", "shape", "dtype", "memory_format", "saved_bytes", "peak_bytes"}
    common |= {"ms_p20", "ms_p50", "ms_p80", "round_ms", "gb_per_s", "fraction_of_limit"}
    common |= {"eager", "speed_to_eager", "compiled", "speed_to_compiled"}
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

    def run() -> None:
        bench.run(Case("finished", (2, 1, 1, 1), torch.float32, double, {"ours": (double, "nchw")}, MOVED))
        bench.run(Case("slow", (2, 1, 1, 1), torch.float32, double, {"ours": (interrupted, "nchw")}, MOVED))

    with pytest.raises((SystemExit, KeyboardInterrupt)) as caught:
        run_script(run)
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
    def interrupted(*_) -> Limit:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", [name])
    for limit in ("copy_limit", "product_limit"):
        monkeypatch.setattr(f"harness.benchmark.{limit}", interrupted)
    with pytest.raises((SystemExit, KeyboardInterrupt)) as caught:
        runpy.run_path(str(ROOT / "bench" / f"{name}.py"), run_name="__main__")
    assert getattr(caught.value, "code", None) == 130
    out, err = capsys.readouterr()
    assert (out.strip(), err) == ("", "interrupted; no record was written\n")


def test_a_result_without_dimensions_is_checked_for_all_images(bench) -> None:
    def total(x: Tensor) -> Tensor:
        return x.square().sum()

    providers = {"right": (total, "flat"), "wrong in the last row": (lambda x: x[:-1].square().sum(), "flat")}
    bench.run(Case("total", (12, 2), torch.float32, total, providers, MOVED))
    wrong = {row["provider"]: row.get("wrong") for row in bench.rows}
    assert wrong["right"] is None
    assert "is off by" in wrong["wrong in the last row"]


def test_all_providers_are_checked_before_any_is_timed_and_then_take_turns(bench, monkeypatch) -> None:
    calls: list[str] = []

    def provider(name: str, x: Tensor) -> Tensor:
        calls.append(name)
        return x * 2

    def first_turn(contenders, seconds: float) -> None:
        checked.append(list(calls))
        calls.clear()
        take_turns(contenders, seconds)
        timed.append(list(calls))
        calls.clear()

    checked: list[list[str]] = []
    timed: list[list[str]] = []
    take_turns = turns.take_turns
    monkeypatch.setattr("harness.benchmark.take_turns", first_turn)
    providers = {name: (partial(provider, name), "nchw") for name in ("ours", "torch eager", "torch.compile")}
    bench.run(Case("double", (2, 1, 1, 1), torch.float32, double, providers, MOVED))
    assert set(checked[0]) == set(providers)
    assert checked[1:] == [[], []]  # the other directions are timed right after
    names = list(providers)
    wanted = names.copy()  # one untimed repetition of each, then rounds
    for number in range(FEWEST_ROUNDS):
        wanted += names if number % 2 == 0 else names[::-1]
    assert timed == [wanted] * 3


def test_providers_share_the_memory_of_inputs_in_the_same_format(bench) -> None:
    addresses: dict[str, set[int]] = {}

    def provider(name: str, x: Tensor) -> Tensor:
        addresses.setdefault(name, set()).add(x.data_ptr())
        return x * 2

    formats = {"a": "channels_last", "b": "channels_last", "c": "nchw"}
    providers = {name: (partial(provider, name), memory_format) for name, memory_format in formats.items()}
    bench.run(Case("double", (2, 3, 2, 2), torch.float32, double, providers, MOVED))
    assert addresses["a"] == addresses["b"]
    assert len(addresses["a"] | addresses["c"]) == 2


def test_speeds_of_a_record_are_those_within_its_rounds(bench, tmp_path: Path) -> None:
    providers = {
        "ours": (double, "nchw"),
        "torch eager": (lambda x: (x + x * 3 - x) - x, "nchw"),
        "torch eager NCHW": (lambda x: x.exp().log().exp().log() * 2, "nchw"),
    }
    bench.run(Case("double", (64, 3, 20, 20), torch.float32, double, providers, MOVED))
    bench.finish()
    rows = json.loads((tmp_path / slug(device_name()) / "tiny-quick.json").read_text())["rows"]
    for direction in ("forward", "backward", "both"):
        chosen = {row["provider"]: row for row in rows if row["direction"] == direction}
        eager = [row for name, row in chosen.items() if name.startswith("torch eager")]
        base = min(eager, key=lambda row: row["ms_p50"])
        for row in chosen.values():
            assert row["eager"] == base["provider"]
            assert len(row["round_ms"]) == FEWEST_ROUNDS
            ratios = [above / below for above, below in zip(base["round_ms"], row["round_ms"], strict=True)]
            assert row["speed_to_eager"] == pytest.approx(statistics.median(ratios), rel=0.02, abs=1e-3)
            assert (row["compiled"], row["speed_to_compiled"]) == (None, None)


def test_a_script_ends_with_its_table_its_summary_and_the_path_of_its_chart(
    tmp_path: Path, monkeypatch, capsys
) -> None:
    options = ["--batches", "1", "--providers", "ours", "eager", "--seconds-per-timing", "1e-6"]
    monkeypatch.setattr(sys, "argv", ["lrn", *options, "--output", str(tmp_path)])
    runpy.run_path(str(ROOT / "bench" / "lrn.py"), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    chart = Path(lines[-1])
    assert chart == tmp_path / slug(device_name()) / "lrn.png"
    assert chart.read_bytes().startswith(b"\x89PNG")
    names = ("LRN 96x55x55", "LRN 256x27x27", "same-map norm 256x27x27")
    assert tuple(line.partition(", forward and backward: ")[0] for line in lines[-4:-1]) == names
    assert all(re.fullmatch(r".*: [0-9.]+ times PyTorch.*; \d+ % of a copy", line) for line in lines[-4:-1])
    table = lines[lines.index(next(line for line in lines if line.startswith("Local response"))) : -5]
    assert {"local_response_norm 1x96x55x55", "same_map_norm 1x256x27x27"} <= {
        " ".join(line.split()[:2]) for line in table
    }
    assert max(map(len, table)) <= 100
    assert sum(line.startswith("   torch eager channels_last ") for line in table) == 3 * 3


def test_every_case_is_compiled_even_if_many_share_a_function(bench) -> None:
    compiled = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]):
        compiled.append(graph)
        return graph.forward

    def scaled(x: Tensor, factor: int) -> Tensor:
        return x * factor

    factors = range(2, 12)
    for factor in factors:
        operator = partial(scaled, factor=factor)
        provider = (torch.compile(operator, backend=backend, dynamic=False), "nchw")
        bench.run(Case("scale", (5, 1, 1, 1), torch.float32, operator, {"torch.compile": provider}, MOVED))
    assert len(compiled) >= len(factors)
    assert not any("wrong" in row for row in bench.rows)


def test_a_compiled_function_that_dynamo_gives_up_on_gets_no_time(bench, monkeypatch) -> None:
    monkeypatch.setattr(torch._dynamo.config, "fail_on_recompile_limit_hit", False)
    calls: list[int] = []

    def changing(x: Tensor) -> Tensor:
        calls.append(0)
        return x * 2 + 0 * len(calls)  # which is a constant of the compiled code

    provider = (torch.compile(changing, backend=lambda graph, _: graph.forward, dynamic=False), "nchw")
    bench.run(Case("double", (2, 1, 1, 1), torch.float32, double, {"torch.compile": provider}, MOVED))
    (reason,) = {row["wrong"] for row in bench.rows if row["direction"] == "both"}
    assert "recompile_limit" in reason


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
    in_place = {"ours": InPlace(lambda: lambda: None, 1, lambda: None)}
    bench.run_in_place("op", (1,), torch.float32, in_place)
    with pytest.raises(SystemExit, match="--providers oars matches no provider; choose from ours"):
        bench.finish()
    assert not list(tmp_path.iterdir())

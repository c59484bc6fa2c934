"""Rows, tables, summaries and charts, also those of records that were written before providers took turns."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import rich.console
import torch
from harness import RESULTS
from harness.charts import draw_times
from harness.limits import Limit
from harness.rows import add_speeds, measures, new_row, total
from harness.summary import summary_lines
from harness.tables import WIDTH, results_tables
from harness.turns import Contender

OPERATORS = ("lrn", "max_pool", "conv_relu", "dropout", "fusions", "sgd")
RECORDS = sorted(path for name in OPERATORS for path in RESULTS.glob(f"*/{name}.json"))


def contender(*round_ms: float) -> Contender:
    made = Contender(lambda: None, lambda _: None)
    made.rounds = [[milliseconds] for milliseconds in round_ms]
    return made


def copy(amount: int) -> Limit:
    return Limit("copy_gb_per_s", 1e6, amount, lambda: torch.ones(1))


def rows_of(
    times: dict[str, tuple[float, ...]], limit: Limit, *, op: str = "local_response_norm", direction: str = "both",
    shape: tuple[int, ...] = (64, 96, 55, 55), amount: int = 10**9, dtype: torch.dtype = torch.float32,
) -> list[dict]:  # fmt: skip
    """Rows of providers that took these times in the rounds; no times are a wrong result."""
    rows = []
    for name, round_ms in times.items():
        row = new_row(op, name, direction, shape, dtype, "nchw", None if round_ms else "result is off by 1.0e+00")
        row |= measures(contender(*round_ms) if round_ms else None, amount, limit, [1.0, 2.0, 4.0])
        rows.append(row | {"saved_bytes": 3 * 2**20, "peak_bytes": 2**20})
    add_speeds(rows)
    return rows


TIMES = {
    "ours": (2.0, 4.0, 1.0),
    "torch eager channels_last": (20.0, 40.0, 90.0),
    "torch eager NCHW": (6.0, 60.0, 7.0),
    "torch.compile": (9.0, 9.0, 9.0),
    "torch.compile, one formula": (1.0, 12.0, 6.0),
    "ours, not fused": (),
}


def test_speeds_are_relative_to_the_fastest_of_a_kind_in_the_same_round() -> None:
    rows = {row["provider"]: row for row in rows_of(TIMES, copy(10**9))}
    ours = rows["ours"]
    # By medians NCHW is the fastest eager one, and the single formula the fastest compiled one.
    assert (ours["eager"], ours["compiled"]) == ("torch eager NCHW", "torch.compile, one formula")
    assert ours["speed_to_eager"] == 7.0  # of 3, 15 and 7; the ratio of the medians is 3.5
    assert ours["speed_to_compiled"] == 3.0  # of 0.5, 3 and 6
    assert rows["torch eager NCHW"]["speed_to_eager"] == 1.0
    assert rows["torch.compile"]["speed_to_eager"] == pytest.approx(7 / 9, abs=1e-4)
    wrong = rows["ours, not fused"]
    assert (wrong["speed_to_eager"], wrong["speed_to_compiled"], wrong["ms_p50"]) == (None, None, None)
    # The copy took 1, 2 and 4 ms: 1/2, 1/2 and 4 of ours, which moves the same number of bytes.
    assert ours["fraction_of_limit"] == 0.5
    assert ours["gb_per_s"] == 500.0


def test_a_sum_adds_up_round_by_round() -> None:
    product = Limit("product_tflop_per_s_float32", 1e9, 2 * 10**9, lambda: torch.ones(1))
    first = rows_of({"ours": (1.0, 2.0, 4.0), "torch eager": (2.0, 4.0, 8.0)}, product, op="conv1", amount=10**9)
    second = rows_of({"ours": (3.0, 6.0, 12.0), "torch eager": (2.0, 4.0, 8.0)}, product, op="conv2", amount=10**9)
    sums = [total([a, b], "both", [64]) for a, b in zip(first, second, strict=True)]
    add_speeds(sums)
    ours, eager = sums
    assert ours["round_ms"] == [4.0, 8.0, 16.0]
    assert eager["round_ms"] == [4.0, 8.0, 16.0]
    assert ours["speed_to_eager"] == 1.0
    # Both are half of the product: at its speed conv1 takes half of the time that it took, conv2 a sixth.
    assert [row["fraction_of_limit"] for row in (first[0], second[0], ours)] == [
        0.5,
        pytest.approx(1 / 6, abs=1e-4),
        0.25,
    ]
    assert (ours["operations"], ours["tflop_per_s"]) == (2 * 10**9, 0.25)


def test_a_summary_says_in_one_line_how_fast_an_operator_is() -> None:
    forward = rows_of(TIMES | {"ours": (1.0,) * 3}, copy(10**9), direction="forward")
    assert summary_lines(forward + rows_of(TIMES, copy(10**9))) == [
        "LRN 96x55x55, forward and backward: 7.0 times PyTorch, 3.0 times the best compiled formula; 50 % of a copy"
    ]
    slow = {"ours": (2.0,) * 3, "torch.optim.SGD fused": (1.6,) * 3}
    update = rows_of(slow, copy(10**9), op="sgd_update_", direction="forward", shape=(61_000_000,))
    assert summary_lines(update) == ["SGD update: 0.80 times PyTorch; 100 % of a copy"]
    wrong = rows_of({"ours": (), "torch eager": (1.0,) * 3}, copy(10**9))
    assert summary_lines(wrong) == ["LRN 96x55x55, forward and backward: no time, result is off by 1.0e+00"]
    alone = rows_of({"ours": (8.0,) * 3, "ours, Triton alone": (1.0,) * 3}, copy(10**9))
    assert summary_lines(alone) == ["LRN 96x55x55, forward and backward: 25 % of a copy"]


def test_a_summary_of_several_batches_and_dtypes_tells_them_apart() -> None:
    product = Limit("product_tflop_per_s_float32", 1e9, 10**9, lambda: torch.ones(1))
    rows = [
        row
        for batch, dtype in ((128, torch.bfloat16), (1024, torch.float32))
        for row in rows_of({"ours": (2.0,) * 3}, product, op="dropout", shape=(batch, 4096), dtype=dtype)
    ]
    assert summary_lines(rows) == [
        "dropout 4096, batch 128, bfloat16, forward and backward: 100 % of a large product",
        "dropout 4096, batch 1024, float32, forward and backward: 100 % of a large product",
    ]


@pytest.mark.parametrize("path", [None, *RECORDS], ids=lambda path: path and f"{path.parent.name}-{path.stem}")
def test_tables_fit_100_columns_and_cut_nothing(path: Path | None) -> None:
    """Of records from before providers took turns, and of all kinds of rows with large numbers."""
    if path is None:
        rows = rows_of({name: tuple(12345 * ms for ms in times) for name, times in TIMES.items()}, copy(10**9))
        product = Limit("product_tflop_per_s_float32", 1e9, 2 * 10**9, lambda: torch.ones(1))
        times = {"torch.compile max-autotune": (99999.0,) * 3, "ours, Triton alone": (1.0,) * 3}
        rows += rows_of(times, product, op="all five layers", direction="weight gradient", shape=(1024,))
        for row in rows:
            row["saved_bytes"] = 10**11
        settings = {"copy_gb_per_s": 3028.1234, "product_tflop_per_s_float32": 612.3}
    else:
        record = json.loads(path.read_text())
        rows, settings = record["rows"], record["settings"]
    console = rich.console.Console(width=WIDTH, force_terminal=False)
    with console.capture() as capture:
        console.print(results_tables("A benchmark", rows, settings))
    text = capture.get()
    lines = text.splitlines()
    assert max(len(line.rstrip()) for line in lines) <= 100
    assert "…" not in text
    # One line per row, with its whole provider and its median.
    for row in rows:
        shown = [line for line in lines if line.startswith(f"   {row['provider']} ")]
        assert shown, row["provider"]
    assert sum(line.startswith("   ") and not line.startswith("    ") for line in lines) == len(rows)


@pytest.mark.parametrize("path", RECORDS[:2])
def test_charts_of_old_records_are_drawn(path: Path, tmp_path: Path) -> None:
    assert draw_times(tmp_path / "chart.png", "A benchmark", json.loads(path.read_text())["rows"])
    assert (tmp_path / "chart.png").exists()


def test_a_chart_shows_times_and_speeds_beside_the_bars(tmp_path: Path, monkeypatch) -> None:
    shown: list[str] = []
    monkeypatch.setattr("matplotlib.axes.Axes.bar_label", lambda self, bars, labels, **_: shown.extend(labels))
    assert draw_times(tmp_path / "chart.png", "A benchmark", rows_of(TIMES, copy(10**9)))
    assert shown == ["2 (7.00 x)", "40 (0.30 x)", "7 (1.00 x)", "9 (0.78 x)", "6 (5.00 x)"]
    assert not draw_times(tmp_path / "none.png", "A benchmark", rows_of({"ours": ()}, copy(10**9)))
    assert not (tmp_path / "none.png").exists()

"""Prints the rows of the record in two tables, each at most 100 columns wide."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from static_analysis.recorded import groups
from static_analysis.sass import UNITS

_UNITS = [unit for unit in UNITS if unit != "other"]
_TIMES = ("memory", "issue", "alu", "fma", "mufu", "lsu", "tensor")
CODE_CAPTION = """\
regs: registers per thread. spill: bytes per thread. shared: KiB per program. warps: that a
multiprocessor holds at a time. loads, stores: widths in bytes of those of global memory. slots and
units: instructions per result; other instructions are in slots only. <: fewer, because a loop skips
some of them in some iterations. ?: a loop of unknown length counts once."""
TIME_CAPTION = """\
Microseconds on one H100: predicted, never measured, by part of the GPU; the longest is the
prediction, a lower limit (bench/static_analysis/prediction.py). sum: all launches of the line.
recorded: measured on an H100, partly with earlier code and compilers, and with PyTorch's operations
in between."""


def code_table(rows: Sequence[dict[str, Any]]) -> str:
    """What the compiler made of each launch."""
    head = ["regs", "spill", "shared", "warps", "loads", "stores", "slots", *_UNITS]
    widths = [5, 6, 7, 6, 10, 8, 7, *([6] * 4), 7]
    lines = [_line("launch", head, widths)]
    for group in groups(rows):
        lines.append(_heading(group[0]))
        for row in group:
            cells = [str(row["registers"]), str(row["spilled_bytes"]), f"{row['shared_bytes'] / 1024:.1f}"]
            cells += [str(row["resident_warps"]), _widths(row["load_widths"]), _widths(row["store_widths"])]
            counts = [_short(row["per_result"][name]) for name in ("slots", *_UNITS)]
            counts[0] = ("<" if row["skipped_sometimes"] else "") + counts[0] + ("" if row["loops_known"] else "?")
            lines.append(_line(_name(row), [*cells, *counts], widths))
    return "\n".join([*lines, CODE_CAPTION])


def time_table(rows: Sequence[dict[str, Any]]) -> str:
    """The predicted time of each launch by part of the GPU, and the recorded time of those of one line."""
    widths = [8, *([7] * len(_TIMES)), 10]
    lines = [_line("launch", ["MB", *_TIMES, "predicted"], widths)]
    for group in groups(rows):
        predicted, recorded = sum(row["predicted_us"] for row in group), group[0]["recorded_us"]
        times = f": sum {_short(predicted)}" + ("" if recorded is None else f", recorded {_short(recorded)}")
        lines.append(_heading(group[0]) + times)
        for row in group:
            cells = [f"{row['moved_bytes'] / 1e6:.1f}", *(_short(row["microseconds"][part]) for part in _TIMES)]
            lines.append(_line(_name(row), [*cells, _short(row["predicted_us"])], widths))
    return "\n".join([*lines, TIME_CAPTION])


def _heading(row: dict[str, Any]) -> str:
    return f"{row['case']} {'x'.join(map(str, row['shape']))}, {row['direction']}"


def _name(row: dict[str, Any]) -> str:
    number = f" {row['number']}" if row["number"] > 1 else ""
    return f"  {row['kernel'].removesuffix('_kernel')}{number}"


def _line(first: str, cells: Sequence[str], widths: Sequence[int]) -> str:
    return f"{first:20}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))


def _widths(counts: dict[str, int]) -> str:
    return ",".join(sorted(counts, key=int)) or "-"


def _short(value: float) -> str:
    """A number in at most six characters."""
    if value == 0:
        return "-"
    if value < 100:
        return f"{value:.1f}" if value >= 0.05 else "<.05"
    return f"{value:.0f}" if value < 1e5 else f"{value / 1e3:.0f}k"

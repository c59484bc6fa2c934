"""The tables of an operator benchmark: one per operator and shape, at most 100 columns wide."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from harness.device import device_name

WIDTH = 100
"""The width of a table at most, also where the output is no terminal."""


def results_tables(title: str, rows: Sequence[dict[str, Any]], settings: dict[str, Any]) -> Group:
    """The rows of each operator and shape by direction, and what the columns mean."""
    limits = [f"copy {settings['copy_gb_per_s']:.4g} GB/s"] if "copy_gb_per_s" in settings else []
    limits += [f"product {speed:.3g} TFLOP/s" for name, speed in settings.items() if name.startswith("product")]
    cases: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        cases.setdefault(f"{row['op']} {'x'.join(map(str, row['shape']))} {row['dtype']}", []).append(row)
    heading = Text(f"\n{title}: {', '.join([device_name(), *limits])}", style="bold")
    return Group(heading, *(_table(name, chosen) for name, chosen in cases.items()), Text(_legend(rows), style="dim"))


def _table(title: str, rows: Sequence[dict[str, Any]]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("")
    for column in ("ms", "p20 to p80", "x eager", "x compiled", "of limit", "saved MiB"):
        table.add_column(column, justify="right")
    for direction in dict.fromkeys(row["direction"] for row in rows):
        table.add_row(direction, style="bold")
        for row in (row for row in rows if row["direction"] == direction):
            table.add_row(f"  {row['provider']}", *_cells(row))
    return table


def _cells(row: dict[str, Any]) -> list[str]:
    saved = "-" if row["saved_bytes"] is None else f"{row['saved_bytes'] / 2**20:.1f}"
    if row["ms_p50"] is None:
        return ["wrong", *["-"] * 4, saved]
    return [
        _significant(row["ms_p50"]),
        f"{_significant(row['ms_p20'])} to {_significant(row['ms_p80'])}",
        *("-" if row.get(name) is None else f"{row[name]:.2f}" for name in ("speed_to_eager", "speed_to_compiled")),
        f"{row['fraction_of_limit']:.0%}",
        saved,
    ]


def _significant(milliseconds: float) -> str:
    """Milliseconds with three digits or more."""
    digits = 3 if milliseconds < 1 else 2 if milliseconds < 10 else 1 if milliseconds < 100 else 0
    return f"{milliseconds:.{digits}f}"


def _legend(rows: Sequence[dict[str, Any]]) -> str:
    """What the columns mean."""
    lines = [
        "ms: median; p20 to p80: spread. x eager, x compiled: speed relative to the fastest such provider,",
        "median of the ratios within rounds. saved: memory between forward and backward. both: timed on its",
        "own, not added up.",
    ]
    if any("gb_per_s" in row for row in rows):
        lines.append("of limit: fewest bytes to move per time, relative to a copy in the same round.")
    if any("tflop_per_s" in row for row in rows):
        lines.append("of limit: additions and multiplications per time, relative to a large product in the same round.")
    return "\n".join(lines)

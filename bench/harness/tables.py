"""The table of an operator benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from harness.device import device_name


def results_table(title: str, rows: Sequence[dict[str, Any]], settings: dict[str, Any]) -> Table:
    """One line per operator, provider and direction."""
    limits = [f"copy {settings['copy_gb_per_s']} GB/s"]
    limits += [f"product {speed} TFLOP/s" for name, speed in settings.items() if name.startswith("product")]
    table = Table(title=f"{title}: {device_name()}, {', '.join(limits)}", caption=_caption(rows))
    for column in ("operator", "provider", "direction"):
        table.add_column(column)
    for column in ("shape", "dtype", "ms p20, p50, p80", "speed", "of limit", "saved"):
        table.add_column(column, justify="right")
    for row in rows:
        if row["ms_p50"] is None:
            speed = ["wrong result", "-", "-"]
        else:
            speed = [
                f"{row['ms_p20']:.2f} {row['ms_p50']:.2f} {row['ms_p80']:.2f}",
                f"{row['gb_per_s']:.1f} GB/s" if "gb_per_s" in row else f"{row['tflop_per_s']:.3g} TFLOP/s",
                f"{row['fraction_of_limit']:.0%}",
            ]
        shape = "x".join(map(str, row["shape"]))
        saved = "-" if row["saved_bytes"] is None else f"{row['saved_bytes'] / 2**20:.1f} MiB"
        table.add_row(row["op"], row["provider"], row["direction"], shape, row["dtype"], *speed, saved)
    return table


def _caption(rows: Sequence[dict[str, Any]]) -> str:
    """What the columns mean."""
    speeds = []
    if any("gb_per_s" in row for row in rows):
        speeds.append("speed: fewest bytes that the operator must move over p50; of limit: relative to a device copy.")
    if any("tflop_per_s" in row for row in rows):
        speeds.append("speed: additions and multiplications over p50; of limit: relative to a large matrix product.")
    return (
        f"ms: 20th, 50th and 80th percentile. {' '.join(speeds)} saved: memory between forward and backward. "
        "both: timed on its own, not added up."
    )

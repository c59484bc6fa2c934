"""The chart of an operator benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

from harness.device import device_name

matplotlib.use("Agg")
import matplotlib.pyplot as plt

__all__ = ["draw_times", "plt"]


def draw_times(path: Path, title: str, rows: Sequence[dict[str, Any]]) -> bool:
    """One panel per operator and shape; one bar per provider and direction, beside it its time and its relative speed.

    Rows of old records have no relative speed. Returns False, without a chart, if no row has a time.
    """
    panels: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row["ms_p50"] is not None:
            panels.setdefault(f"{row['op']} {'x'.join(map(str, row['shape']))} {row['dtype']}", []).append(row)
    if not panels:
        return False
    # Panels may lack a direction; each direction has the same colour in all of them.
    all_directions = [list(dict.fromkeys(row["direction"] for row in shown)) for shown in panels.values()]
    most = max(all_directions, key=len)
    colours = {direction: f"C{index}" for index, direction in enumerate(most)}
    figure, axes = plt.subplots(len(panels), 1, figsize=(9, 0.6 + 2.6 * len(panels)), squeeze=False)
    for axis, (name, shown) in zip(axes[:, 0], panels.items(), strict=True):
        _draw_panel(axis, name, shown, colours)
    fullest = max(axes[:, 0], key=lambda axis: len(axis.get_legend_handles_labels()[0]))
    fullest.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))  # beside the panel, clear of the bars
    axes[-1, 0].set_xlabel("median time (ms), and speed relative to the fastest eager PyTorch")
    figure.suptitle(f"{title}, {device_name()}", fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return True


def _draw_panel(axis: Any, title: str, rows: Sequence[dict[str, Any]], colours: dict[str, str]) -> None:
    providers = list(dict.fromkeys(row["provider"] for row in rows))
    directions = [direction for direction in colours if any(row["direction"] == direction for row in rows)]
    height = 0.8 / len(directions)
    for offset, direction in enumerate(directions):
        chosen = [row for row in rows if row["direction"] == direction]
        positions = [providers.index(row["provider"]) + offset * height for row in chosen]
        times = [row["ms_p50"] for row in chosen]
        bars = axis.barh(positions, times, height * 0.9, label=direction, color=colours[direction])
        axis.bar_label(bars, [_label(row) for row in chosen], padding=2, fontsize=7)
    axis.set_yticks([index + 0.4 - height / 2 for index in range(len(providers))], providers, fontsize=8)
    axis.invert_yaxis()
    axis.set_title(title, fontsize=9)
    axis.margins(x=0.2)


def _label(row: dict[str, Any]) -> str:
    """Time and relative speed of a row, such as "41.2 (22.05 x)"."""
    speed = row.get("speed_to_eager")
    return f"{row['ms_p50']:.3g}" + (f" ({speed:.2f} x)" if speed is not None else "")

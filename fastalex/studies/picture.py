"""The picture of a study: its question, and a bar per variant with a point per run, beside the error of guessing."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastalex.metrics import chance
from fastalex.studies.claims import TRAINING_ERROR_GOAL, Study
from fastalex.studies.comparison import MARKS, NOT_LEARNED, Row, have_top5, why_missing
from fastalex.training.metrics_log import save_figure, without_backend

_BAR: dict[str, Any] = {"color": "0.85"}
_BAR_NOT_LEARNED: dict[str, Any] = {"facecolor": "0.95", "edgecolor": "0.6", "hatch": "///"}
_CHANCE: dict[str, Any] = {"color": "tab:red", "linestyle": "--", "linewidth": 1}


def draw_comparison(study: Study, rows: Sequence[Row], path: Path) -> None:
    """Draw errors, or epochs to the goal.

    The marks are those of the table: differences from the base with their marks behind the bars, and what did not
    learn. A dashed line is the error of guessing.
    """
    with without_backend():
        from matplotlib.figure import Figure as Picture  # a slow import, which only this function needs

    picture = Picture(figsize=(9, 1.6 + 0.45 * len(rows)), layout="constrained")
    count = 1 if study.measure == "epochs" else 1 + have_top5(rows)
    for top, axes in zip((1, 5), picture.subplots(1, count, squeeze=False)[0], strict=False):
        for y, row in enumerate(rows):
            if study.measure == "epochs":
                _draw_epochs(axes, y, row)
            else:
                _draw_errors(axes, y, row, top)
        label = f"epochs to {TRAINING_ERROR_GOAL:g} % training error"
        if study.measure == "error":
            label = f"top-{top} error (%)"
            axes.axvline(chance(rows[0].classes, top), **_CHANCE)
            axes.set_xlim(0, 1.2 * axes.get_xlim()[1])  # for the differences
        axes.set(xlabel=label, yticks=range(len(rows)), yticklabels=[row.variant.name for row in rows])
        axes.invert_yaxis()
        axes.grid(axis="x", alpha=0.3)
    picture.suptitle(study.question)
    _add_legend(picture, study, rows)
    save_figure(picture, path)


def _draw_errors(axes: Any, y: int, row: Row, top: int) -> None:
    points = [result.top1_error if top == 1 else result.top5_error for result in row.results]
    if not points:
        _write(axes, y, why_missing(row))
        return
    mean = statistics.fmean(points)
    axes.barh(y, mean, **(_BAR_NOT_LEARNED if row.learned_nothing else _BAR))
    axes.plot(points, [y] * len(points), "ko", markersize=3)
    difference = row.top1_difference if top == 1 else row.top5_difference
    if difference is not None:
        axes.annotate(str(difference), (max(points), y), (6, 0), textcoords="offset points", va="center", fontsize=8)
    if row.failures:
        _write(axes, y, row.failures)


def _draw_epochs(axes: Any, y: int, row: Row) -> None:
    points = [float(result.epochs_to_goal) for result in row.results if result.epochs_to_goal is not None]
    if row.epochs_to_goal is None:
        _write(axes, y, why_missing(row))
    else:
        axes.barh(y, statistics.fmean(points), **_BAR)
    axes.plot(points, [y] * len(points), "ko", markersize=3)


def _write(axes: Any, y: int, text: str) -> None:
    """Write at the left edge, within the bar if there is one."""
    axes.text(0.02, y, text, transform=axes.get_yaxis_transform(), va="center")


def _add_legend(picture: Any, study: Study, rows: Sequence[Row]) -> None:
    """What bars, points, lines and marks mean, of those that are there."""
    from matplotlib.lines import Line2D  # slow imports, as above
    from matplotlib.patches import Patch

    handles: list[Any] = [
        Patch(**_BAR, label="mean over seeds"),
        Line2D([], [], color="k", marker="o", markersize=3, linestyle="", label="one run"),
    ]
    if study.measure == "error":
        handles.append(Line2D([], [], **_CHANCE, label="chance"))
        if any(row.learned_nothing for row in rows):
            handles.append(Patch(**_BAR_NOT_LEARNED, label=NOT_LEARNED))
        shown = "".join(str(d) for row in rows for d in (row.top1_difference, row.top5_difference) if d is not None)
        handles += [Line2D([], [], linestyle="", label=f"{m} {MARKS[m]}") for m in MARKS if m in shown]
    picture.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=8, frameon=False)

"""A study's result: means and spreads over seeds, differences from the base, and the paper's beside them.

The spread is the standard deviation over seeds (with n - 1). A difference that is not larger than the base's or the
variant's spread is called so: it may well be chance.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from fastalex.console import duration
from fastalex.datasets import open_prepared
from fastalex.files import write_atomically
from fastalex.network.architecture import block_shapes
from fastalex.studies.claims import TRAINING_ERROR_GOAL, Study, Variant
from fastalex.studies.runs import RunResult, StudyRun, has_diverged, is_finished, outcome


@dataclass(frozen=True)
class Figure:
    """Mean and spread over seeds; the spread of one seed is not known."""

    mean: float
    spread: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Figure | None:
        """Of as many values as there are; None of none."""
        if not values:
            return None
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)

    def __str__(self) -> str:
        return f"{self.mean:.2f}" if self.spread is None else f"{self.mean:.2f} ± {self.spread:.2f}"


@dataclass(frozen=True)
class Difference:
    """A figure minus the base's; ``is_larger`` says whether it exceeds both spreads, None where a spread is unknown."""

    value: float
    is_larger: bool | None

    @classmethod
    def between(cls, figure: Figure | None, base: Figure | None) -> Difference | None:
        """None where one of the two is missing."""
        if figure is None or base is None:
            return None
        value = figure.mean - base.mean
        if figure.spread is None or base.spread is None:
            return cls(value, None)
        return cls(value, abs(value) > max(figure.spread, base.spread))

    def __str__(self) -> str:
        return f"{self.value:+.2f}{ {True: '', False: '~', None: '?'}[self.is_larger] }"


@dataclass(frozen=True)
class Row:
    """One variant: its finished runs and what they came to."""

    variant: Variant
    parameters: int
    epochs: int
    outcomes: tuple[RunResult, ...]
    diverged: int
    top1: Figure | None
    top5: Figure | None
    top1_difference: Difference | None
    top5_difference: Difference | None

    @property
    def seconds(self) -> float | None:
        """Mean time of training."""
        return statistics.fmean(o.seconds for o in self.outcomes) if self.outcomes else None

    @property
    def epochs_to_goal(self) -> Figure | None:
        """Epochs to the training error asked for, if all seeds reached it."""
        reached = [o.epochs_to_goal for o in self.outcomes if o.epochs_to_goal is not None]
        return Figure.of(reached) if reached and len(reached) == len(self.outcomes) and not self.diverged else None


def rows(study: Study, members: Sequence[StudyRun]) -> list[Row]:
    """One row a variant, of the runs that are finished so far; the base's first."""
    result: list[Row] = []
    for variant in study.variants:
        mine = [member for member in members if member.variant == variant]
        config = mine[0].config
        outcomes = tuple(outcome(member) for member in mine if is_finished(member) and not has_diverged(member))
        top1, top5 = Figure.of([o.top1_error for o in outcomes]), Figure.of([o.top5_error for o in outcomes])
        # Learning rates to choose among have no base.
        base = result[0] if result and study.measure == "error" else None
        shapes = block_shapes(config.network.build_architecture())
        result.append(
            Row(
                variant,
                sum(shape.parameters for shape in shapes),
                config.recipe.epochs,
                outcomes,
                sum(has_diverged(member) for member in mine),
                top1,
                top5,
                Difference.between(top1, base.top1) if base else None,
                Difference.between(top5, base.top5) if base else None,
            )
        )
    return result


def fastest(study: Study, table: Sequence[Row]) -> dict[str, Row]:
    """Of each family the variant with the fewest epochs to the goal; families that never reached it are left out."""
    result = {}
    for family in study.families:
        reached = [row for row in table if row.variant.name.startswith(family) and row.epochs_to_goal is not None]
        if reached:
            result[family] = min(reached, key=lambda row: row.epochs_to_goal.mean)  # type: ignore[union-attr]
    return result


def shown(study: Study, table: Sequence[Row]) -> Table:
    """The study as a table for the console."""
    result = Table(title=f"{study.name}: {study.claim}", title_justify="left")
    result.add_column("variant", overflow="fold")
    if study.measure == "epochs":
        third = [f"epochs to {TRAINING_ERROR_GOAL:g} %"]
    else:
        third = ["difference", "published"]
    headings = ["runs", "top-1 error %", "top-5 error %", *third, "time", "parameters"]
    for name in headings:
        result.add_column(name, justify="right", overflow="fold")
    for row in table:
        runs = f"{len(row.outcomes)} x {row.epochs} epochs" + (f", {row.diverged} diverged" if row.diverged else "")
        differences = " / ".join(str(d) for d in (row.top1_difference, row.top5_difference) if d is not None)
        if study.measure == "epochs":
            third = [_text(row.epochs_to_goal, _why_missing(row))]
        elif row is table[0]:
            third = ["base", "base"]
        else:
            third = [differences or "-", _text(row.variant.published, "none")]
        time = "-" if row.seconds is None else duration(row.seconds)
        cells = [runs, _text(row.top1), _text(row.top5), *third, time, f"{row.parameters:,}"]
        result.add_row(row.variant.name, *cells)
    return result


def _why_missing(row: Row) -> str:
    """What stands in place of a variant's figure."""
    return "not reached" if row.outcomes else "diverged" if row.diverged else "-"


def _text(value: object | None, otherwise: str = "-") -> str:
    return otherwise if value is None else str(value)


def remarks(study: Study, members: Sequence[StudyRun], table: Sequence[Row]) -> list[str]:
    """What has to be said beside the table."""
    lines = []
    if study.measure == "epochs":
        lines.append(ratio(study, table))
    images = open_prepared(members[0].config.data).count("val")
    lines.append(
        f"Errors after the last epoch on {images} validation images, one centre crop; one image is {100 / images:.2g} "
        "points. ± is the standard deviation over seeds, "
        + ("the differences are top-1 / top-5 in points, " if study.measure == "error" else "")
        + "time is a run's training."
    )
    lines += verdicts(table)
    published = ((row.variant.name, row.variant.published) for row in table)
    lines += [f"Published for {name}: {difference.where}." for name, difference in published if difference]
    return [*lines, study.note] if study.note else lines


def verdicts(table: Sequence[Row]) -> list[str]:
    """Which differences may be chance."""
    compared = [(row.variant.name, row.top1_difference, row.top5_difference) for row in table[1:]]
    small = [
        f"{name} ({' and '.join(kind for kind, d in (('top-1', one), ('top-5', five)) if d and d.is_larger is False)})"
        for name, one, five in compared
        if any(d is not None and d.is_larger is False for d in (one, five))
    ]
    lines = [f"~: smaller than the spread over seeds, so perhaps chance: {', '.join(small)}."] if small else []
    if any(one is not None and one.is_larger is None for _, one, _ in compared):
        lines.append("?: one run says nothing about the spread, so the differences may be chance.")
    return lines


def ratio(study: Study, table: Sequence[Row]) -> str:
    """The fastest variant of each family, and how many times as many epochs the second family takes."""
    best = fastest(study, table)
    texts = [f"{row.variant.name} {_text(row.epochs_to_goal)} epochs" for row in best.values()]
    missing = [family for family in study.families if family not in best]
    if missing:
        texts.append(f"{', '.join(missing)} not in the epochs given")
        return f"Fastest to {TRAINING_ERROR_GOAL:g} % training error: {'; '.join(texts)}."
    measured = _measured_ratio(study, best)
    first, second = (best[family].epochs_to_goal for family in study.families)
    difference = Difference.between(second, first)
    assert difference is not None
    chance = {
        True: "",
        False: " The difference is smaller than the spread over seeds, so perhaps chance.",
        None: " One run says nothing about the spread, so this may be chance.",
    }[difference.is_larger]
    return (
        f"Fastest to {TRAINING_ERROR_GOAL:g} % training error: {'; '.join(texts)}. Ratio {measured:.1f} (paper: "
        f"{study.published_ratio:g}).{chance}"
    )


def _measured_ratio(study: Study, best: dict[str, Row]) -> float | None:
    if len(best) < len(study.families):
        return None
    first, second = (best[family].epochs_to_goal for family in study.families)
    assert first is not None
    assert second is not None
    return second.mean / first.mean


def record(study: Study, members: Sequence[StudyRun], table: Sequence[Row]) -> dict[str, Any]:
    """The study as JSON: everything that the table says, and each run."""
    config = members[0].config
    dataset = open_prepared(config.data)
    result: dict[str, Any] = {
        "study": study.name,
        "claim": study.claim,
        "data": {
            "name": dataset.name,
            "fingerprint": dataset.fingerprint,
            "classes": len(dataset.classes),
            "train": dataset.count("train"),
            "val": dataset.count("val"),
        },
        "base": {"network": asdict(config.network.variation), "recipe": asdict(config.recipe)}
        | {"architecture": config.network.architecture, "precision": config.precision, "devices": config.devices},
        "seeds": sorted({member.config.seed for member in members}),
        "rows": [_row_record(row) for row in table],
        "remarks": remarks(study, members, table),
    }
    if study.measure == "epochs":
        best = fastest(study, table)
        result["fastest"] = {family: row.variant.name for family, row in best.items()}
        result["ratio"] = _measured_ratio(study, best)
        result["published_ratio"] = study.published_ratio
    return result


def _row_record(row: Row) -> dict[str, Any]:
    def rounded(figure: Figure | Difference | None) -> dict[str, Any] | None:
        if figure is None:
            return None
        return {name: round(v, 4) if isinstance(v, float) else v for name, v in asdict(figure).items()}

    return {
        "variant": row.variant.name,
        "options": {**row.variant.network, **row.variant.training},
        "parameters": row.parameters,
        "epochs": row.epochs,
        "top1_error": rounded(row.top1),
        "top5_error": rounded(row.top5),
        "top1_difference": rounded(row.top1_difference),
        "top5_difference": rounded(row.top5_difference),
        "published": asdict(row.variant.published) if row.variant.published else None,
        "seconds": None if row.seconds is None else round(row.seconds, 1),
        "epochs_to_goal": rounded(row.epochs_to_goal),
        "diverged": row.diverged,
        "runs": [asdict(o) | {"seconds": round(o.seconds, 1)} for o in row.outcomes],
    }


def write(study: Study, members: Sequence[StudyRun], folder: Path) -> list[Row]:
    """Write ``study.json`` of the runs finished so far, and return its rows."""
    table = rows(study, members)
    write_atomically(folder / "study.json", json.dumps(record(study, members, table), indent=1) + "\n")
    return table


def draw(study: Study, table: Sequence[Row], path: Path) -> None:
    """Draw a point a run and a bar a variant: errors, or epochs to the goal; in words where a variant has none."""
    from matplotlib.figure import Figure as Picture

    picture = Picture(figsize=(9, 1.2 + 0.45 * len(table)), layout="constrained")
    panels: list[tuple[str, list[list[float]]]] = [
        ("top-1 error (%)", [[o.top1_error for o in row.outcomes] for row in table]),
        ("top-5 error (%)", [[o.top5_error for o in row.outcomes] for row in table]),
    ]
    if study.measure == "epochs":
        goals = [[o.epochs_to_goal for o in row.outcomes if o.epochs_to_goal is not None] for row in table]
        panels = [(f"epochs to {TRAINING_ERROR_GOAL:g} % training error", [[float(v) for v in g] for g in goals])]
    for axes, (label, values) in zip(picture.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        places = range(len(table))
        for place, (row, points) in enumerate(zip(table, values, strict=True)):
            has_bar = row.epochs_to_goal is not None if study.measure == "epochs" else bool(points)
            if has_bar:
                axes.barh(place, statistics.fmean(points), color="0.85")
            else:
                axes.text(0.02, place, _why_missing(row), transform=axes.get_yaxis_transform(), va="center")
            axes.plot(points, [place] * len(points), "ko", markersize=3)
        axes.set(xlabel=label, yticks=list(places), yticklabels=[row.variant.name for row in table])
        axes.invert_yaxis()
        axes.grid(axis="x", alpha=0.3)
    picture.suptitle(study.claim, fontsize=10)
    picture.savefig(path, dpi=110)

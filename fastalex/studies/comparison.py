"""The result of a study: errors as mean and spread over seeds, and differences from the base and from the paper's.

The spread is the sample standard deviation over seeds. A difference is marked as uncertain if it is not larger than
the spread of the variant and of the base: it may be chance. A run whose error is not clearly below that of guessing
did not learn (:func:`fastalex.metrics.learning_margin`), and says nothing about the claim.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.table import Table

from fastalex.console import duration
from fastalex.datasets import open_prepared
from fastalex.files import write_atomically
from fastalex.metrics import chance, did_not_learn, has_top5, learning_margin
from fastalex.network.architecture import block_shapes
from fastalex.studies.claims import TRAINING_ERROR_GOAL, PublishedDifference, Study, Variant
from fastalex.studies.runs import RunResult, StudyRun, has_diverged, is_finished, read_result

RECORD = "study.json"

MARKS = {"~": "not larger than the spread over seeds, may be chance", "?": "one run has no spread, may be chance"}
"""What the marks behind a difference mean, in tables, pictures and documents."""

NOT_LEARNED = "did not learn"


@dataclass(frozen=True)
class Figure:
    """Mean and spread over seeds; the spread is None for a single seed."""

    mean: float
    spread: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Figure | None:
        """The figure of some values; None if there are none."""
        if not values:
            return None
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)

    def __str__(self) -> str:
        return f"{self.mean:.2f}" if self.spread is None else f"{self.mean:.2f} ± {self.spread:.2f}"


@dataclass(frozen=True)
class Difference:
    """A figure minus the base's. ``is_larger``: whether it exceeds both spreads, None if a spread is unknown.

    As text it ends with a mark of :data:`MARKS` if it may be chance.
    """

    value: float
    is_larger: bool | None

    @classmethod
    def between(cls, figure: Figure | None, base: Figure | None) -> Difference | None:
        """The difference of two figures; None if one is missing."""
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
    """One variant and the results of its finished runs; without top-5 errors where there are too few classes.

    ``classes`` is the number of classes, and ``not_learned`` counts the finished runs that did not learn.
    """

    variant: Variant
    parameters: int
    epochs: int
    results: tuple[RunResult, ...]
    diverged: int
    top1: Figure | None
    top5: Figure | None
    top1_difference: Difference | None
    top5_difference: Difference | None
    classes: int
    not_learned: int

    @property
    def learned_nothing(self) -> bool:
        """Whether there are finished runs, and none of them learned."""
        return 0 < self.not_learned == len(self.results)

    @property
    def failures(self) -> str:
        """Runs that diverged or did not learn, in a few words; empty if there are none."""
        parts = [
            f"{self.diverged} diverged" if self.diverged else "",
            learned_text(self.not_learned, len(self.results)),
        ]
        return ", ".join(filter(None, parts))

    @property
    def seconds(self) -> float | None:
        """Mean training time of a run."""
        return statistics.fmean(result.seconds for result in self.results) if self.results else None

    @property
    def epochs_to_goal(self) -> Figure | None:
        """Epochs to the training error goal; None unless all seeds reached it."""
        reached = [result.epochs_to_goal for result in self.results if result.epochs_to_goal is not None]
        return Figure.of(reached) if reached and len(reached) == len(self.results) and not self.diverged else None


def learned_text(failed: int, runs: int) -> str:
    """How many of the runs did not learn; empty if all did."""
    if not failed:
        return ""
    return NOT_LEARNED if failed == runs else f"{failed} of {runs} {NOT_LEARNED}"


def compare(study: Study, runs: Sequence[StudyRun]) -> list[Row]:
    """One row per variant from the runs that are finished; the base first."""
    rows: list[Row] = []
    images = open_prepared(runs[0].config.data).count("val")
    for variant in study.variants:
        own = [run for run in runs if run.variant == variant]
        config = own[0].config
        results = tuple(read_result(run) for run in own if is_finished(run) and not has_diverged(run))
        top1 = Figure.of([result.top1_error for result in results])
        classes = config.network.num_classes
        top5 = Figure.of([result.top5_error for result in results if has_top5(classes)])
        # Learning rates to choose from have no base.
        base = rows[0] if rows and study.measure == "error" else None
        rows.append(
            Row(
                variant,
                sum(shape.parameters for shape in block_shapes(config.network.build_architecture())),
                config.recipe.epochs,
                results,
                sum(has_diverged(run) for run in own),
                top1,
                top5,
                Difference.between(top1, base.top1) if base else None,
                Difference.between(top5, base.top5) if base else None,
                classes,
                sum(did_not_learn(result.top1_error, classes, images) for result in results),
            )
        )
    return rows


def fastest_variants(study: Study, rows: Sequence[Row]) -> dict[str, Row]:
    """The variant of each family with the fewest epochs to the goal, without families that never reached it."""
    result = {}
    for family in study.families:
        reached = [row for row in rows if row.variant.name.startswith(family) and row.epochs_to_goal is not None]
        if reached:
            result[family] = min(reached, key=lambda row: row.epochs_to_goal.mean)  # type: ignore[union-attr]
    return result


def comparison_table(study: Study, rows: Sequence[Row]) -> Table:
    """The rows as a table for the console."""
    table = Table(title=f"{study.name}: {study.claim}", title_justify="left")
    table.add_column("variant", overflow="fold")
    with_top5 = have_top5(rows)
    if study.measure == "epochs":
        compared = [f"epochs to {TRAINING_ERROR_GOAL:g} %"]
    else:
        compared = ["difference", "published"]
    errors = ("top-1 error %", "top-5 error %")[: 1 + with_top5]
    for name in ("runs", *errors, *compared, "time", "parameters"):
        table.add_column(name, justify="right", overflow="fold")
    for row in rows:
        runs = f"{len(row.results)} x {row.epochs} epochs" + (f", {row.failures}" if row.failures else "")
        differences = " / ".join(str(d) for d in (row.top1_difference, row.top5_difference) if d is not None)
        if study.measure == "epochs":
            compared = [_text(row.epochs_to_goal, why_missing(row))]
        elif row is rows[0]:
            compared = ["base", "base"]
        else:
            published = row.variant.published
            if published and not with_top5:
                published = replace(published, top5=None)
            compared = [differences or "-", _text(published, "none")]
        time = "-" if row.seconds is None else duration(row.seconds)
        measured = [_text(row.top1), _text(row.top5)][: len(errors)]
        cells = [runs, *measured, *compared, time, f"{row.parameters:,}"]
        table.add_row(row.variant.name, *cells)
    return table


def have_top5(rows: Sequence[Row]) -> bool:
    """Whether there are top-5 errors to show."""
    return any(row.top5 is not None for row in rows)


def why_missing(row: Row) -> str:
    """What to show instead of a missing figure."""
    return "not reached" if row.results else "diverged" if row.diverged else "-"


def _text(value: object | None, default: str = "-") -> str:
    return default if value is None else str(value)


def remarks(study: Study, runs: Sequence[StudyRun], rows: Sequence[Row]) -> list[str]:
    """Sentences that explain the table."""
    lines = [epoch_ratio(study, rows)] if study.measure == "epochs" else []
    images, classes = open_prepared(runs[0].config.data).count("val"), runs[0].config.network.num_classes
    kinds = "top-1 / top-5" if has_top5(classes) else "top-1"
    differences = f"Differences are {kinds}, in points. " if study.measure == "error" else ""
    lines.append(
        f"Errors after the last epoch on {images} validation images, one centre crop; one image is {100 / images:.2g} "
        f"points; chance is {chance(classes):.2f} % top-1. ± is the standard deviation over seeds. {differences}Time "
        f"is the training time of a run."
    )
    if any(row.not_learned for row in rows):
        margin = learning_margin(classes, images)
        lines.append(f"{NOT_LEARNED}: the top-1 error is not more than {margin:.2g} points below chance.")
    lines += uncertain_differences(rows)
    published = ((row.variant.name, row.variant.published) for row in rows)
    lines += [f"Published for {name}: {difference.details}." for name, difference in published if difference]
    return [*lines, study.note] if study.note else lines


def uncertain_differences(rows: Sequence[Row]) -> list[str]:
    """Sentences that name the differences that may be chance."""
    compared = [(row.variant.name, row.top1_difference, row.top5_difference) for row in rows[1:]]
    small = [
        f"{name} ({' and '.join(kind for kind, d in (('top-1', top1), ('top-5', top5)) if d and d.is_larger is False)})"
        for name, top1, top5 in compared
        if any(d is not None and d.is_larger is False for d in (top1, top5))
    ]
    lines = [f"~: {MARKS['~']}: {', '.join(small)}."] if small else []
    if any(top1 is not None and top1.is_larger is None for _, top1, _ in compared):
        lines.append(f"?: {MARKS['?']}.")
    return lines


def epoch_ratio(study: Study, rows: Sequence[Row]) -> str:
    """A sentence: the fastest variant of each family, and the ratio of their epochs."""
    fastest = fastest_variants(study, rows)
    texts = [f"{row.variant.name} {_text(row.epochs_to_goal)} epochs" for row in fastest.values()]
    missing = [family for family in study.families if family not in fastest]
    start = f"Fastest to {TRAINING_ERROR_GOAL:g} % training error"
    if missing:
        texts.append(f"{', '.join(missing)} did not reach it")
        return f"{start}: {'; '.join(texts)}."
    first, second = (fastest[family].epochs_to_goal for family in study.families)
    difference = Difference.between(second, first)
    assert difference is not None
    doubt = {
        True: "",
        False: " The difference is not larger than the spread over seeds and may be chance.",
        None: " One run has no spread, so the difference may be chance.",
    }[difference.is_larger]
    ratio = _measured_ratio(study, fastest)
    return f"{start}: {'; '.join(texts)}. Ratio {ratio:.1f} (paper: {study.published_ratio:g}).{doubt}"


def _measured_ratio(study: Study, fastest: Mapping[str, Row]) -> float | None:
    if len(fastest) < len(study.families):
        return None
    first, second = (fastest[family].epochs_to_goal for family in study.families)
    assert first is not None
    assert second is not None
    return second.mean / first.mean


def write_comparison(study: Study, runs: Sequence[StudyRun], folder: Path) -> list[Row]:
    """Write ``study.json`` from the runs that are finished, and return its rows."""
    rows = compare(study, runs)
    write_atomically(folder / RECORD, json.dumps(_record(study, runs, rows), indent=1) + "\n")
    return rows


def _record(study: Study, runs: Sequence[StudyRun], rows: Sequence[Row]) -> dict[str, Any]:
    """The study as JSON values: everything in the table, and every run."""
    config = runs[0].config
    dataset = open_prepared(config.data)
    result: dict[str, Any] = {
        "study": study.name,
        "claim": study.claim,
        "question": study.question,
        "data": {
            "name": dataset.name,
            "fingerprint": dataset.fingerprint,
            "classes": len(dataset.classes),
            "train": dataset.count("train"),
            "val": dataset.count("val"),
        },
        "base": {
            "network": asdict(config.network.variation),
            "recipe": asdict(config.recipe),
            "architecture": config.network.architecture,
            "precision": config.precision,
            "devices": ",".join(map(str, config.parallel.devices)),
        },
        "seeds": sorted({run.config.seed for run in runs}),
        "rows": [_row_record(row) for row in rows],
        "remarks": remarks(study, runs, rows),
    }
    if study.measure == "epochs":
        fastest = fastest_variants(study, rows)
        result["fastest"] = {family: row.variant.name for family, row in fastest.items()}
        result["ratio"] = _measured_ratio(study, fastest)
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
        "published": _published_record(row.variant.published),
        "seconds": None if row.seconds is None else round(row.seconds, 1),
        "epochs_to_goal": rounded(row.epochs_to_goal),
        "diverged": row.diverged,
        "not_learned": row.not_learned,
        "runs": [asdict(result) | {"seconds": round(result.seconds, 1)} for result in row.results],
    }


def _published_record(published: PublishedDifference | None) -> dict[str, Any] | None:
    if published is None:
        return None
    return {"top1": published.top1, "top5": published.top5, "where": published.details, "about": published.qualifier}

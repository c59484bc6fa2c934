"""The paper's tables, with what was measured beside what was published."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastalex.metrics import has_top5
from fastalex.reproduction.job import Source
from fastalex.reproduction.targets import PRETRAINED_NETWORKS, TABLE_2_NETWORKS, Targets
from fastalex.studies.claims import PUBLISHED_ERRORS
from fastalex.studies.comparison import Figure

NOTHING = "–"
"""What a table shows where there is no figure."""


UNSUITABLE = "too few or too many images"
"""Why hand-crafted features are missing."""


@dataclass(frozen=True)
class Row:
    """A model of a table.

    Args:
        model: as the paper calls it.
        published: name of its published errors.
        top1, top5: measured error rates in percent, mean and standard deviation; None where there are none.
        behind: what the figure is made from, such as "5 networks"; or why there is none.
        values: the single error rates behind the figure, top-1 and top-5.
    """

    model: str
    published: str
    top1: Figure | None
    top5: Figure | None
    behind: str
    values: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class Table:
    """A table of the paper, on the data of a source."""

    name: str
    heading: str
    source: Source
    rows: tuple[Row, ...]

    @property
    def has_top5(self) -> bool:
        """Whether top-5 errors say anything with so few classes."""
        return has_top5(len(self.source.data.classes))

    @property
    def header(self) -> tuple[str, ...]:
        """The names of the columns."""
        kinds = ("top-1", "top-5") if self.has_top5 else ("top-1",)
        published = [f"paper, {kind}" for kind in ("top-1", "top-5")]
        return ("model", *published, *(f"measured, {kind}" for kind in kinds), "measured on")

    @property
    def cells(self) -> list[tuple[str, ...]]:
        """The rows as text."""
        found = []
        for row in self.rows:
            error = PUBLISHED_ERRORS[row.published]
            published = (NOTHING if error.top1 is None else f"{error.top1:.1f}", f"{error.top5:.1f}")
            measured = [_text(row.top1), _text(row.top5)][: 1 + self.has_top5]
            found.append((row.model, *published, *measured, row.behind))
        return found

    @property
    def caption(self) -> str:
        """What the figures are, in a sentence or two."""
        source = self.source
        images = f"{source.data.count(source.split):,} {source.split} images"
        where = (
            source.place if source.is_real else f"{source.name}, {len(source.data.classes)} classes, not {source.place}"
        )
        return (
            f"Error rates in percent. Measured on {where}: {images}, {source.data.count('train'):,} training images. "
            f"± is the standard deviation over networks. One image is {100 / source.data.count(source.split):.2g} "
            "points."
        )

    def record(self) -> dict[str, Any]:
        """The table as JSON values."""
        data = self.source.data
        about = {"name": self.source.name, "fingerprint": data.fingerprint, "classes": len(data.classes)}
        about |= {"train": data.count("train"), "split": self.source.split, "images": data.count(self.source.split)}
        rows = []
        for row in self.rows:
            error = PUBLISHED_ERRORS[row.published]
            published = {"top1_error": error.top1, "top5_error": error.top5, "images": error.images}
            measured = {
                name: None if figure is None else {"mean": figure.mean, "spread": figure.spread}
                for name, figure in (("top1_error", row.top1), ("top5_error", row.top5))
            }
            rows.append(
                {"model": row.model, "published": published | {"source": error.source}}
                | measured
                | {"measured_on": row.behind, "values": [list(pair) for pair in row.values]}
            )
        return {
            "table": self.name,
            "heading": self.heading,
            "data": about,
            "is_imagenet": self.source.is_real,
            "rows": rows,
        }


def table1(targets: Targets) -> Table:
    """Errors on ILSVRC-2010."""
    job = targets.job
    if targets.first_baselines:
        handcrafted = _row(
            "SIFT + FVs", "sift-fisher-vectors-2010", _baselines([step.result for step in targets.first_baselines])
        )
    else:
        handcrafted = Row("SIFT + FVs", "sift-fisher-vectors-2010", None, None, UNSUITABLE)
    one, ten = (_alone(targets.first_evaluation(views).result) for views in (1, 10))
    rows = (
        Row("sparse coding", "sparse-coding-2010", None, None, "not reproduced"),
        handcrafted,
        _row("CNN", "network-2010", ten, "ten views"),
        _row("CNN, one view", "network-2010-one-view", one, "one view"),
    )
    return Table("table1", "Table 1", job.first, rows)


def table2(targets: Targets) -> Table:
    """Errors on ILSVRC-2012."""
    job, count = targets.job, len(targets.networks)
    evaluation = targets.evaluation(10).result
    several, all_of_them = f"{TABLE_2_NETWORKS} CNNs", f"{TABLE_2_NETWORKS + PRETRAINED_NETWORKS} CNNs*"
    rows = [_row("1 CNN", "one-network", _alone(evaluation))]
    if count > 1:
        rows.append(_ensemble(several, "five-networks", evaluation, f"the {count} together"))
    else:
        rows.append(Row(several, "five-networks", None, None, "needs several networks"))
    missing = "needs a data set to pre-train on"
    if targets.pretrained_evaluation:
        together, more = targets.pretrained_evaluation.result, len(targets.finetuned)
        rows.append(_row("1 CNN*", "one-pretrained-network", _alone(together)[count:]))
        what = f"the {count} and {more} pre-trained together"
        rows.append(_ensemble(all_of_them, "seven-pretrained-networks", together, what))
    else:
        rows.append(Row("1 CNN*", "one-pretrained-network", None, None, missing))
        rows.append(Row(all_of_them, "seven-pretrained-networks", None, None, missing))
    return Table("table2", "Table 2", job.main, tuple(rows))


def _row(model: str, published: str, values: Sequence[tuple[float, float]], more: str = "") -> Row:
    """A row of the mean over networks or seeds."""
    top1, top5 = (Figure.of([pair[place] for pair in values]) for place in (0, 1))
    behind = f"{len(values)} {'network' if 'CNN' in model else 'seed'}{'s' if len(values) > 1 else ''}"
    return Row(model, published, top1, top5, f"{behind}, {more}" if more else behind, tuple(values))


def _ensemble(model: str, published: str, path: Path, behind: str) -> Row:
    values = _read(path)
    pair = values["top1_error"], values["top5_error"]
    return Row(model, published, Figure.of(pair[:1]), Figure.of(pair[1:]), behind, (pair,))


def _alone(path: Path) -> list[tuple[float, float]]:
    """The errors of each network of an evaluation."""
    return [(network["top1_error"], network["top5_error"]) for network in _read(path)["networks"]]


def _baselines(paths: Sequence[Path]) -> list[tuple[float, float]]:
    return [(values["top1_error"], values["top5_error"]) for values in map(_read, paths)]


def _read(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(path.read_bytes())
    return values


def _text(figure: Figure | None) -> str:
    return NOTHING if figure is None else str(figure)

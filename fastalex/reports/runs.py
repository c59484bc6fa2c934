"""The facts about each run, with the file that each fact comes from."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fastalex.console import duration
from fastalex.metrics import chance, has_top5
from fastalex.network.architecture import block_shapes
from fastalex.recipes.schedule import epochs_in_words
from fastalex.reports.results import Results
from fastalex.training.config import RunConfig
from fastalex.training.reporting import describe_plan

NOTHING = "–"
"""What the table shows where a run has not recorded a value."""


@dataclass(frozen=True, eq=False)
class Run:
    """A run, as its folder describes it.

    Args:
        name: short, and different for every run of the page.
        folder: of the run.
        config: its configuration.
        config_text: ``config.json`` as it is.
        metrics: the lines of ``metrics.jsonl``, at least one.
        results: of its network.
    """

    name: str
    folder: Path
    config: RunConfig
    config_text: str
    metrics: Sequence[dict[str, Any]]
    results: Results

    @property
    def parameters(self) -> int:
        """The number of the network's weights and biases."""
        return sum(shape.parameters for shape in block_shapes(self.config.network.build_architecture()))


@dataclass(frozen=True)
class Facts:
    """The facts that come from one file of each run.

    Args:
        file: its name.
        links: to the file of each run, relative to the page.
        rows: what each fact is, with the values of all runs.
    """

    file: str
    links: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]


def short_names(folders: Sequence[Path]) -> list[str]:
    """A name for each run: that of its folder, or the path below the folder that all have in common."""
    full = [folder.resolve() for folder in folders]
    if len({folder.name for folder in full}) == len(full):
        return [folder.name or str(folder) for folder in full]
    above = os.path.commonpath([folder.parent for folder in full])
    return [str(folder.relative_to(above)) for folder in full]


def link(target: Path, page: Path) -> str:
    """The address of a file relative to the page's folder."""
    relative = os.path.relpath(target.resolve(), page.parent.resolve())
    return quote(os.fsencode(relative))


def facts(runs: Sequence[Run], page: Path, classes: int) -> list[Facts]:
    """The table of the runs.

    Args:
        page: the file that will show it.
        classes: number of classes of the data set.
    """
    weights = [run.results.evaluation.networks[0].weights.name for run in runs]
    sources = (
        ("config.json", [_configured(run) for run in runs]),
        ("metrics.jsonl", [_logged(run, classes) for run in runs]),
        (weights[0], [_evaluated(run, classes) for run in runs]),
    )
    return [
        Facts(
            file,
            tuple(link(run.folder / file, page) for run in runs),
            tuple((name, tuple(row[name] for row in rows)) for name in rows[0]),
        )
        for file, rows in sources
    ]


def _configured(run: Run) -> dict[str, str]:
    config, recipe = run.config, run.config.recipe
    architecture = config.network.build_architecture()
    return {
        "network": f"{config.network.summary()}: {run.parameters:,} parameters",
        "recipe": f"{recipe.name}: {recipe.lr_summary(architecture.block_names[-1])}",
        "length": f"{epochs_in_words(recipe.epochs)}, batches of {recipe.batch_size}",
        "share of the training images": f"{100 * config.fraction:g} %",
        "seed": str(config.seed),
        "devices": describe_plan(config.parallel, recipe.batch_size),
        "precision": config.precision,
    }


def _logged(run: Run, classes: int) -> dict[str, str]:
    training = [line for line in run.metrics if line["kind"] == "train"]
    validation = [line for line in run.metrics if line["kind"] == "val"]
    rows = {"epochs finished": str(max((line["epoch"] for line in validation), default=0))}
    for top, field in (("top-1", "top1_error"), *((("top-5", "top5_error"),) if has_top5(classes) else ())):
        best = min(validation, key=lambda line: line[field], default=None)
        rows[f"best {top} error"] = f"{best[field]:.2f} % (epoch {best['epoch']})" if best else NOTHING
        rows[f"last {top} error"] = f"{validation[-1][field]:.2f} %" if validation else NOTHING
    images, seconds = _total(training)
    rows["training speed"] = f"{images / seconds:,.1f} images/s" if seconds else NOTHING
    rows["training time"] = duration(seconds) if seconds else NOTHING
    return rows


def _total(lines: Iterable[dict[str, Any]]) -> tuple[int, float]:
    """Images and seconds of the lines that have a speed, which earlier versions did not log."""
    timed = [(line["images"], line.get("images_per_second")) for line in lines]
    timed = [(images, speed) for images, speed in timed if isinstance(speed, int | float) and speed > 0]
    return sum(images for images, _ in timed), sum(images / speed for images, speed in timed)


def _evaluated(run: Run, classes: int) -> dict[str, str]:
    results, network = run.results, run.results.evaluation.networks[0]
    metrics, origin = results.result.predictions.metrics, network.record.origin if network.record else None
    rows = {
        "weights after epoch": str(origin.epoch) if origin else NOTHING,
        "fastalex": origin.version if origin else NOTHING,
        "evaluated here on": f"{metrics.images:,} images ({results.evaluation.split})",
        "loss": f"{metrics.loss:.4f} nats",
        "top-1 error": f"{metrics.top1_error:.2f} % (chance {chance(classes):.2f} %)",
    }
    if has_top5(classes):
        rows["top-5 error"] = f"{metrics.top5_error:.2f} % (chance {chance(classes, 5):.2f} %)"
    rows["evaluation speed"] = f"{metrics.images / results.result.seconds:,.1f} images/s"
    return rows

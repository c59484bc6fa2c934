"""The page: everything that was collected, put into ``report.html.jinja`` with ``report.css`` and ``report.js``."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from numpy.typing import NDArray

from dataloading import Dataset
from fastalex.metrics import has_top5
from fastalex.network.weights_record import program_version
from fastalex.reports.curves import Chart, History, draw, history
from fastalex.reports.results import class_names, readable
from fastalex.reports.runs import Run, facts
from fastalex.reports.thumbnails import SMALL, thumbnail

MOST_CLASSES = 60
"""Classes of the largest confusion matrix that is shown whole. Of a larger one, the most frequent confusions are."""

MOST_CONFUSIONS = 100
"""Confusions that are listed then."""

_SPLITS = {"val": "validation", "train": "training"}


@dataclass(frozen=True, eq=False)
class Report:
    """What a page shows.

    Args:
        runs: of one data set.
        dataset: that the networks were evaluated on.
        device: where.
        output: the file that will hold the page; links are relative to it.
    """

    runs: tuple[Run, ...]
    dataset: Dataset
    device: torch.device
    output: Path


@dataclass(frozen=True)
class Confusion:
    """An entry of the confusion matrix that is not empty.

    Args:
        key: of its images in the page's data.
        true, predicted: names of the classes.
        count: of images.
        share: of the true class's images, 0 to 1.
    """

    key: str
    true: str
    predicted: str
    count: int
    share: float


def render(report: Report) -> str:
    """The page, a complete HTML document.

    Raises:
        dataloading.DatasetError: an image is damaged.
    """
    dataset, runs = report.dataset, report.runs
    names = class_names(dataset)
    split = runs[0].results.evaluation.split
    charts = _charts([history(run.name, run.metrics) for run in runs])
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    text = environment.get_template("report.html.jinja").render(
        title=_title(report),
        runs=runs,
        dataset=dataset,
        split=_SPLITS.get(split, split),
        classes=names,
        descriptions=dataset.words,
        has_top5=has_top5(len(names)),
        charts=charts,
        facts=facts(runs, report.output, len(names)),
        confusions=[_confusions(number, run.results.matrix, names) for number, run in enumerate(runs)],
        is_whole=len(names) <= MOST_CLASSES,
        most_confusions=MOST_CONFUSIONS,
        data=_data(report, names, charts),
        software=software(),
        hardware=hardware(report.device),
        today=date.today().isoformat(),
    )
    return text.strip() + "\n"  # the macros leave empty lines before the document


def _title(report: Report) -> str:
    """What the networks are, in one line."""
    first, name, classes = report.runs[0], report.dataset.name, len(report.dataset.classes)
    what = first.config.network.summary()
    on = f"{name}, {classes} classes"
    if len(report.runs) > 1:
        kinds = {run.config.network.summary() for run in report.runs}
        return f"{len(report.runs)} {what if len(kinds) == 1 else 'AlexNet'} networks on {on}"
    error = first.results.result.predictions.metrics.top1_error
    return f"{what}, {first.parameters / 1e6:.1f} million parameters, on {on}: {error:.2f} % top-1 error"


def _charts(histories: list[History]) -> list[Chart]:
    return [draw("loss (nats)", "loss", histories), draw("top-1 error (%)", "top1_error", histories)]


def _confusions(number: int, matrix: NDArray[Any], names: list[str]) -> dict[str, list[Any]]:
    """The entries of a run's matrix that are not empty, by row; and the errors among them, most frequent first."""
    rows: list[list[Confusion | None]] = []
    for label, counts in enumerate(matrix.tolist()):
        images = sum(counts)
        rows.append(
            [
                Confusion(f"{number}:{label}:{guess}", names[label], names[guess], count, count / images)
                if count
                else None
                for guess, count in enumerate(counts)
            ]
        )
    errors = [c for label, row in enumerate(rows) for guess, c in enumerate(row) if c and guess != label]
    return {"rows": rows, "errors": sorted(errors, key=lambda confusion: -confusion.count)}


def _data(report: Report, names: list[str], charts: list[Chart]) -> dict[str, Any]:
    """What the page's script needs: the curves, and the images behind the cells of each matrix, each of them once."""
    split = report.runs[0].results.evaluation.split
    cells: dict[str, Any] = {}
    shown: set[int] = set()
    for number, run in enumerate(report.runs):
        for (label, guess), images in run.results.cells.items():
            if len(names) > MOST_CLASSES and label == guess:
                continue  # the list has errors only
            cells[f"{number}:{label}:{guess}"] = {
                "true": names[label],
                "predicted": names[guess],
                "count": int(run.results.matrix[label, guess]),
                "images": images,
            }
            shown.update(row for row, _ in images)
    return {
        "cells": cells,
        "images": {row: thumbnail(report.dataset, split, row, SMALL) for row in sorted(shown)},
        "files": {row: readable(report.dataset.source(split, row)) for row in sorted(shown)},
        "charts": [
            [
                {"name": line.name, "kind": line.kind, "run": line.run, "places": line.places, "points": line.points}
                for line in chart.lines
            ]
            for chart in charts
        ],
    }


def software() -> str:
    """The versions that a page was made with."""
    return f"fastalex {program_version()}, PyTorch {torch.__version__}, Python {platform.python_version()}"


def hardware(device: torch.device) -> str:
    """The device that a page was made on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_processor()}, {len(os.sched_getaffinity(0))} cores"


def _processor() -> str:
    """The name of the processor, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()

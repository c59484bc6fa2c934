"""The options of ``python -m fastalex.baseline``: measurement, table and record."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table

import dataloading
from fastalex.console import console, duration, print_whole
from fastalex.datasets import AnyDataset, open_data, open_prepared
from fastalex.errors import ConfigurationError
from fastalex.files import RUNS, check_new_folder, check_place, default_folder, new_folder, write_atomically
from fastalex.handcrafted.classify import ClassificationResult, HandcraftedMethod, check_method, classify
from fastalex.metrics import chance, has_top5
from fastalex.options.baseline import BaselineOptions
from fastalex.parallel.torchrun import is_worker
from fastalex.studies.claims import PUBLISHED_ERRORS
from fastalex.training.config import RunConfig
from fastalex.training.metrics_log import read_metrics

RECORD = "baseline.json"

METHODS = {"sift": "SIFT + Fisher vectors", "hog": "HOG"}

# Rows of the paper's table 1 to compare with.
_PAPER = "paper: "  # begins their names
_PUBLISHED = ("sift-fisher-vectors-2010", "network-2010")


class Errors(NamedTuple):
    """A row of the table; error rates in percent."""

    method: str
    top1_error: float
    top5_error: float
    images: str


def run_baseline(options: BaselineOptions) -> Errors:
    """Train and evaluate, print a table with the paper's errors, and write ``baseline.json``.

    Raises:
        ConfigurationError, dataloading.DatasetError: the options or the data do not fit, or OpenCV is missing.
    """
    # Preparing data may take hours, so the destination and the run come first.
    if options.output is None:
        check_place(RUNS, "choose an --output")
    else:
        check_new_folder(options.output, "choose another --output")
    if options.run is not None:
        RunConfig.load(options.run)
    method = method_of(options)
    whole = open_data(options.data, may_prepare=not is_worker())
    if not isinstance(whole, dataloading.Dataset):
        raise ConfigurationError("synthetic images are noise; name a data set with images")
    check_method(whole, method, options.split)
    dataset = whole.subset("train", options.fraction, seed=options.seed)
    check_method(dataset, method, options.split)
    rows = published_rows()
    if options.run is not None:
        rows = [_run_row(options.run, whole, options.split), *rows]
    asked = options.output or default_folder(f"{dataset.name}-baseline-{options.features}")
    with new_folder(asked, "choose another --output", numbered=options.output is None) as folder:
        start = time.perf_counter()
        result = classify(dataset, method, options.split, folder)
        seconds = time.perf_counter() - start
        images = f"{dataset.name} {options.split}: {result.metrics.images}"
        own = Errors(METHODS[options.features], result.metrics.top1_error, result.metrics.top5_error, images)
        record = _record(options, dataset, result, seconds, rows)
        write_atomically(folder / RECORD, json.dumps(record, indent=2) + "\n")
    _print([own, *rows], len(dataset.classes), seconds, folder)
    return own


def published_rows() -> list[Errors]:
    """The errors of the paper to compare with."""
    rows = []
    for name in _PUBLISHED:
        error = PUBLISHED_ERRORS[name]
        assert error.top1 is not None
        rows.append(Errors(f"{_PAPER}{error.method}", error.top1, error.top5, error.images))
    return rows


def method_of(options: BaselineOptions) -> HandcraftedMethod:
    """The features and their parameters."""
    threads = len(os.sched_getaffinity(0)) if options.threads is None else options.threads
    return HandcraftedMethod(options.features, options.gaussians, options.stripes, options.seed, threads)


def _record(
    options: BaselineOptions, dataset: AnyDataset, result: ClassificationResult, seconds: float, rows: list[Errors]
) -> dict[str, Any]:
    return {
        "data": dataset.name,
        "fingerprint": dataset.fingerprint,
        "classes": len(dataset.classes),
        "fraction": options.fraction,
        "training_images": dataset.count("train"),
        "split": options.split,
        "images": result.metrics.images,
        **asdict(method_of(options)),
        "feature_length": result.length,
        "alpha": result.alpha,
        "top1_error": result.metrics.top1_error,
        "top5_error": result.metrics.top5_error,
        "seconds": round(seconds, 1),
        "beside": [row._asdict() for row in rows],
    }


def _run_row(run: Path, dataset: AnyDataset, split: str) -> Errors:
    """The validation errors of a training run after its last epoch, which no one selected by its errors."""
    config = RunConfig.load(run)
    if open_prepared(config.data).fingerprint != dataset.fingerprint:
        raise ConfigurationError(
            f"{run} was trained on {config.data}, which is not the data set in {dataset.root}: their fingerprints "
            "differ; name a run on the same data, or leave --run out"
        )
    validations: list[dict[str, Any]] = [line for line in read_metrics(run) if line["kind"] == "val"]
    if split != "val" or not validations:
        problem = "no finished epoch" if split == "val" else f"errors on val, not on {split}"
        raise ConfigurationError(f"{run} has {problem}; leave --run out")
    last = validations[-1]
    name = f"network: {run}, {last['epoch']} epochs"
    if config.fraction != 1:
        name += f" of {100 * config.fraction:g} % of the images"
    return Errors(name, last["top1_error"], last["top5_error"], f"{dataset.name} val: {last['images']}")


def _print(rows: list[Errors], classes: int, seconds: float, folder: Path) -> None:
    guessing = Errors("chance", chance(classes), chance(classes, 5), f"{classes} classes")
    table = Table(title=f"baseline: linear SVMs, {duration(seconds)}", title_justify="left")
    for column, justify in (("method", "left"), ("top-1 error", "right"), ("top-5 error", "right"), ("images", "left")):
        table.add_column(column, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for row in (*rows, guessing):
        is_published = row.method.startswith(_PAPER)
        top5 = f"{row.top5_error:.2f} %" if is_published or has_top5(classes) else "-"
        table.add_row(row.method, f"{row.top1_error:.2f} %", top5, row.images)
    out = console()
    print_whole(out, table)
    out.print(f"record: {folder / RECORD}")

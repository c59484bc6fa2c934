"""What ``python -m fastalex.baseline`` takes, and how it becomes a measurement, a table and a record."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from rich.console import Console
from rich.table import Table
from tyro.conf import Positional, arg

import dataloading
from fastalex.cli import optional
from fastalex.console import duration, print_whole
from fastalex.datasets import AnyDataset, open_data, open_prepared
from fastalex.errors import ConfigurationError
from fastalex.files import write_atomically
from fastalex.handcrafted.classify import Traditional, check_traditional, classify
from fastalex.training.config import RunConfig
from fastalex.training.metrics_log import read_metrics
from fastalex.training.resolve import new_folder

RECORD = "baseline.json"


METHODS = {"sift": "SIFT + Fisher vectors", "hog": "HOG"}


class Errors(NamedTuple):
    """A row of the table; error rates in percent."""

    method: str
    top1_error: float
    top5_error: float
    images: str


PAPER = (
    Errors("paper: SIFT + Fisher vectors", 45.7, 25.7, "ILSVRC-2010 test"),
    Errors("paper: the network", 37.5, 17.0, "ILSVRC-2010 test"),
)
"""Table 1 of Krizhevsky, Sutskever and Hinton (2012); its first row is of Sanchez and Perronnin (2011)."""


@dataclass(frozen=True)
class BaselineOptions:
    """Error rates of the methods before 2012: fixed features of every image, and linear classifiers over them."""

    data: Annotated[Positional[Path | None], optional("[DATA]")] = None
    """A prepared data set or class folders. Default: the bundled digits."""
    features: Annotated[str, arg(metavar="{sift,hog}")] = "sift"
    """sift: dense SIFT and Fisher vectors; hog: histograms of oriented gradients, faster."""
    gaussians: int = 64
    """Gaussians of the Fisher vectors: more describe more, and take longer."""
    stripes: bool = True
    """Fisher vectors of the whole image and of its three horizontal stripes; otherwise of the whole only."""
    split: str = "val"
    """Which part of the data set errors are measured on."""
    run: Annotated[Path | None, optional("RUN")] = None
    """A training run on the same data: its validation errors after the last epoch join the table."""
    seed: int = 0
    """Of the descriptors that the Gaussians are fitted to and of the order of training."""
    threads: Annotated[int | None, optional("N")] = None
    """Images worked on at a time; the result does not depend on it. Default: one per processor."""
    output: Annotated[Path | None, optional("DIR")] = None
    """Folder for baseline.json. Default: a new one in runs/."""

    @property
    def method(self) -> Traditional:
        """The options as the measurement takes them."""
        threads = len(os.sched_getaffinity(0)) if self.threads is None else self.threads
        return Traditional(self.features, self.gaussians, self.stripes, self.seed, threads)


def run_baseline(options: BaselineOptions) -> Errors:
    """Measure, print a table with the paper's figures, and write ``baseline.json`` into the run folder.

    Raises:
        ConfigurationError, dataloading.DatasetError: an option or the data do not fit, or OpenCV is missing.
    """
    dataset = open_data(options.data)
    if not isinstance(dataset, dataloading.Dataset):
        raise ConfigurationError("synthetic images show nothing to describe; name a data set with images")
    check_traditional(dataset, options.method, options.split)
    rows = list(PAPER) if options.run is None else [_network(options.run, dataset, options.split), *PAPER]
    folder = options.output or new_folder(f"{dataset.name}-baseline-{options.features}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigurationError(f"{folder} exists already; choose another --output")
    folder.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    try:
        result = classify(dataset, options.method, options.split, folder)
    except BaseException:
        folder.rmdir()  # there is nothing in it yet, and the same command may be given again
        raise
    seconds = time.perf_counter() - start
    images = f"{dataset.name} {options.split}: {result.metrics.images}"
    ours = Errors(METHODS[options.features], result.metrics.top1_error, result.metrics.top5_error, images)
    record = {
        "data": dataset.name,
        "fingerprint": dataset.fingerprint,
        "classes": len(dataset.classes),
        "training_images": dataset.count("train"),
        "split": options.split,
        "images": result.metrics.images,
        **asdict(options.method),
        "feature_length": result.length,
        "alpha": result.alpha,
        "top1_error": ours.top1_error,
        "top5_error": ours.top5_error,
        "seconds": round(seconds, 1),
        "beside": [row._asdict() for row in rows],
    }
    write_atomically(folder / RECORD, json.dumps(record, indent=2) + "\n")
    _print([ours, *rows], seconds, folder)
    return ours


def _network(run: Path, dataset: AnyDataset, split: str) -> Errors:
    """The validation errors of a training run after its last epoch; nobody chose among epochs by looking at them."""
    config = RunConfig.load(run)
    if open_prepared(config.data).fingerprint != dataset.fingerprint:
        raise ConfigurationError(
            f"{run} was trained on {config.data}, which is not the data set in {dataset.root}: their fingerprints "
            "differ; name a run on the same data, or leave --run out"
        )
    validations: list[dict[str, Any]] = [line for line in read_metrics(run) if line["kind"] == "val"]
    if split != "val" or not validations:
        what = "no finished epoch" if split == "val" else f"errors on val, not on {split}"
        raise ConfigurationError(f"{run} has {what}; leave --run out")
    last = validations[-1]
    name = f"network: {run}, {last['epoch'] + 1} epochs"
    if config.fraction != 1:
        name += f" of {100 * config.fraction:g} % of the images"
    return Errors(name, last["top1_error"], last["top5_error"], f"{dataset.name} val: {last['images']}")


def _print(rows: list[Errors], seconds: float, folder: Path) -> None:
    table = Table(title=f"baseline: linear SVMs, {duration(seconds)}", title_justify="left")
    for column, justify in (("method", "left"), ("top-1 error", "right"), ("top-5 error", "right"), ("images", "left")):
        table.add_column(column, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for row in rows:
        table.add_row(row.method, f"{row.top1_error:.2f} %", f"{row.top5_error:.2f} %", row.images)
    console = Console(soft_wrap=True, highlight=False)
    print_whole(console, table)
    console.print(f"record: {folder / RECORD}")

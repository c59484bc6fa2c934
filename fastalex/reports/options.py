"""The options of ``python -m fastalex.report``: parsed into a :class:`ReportJob`, which writes the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dataloading import Dataset
from fastalex.cli import check_positive
from fastalex.console import console, data_size, print_rows
from fastalex.datasets import open_prepared
from fastalex.errors import ConfigurationError
from fastalex.evaluation.confusion import check_size
from fastalex.evaluation.ensemble import Evaluation
from fastalex.evaluation.options import EvaluateOptions, check_order
from fastalex.evaluation.options import resolve as resolve_evaluation
from fastalex.evaluation.trained_network import TrainedNetwork, UnknownMeanImage
from fastalex.files import check_new_file, write_atomically
from fastalex.network.weights import names_weights
from fastalex.optional_packages import require
from fastalex.options.report import ReportOptions
from fastalex.parallel.world import World
from fastalex.reports.figure4 import write_figure4
from fastalex.reports.page import Report, render
from fastalex.reports.results import collect
from fastalex.reports.runs import Run, short_names
from fastalex.training.config import RunConfig
from fastalex.training.metrics_log import read_metrics

_CELL_IMAGES = 600
"""Images behind the cells of all confusion matrices of a page: some 3 KB each."""


@dataclass(frozen=True)
class RunToReport:
    """A run, read and checked; its network is still to be evaluated."""

    name: str
    folder: Path
    config: RunConfig
    config_text: str
    metrics: list[dict[str, Any]]
    evaluation: Evaluation


@dataclass(frozen=True)
class ReportJob:
    """A report, fully resolved.

    Args:
        runs: of one data set.
        neighbours: how many training images are searched, at most.
        output: the file to write.
        figure4: the picture to write, with other files beside it; None for none.
    """

    runs: tuple[RunToReport, ...]
    neighbours: int
    output: Path
    figure4: Path | None = None

    @property
    def device(self) -> torch.device:
        """Where the networks are evaluated."""
        return self.runs[0].evaluation.plans[0].devices[0]


def resolve(options: ReportOptions) -> ReportJob:
    """Check the options and decide everything that they leave open.

    Raises:
        ConfigurationError, dataloading.DatasetError: the report is not possible.
    """
    for package in ("jinja2", "matplotlib"):
        require(package, "report")
    check_positive("--batch-size", options.batch_size)
    if options.neighbours < 0:
        raise ConfigurationError(f"--neighbours must be 0 or more, got {options.neighbours}")
    if options.device and "," in options.device:
        raise ConfigurationError(f"--device must be a single device, got {options.device}")
    folders, data = _runs_and_data(options.paths)
    networks = [TrainedNetwork.find(folder, options.weights) for folder in folders]
    check_new_file(options.output, (".html", ".htm"), overwrite=options.force, remedy="add --force")
    if options.figure4:
        check_new_file(options.figure4, (".png",), overwrite=options.force, remedy="add --force")
        for suffix in (".svg", ".json"):
            beside = options.figure4.with_suffix(suffix)
            check_new_file(beside, (suffix,), overwrite=options.force, remedy="add --force")
    metrics = [_metrics(folder) for folder in folders]
    _check_same_data(folders, networks)
    check_size(len(networks[0].spec.classes))
    if options.training_data and all(network.record for network in networks):
        raise ConfigurationError(
            f"--training-data {options.training_data}: all networks hold the mean of their training images; leave it "
            "out"
        )
    evaluations: list[Evaluation] = []
    for folder, network in zip(folders, networks, strict=True):
        given = Path(evaluations[0].data) if evaluations else data
        evaluations.append(_evaluation(folder, network, given, options))
    runs = zip(short_names(folders), folders, metrics, evaluations, strict=True)
    return ReportJob(
        tuple(
            RunToReport(name, folder, RunConfig.load(folder), _text(folder / "config.json"), lines, evaluation)
            for name, folder, lines, evaluation in runs
        ),
        options.neighbours,
        options.output,
        options.figure4,
    )


def write_report(world: World, job: ReportJob) -> None:
    """Evaluate the networks, write the page, and print what was written.

    Raises:
        ConfigurationError: weights or predictions are not finite, or the file cannot be written.
        Interrupted: a signal asked to stop; nothing was written.
        dataloading.DatasetError: an image is damaged.
    """
    first = job.runs[0]
    dataset = _open(first.evaluation.data)
    images = _CELL_IMAGES // len(job.runs)
    runs = []
    for run in job.runs:
        training = _training_data(run, dataset)
        results = collect(world, run.evaluation, dataset, training, searched=job.neighbours, images=images)
        runs.append(Run(run.name, run.folder, run.config, run.config_text, run.metrics, results))
    # Names of folders may hold bytes that are no text, which a page cannot.
    page = render(Report(tuple(runs), dataset, world.device, job.output)).encode("utf-8", "backslashreplace")
    try:
        if job.figure4:
            write_figure4(runs[0].results, job.figure4)
        write_atomically(job.output, page)
    except OSError as error:
        raise ConfigurationError(
            f"{error.filename or job.output} cannot be written: {error.strerror}; free space, or name another file"
        ) from None
    metrics = [run.results.result.predictions.metrics for run in runs]
    errors = {run.name: f"top-1 error {found.top1_error:.2f} %" for run, found in zip(runs, metrics, strict=True)}
    evaluated = f"{dataset.name}, {first.evaluation.split}: {metrics[0].images} images"
    written = {"page": f"{job.output} ({data_size(len(page))})"} | (
        {"figure 4": str(job.figure4)} if job.figure4 else {}
    )
    print_rows(console(), {"data": evaluated, **errors, **written})


def _runs_and_data(paths: Sequence[Path]) -> tuple[list[Path], Path | None]:
    """Split the paths into run folders and data: the last of several paths is the data unless it is a run.

    Raises:
        ConfigurationError: no run is named, one is named twice, or a path is a file of weights.
    """
    if not paths:
        raise ConfigurationError("name at least one run folder")
    check_order("fastalex.report", paths)
    *runs, last = paths
    data = last if runs and not names_weights(last) else None
    folders = list(runs if data is not None else paths)
    for folder in folders:
        if folder.is_file():
            raise ConfigurationError(
                f"{folder} is a file, but the curves are in the run folder; name the folder that training has written"
            )
    places = [folder.resolve() for folder in folders]
    if twice := next((folder for folder, place in zip(folders, places, strict=True) if places.count(place) > 1), None):
        raise ConfigurationError(f"{twice} is named twice; name each run once")
    return folders, data


def _metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's ``metrics.jsonl``.

    Raises:
        ConfigurationError: there are none, or one is damaged.
    """
    lines = read_metrics(folder)
    if not lines:
        found = "is empty" if (folder / "metrics.jsonl").exists() else "is missing"
        raise ConfigurationError(
            f"{folder / 'metrics.jsonl'} {found}, so there are no curves to draw; restore it from a copy, or use "
            f"fastalex.evaluate, which does without"
        )
    return lines


def _check_same_data(folders: Sequence[Path], networks: Sequence[TrainedNetwork]) -> None:
    """Check that all networks tell the same classes apart, and were trained on the same data set.

    Raises:
        ConfigurationError: they do not, or were not.
    """
    first = networks[0]
    for folder, network in zip(folders[1:], networks[1:], strict=True):
        only = sorted(set(network.spec.classes) ^ set(first.spec.classes))
        if only:
            owner = folder if only[0] in network.spec.classes else folders[0]
            raise ConfigurationError(
                f"{folder} has other classes than {folders[0]} (only {owner} has {only[0]!r}); a report needs runs of "
                "one data set: write one report for each"
            )
        if _is_other_data(first, network):
            raise ConfigurationError(
                f"{folder} was trained on other data than {folders[0]} ({network.data} and {first.data}); a report "
                "needs runs of one data set: write one report for each"
            )


def _is_other_data(first: TrainedNetwork, second: TrainedNetwork) -> bool:
    """Whether two networks were trained on different data sets, by the best evidence that both have."""
    origins = [network.record.origin if network.record else None for network in (first, second)]
    if origins[0] and origins[1]:
        return origins[0].fingerprint != origins[1].fingerprint
    if first.mean_image and second.mean_image:
        return first.mean_image != second.mean_image
    return Path(first.data or "").resolve() != Path(second.data or "").resolve()


def _evaluation(folder: Path, network: TrainedNetwork, data: Path | None, options: ReportOptions) -> Evaluation:
    """The evaluation of one network on one view of each image.

    Raises:
        ConfigurationError, dataloading.DatasetError: it is not possible.
    """
    if str(data or network.data) == "synthetic":
        raise ConfigurationError(
            f"the images of {data or folder} are synthetic: there is nothing to show; name a run that was trained on "
            "images"
        )
    return resolve_evaluation(
        EvaluateOptions(
            (folder,) if data is None else (folder, data),
            split=options.split,
            weights=options.weights,
            training_data=None if network.record else options.training_data,
            devices=options.device,
            batch_size=options.batch_size,
            precision=options.precision,
        )
    ).evaluation


def _training_data(run: RunToReport, dataset: Dataset) -> Dataset:
    """The images that a run was trained on; where they are gone, the training images of the data evaluated on."""
    network, config = run.evaluation.networks[0], run.config
    try:
        found = network.open_training_data()
    except UnknownMeanImage:
        return dataset
    if not isinstance(found, Dataset):  # synthetic images cannot be shown
        return dataset
    return _open(str(found.root), config.fraction, config.seed)


def _open(data: str, fraction: float = 1.0, seed: int = 0) -> Dataset:
    dataset = open_prepared(data, fraction, seed)
    assert isinstance(dataset, Dataset)
    return dataset


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")

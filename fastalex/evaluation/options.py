"""The options of ``python -m fastalex.evaluate``: parsed into an :class:`EvaluationJob`, and its report."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.table import Table

from dataloading.loading.dali_check import check_dali
from dataloading.process import command
from fastalex.cli import check_positive
from fastalex.console import console, print_rows, print_whole
from fastalex.datasets import AnyDataset, open_data, open_prepared
from fastalex.errors import ConfigurationError
from fastalex.evaluation.confusion import check_size, confusion_matrix, write_confusion
from fastalex.evaluation.ensemble import Evaluation, EvaluationResult, evaluate
from fastalex.evaluation.prediction_files import (
    errors_by_class,
    worst_classes_table,
    write_class_errors,
    write_errors,
    write_predictions,
)
from fastalex.evaluation.trained_network import (
    TrainedNetwork,
    UnknownMeanImage,
    check_split,
    default_split,
    inference_plan,
    with_mean,
    with_training_data,
)
from fastalex.files import check_new_file
from fastalex.metrics import Metrics, chance, has_top5
from fastalex.network.precision import check_precision
from fastalex.network.weights import names_weights
from fastalex.optional_packages import require
from fastalex.options.evaluate import EvaluateOptions
from fastalex.parallel.devices import Devices, default_device, parse_devices
from fastalex.parallel.torchrun import is_worker, machines
from fastalex.parallel.world import World

# Files that may hold images. Every other file is taken for weights, so that the message says what it is.
_ARCHIVES = (".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".zip")


@dataclass(frozen=True)
class EvaluationJob:
    """An evaluation, the number of classes to list, and the files to write."""

    evaluation: Evaluation
    worst: int
    class_errors: Path | None
    predictions: Path | None
    confusion: Path | None
    json: Path | None

    @property
    def devices(self) -> tuple[torch.device, ...]:
        """The devices of this machine, one per worker."""
        return self.evaluation.plans[0].devices


def resolve(options: EvaluateOptions, devices: Devices | None = None) -> EvaluationJob:
    """Check the options and decide everything that they leave open.

    Args:
        devices: of this machine, where torchrun has assigned them; None reads them from the options.

    Raises:
        ConfigurationError, dataloading.DatasetError: the evaluation is not possible.
    """
    # Checks that need no files come first.
    check_positive("--batch-size", options.batch_size)
    if options.worst < 0:
        raise ConfigurationError(f"--worst must be 0 or more, got {options.worst}")
    _check_files(options)
    check_one_mean(options.training_data, options.mean)
    devices = devices or parse_devices(options.devices or default_device())
    check_precision(options.precision, devices)
    # The networks.
    runs, data = _runs_and_data(options.paths)
    networks = tuple(TrainedNetwork.find(run, options.weights) for run in runs)
    coefficients = _coefficients(options, len(networks))
    _check_compatible(networks)
    plans = tuple(
        inference_plan(devices, machines(), network.spec.build_architecture(), options.batch_size)
        for network in networks
    )
    # The data.
    check_dali(data or networks[0].data)
    networks = with_mean(networks, options.mean)
    networks = with_training_data(networks, options.training_data, may_prepare=not is_worker())
    dataset = _open_dataset(data, networks)
    # Without DATA the default stays val: the only split of training data would give a training error.
    split = options.split or (default_split(dataset) if data else "val")
    check_split(dataset, split)
    if options.fit_coefficients:
        check_split(dataset, options.fit_coefficients)
    _check_classes(networks[0], dataset)
    if options.confusion:
        check_size(len(dataset.classes))
    check_mean_images(networks, dataset)
    evaluation = Evaluation(
        networks,
        plans,
        str(dataset.root),
        split,
        options.crops,
        coefficients,
        options.fit_coefficients,
        options.batch_size,
        options.precision,
    )
    files = (options.class_errors, options.predictions, options.confusion, options.json)
    return EvaluationJob(evaluation, options.worst, *files)


def check_one_mean(training_data: Path | None, mean: str | None) -> None:
    """Check that the mean is given in one way.

    Raises:
        ConfigurationError: it is given in two.
    """
    if training_data is not None and mean is not None:
        raise ConfigurationError("--mean and --training-data exclude each other; leave one out")


def check_mean_images(networks: Sequence[TrainedNetwork], dataset: AnyDataset | None) -> None:
    """Check that the images can be given to the networks as they were trained: minus the mean of the training images.

    Args:
        dataset: None before the data are prepared, which may take hours; then what can be told without them is checked.

    Raises:
        ConfigurationError: the mean image of a network is not known, or has another size than the images.
    """
    for network in networks:
        try:
            if dataset is not None:
                network.mean_image_for(dataset)
            # Data that were recorded without their mean do not tell whether they have it.
            elif network.record is None and network.given_mean is None and network.mean_image is None:
                network.open_training_data()
        except UnknownMeanImage as error:
            raise ConfigurationError(
                f"{error}; name the training data with --training-data DATA, or their mean with --mean FILE|R,G,B"
            ) from None


def evaluate_and_report(world: World, job: EvaluationJob) -> None:
    """Evaluate on all workers; the first one prints the results and writes the files.

    Raises:
        ConfigurationError: a file cannot be written; the results have been printed.
        Interrupted, dataloading.DatasetError: as :func:`evaluate`.
    """
    result = evaluate(world, job.evaluation)
    # No worker returns before the files are written; all end if they cannot be.
    world.from_first(lambda: None if result is None else _report(job, result))


def resolve_and_evaluate(world: World, argument: tuple[EvaluateOptions, Devices]) -> None:
    """Run as a worker of torchrun: the first worker resolves the options for all."""
    options, devices = argument
    evaluate_and_report(world, world.from_first(lambda: resolve(options, devices)))


def _check_files(options: EvaluateOptions) -> None:
    """Check that the files can be written, before the evaluation takes hours, and that each has a name of its own."""
    wanted = (
        ("--class-errors", options.class_errors, (".csv",)),
        ("--predictions", options.predictions, (".csv", ".npz")),
        ("--confusion", options.confusion, (".csv", ".png")),
        ("--json", options.json, (".json",)),
    )
    if options.confusion and options.confusion.suffix == ".png":
        require("matplotlib", "report")
    named: dict[str, str] = {}
    for option, path, suffixes in wanted:
        if path is None:
            continue
        check_new_file(path, suffixes, overwrite=options.force, remedy="add --force")
        other = named.setdefault(os.path.realpath(path), option)
        if other != option:
            raise ConfigurationError(f"{option} and {other} both name {path}; name two files")


def check_order(module: str, paths: Sequence[Path]) -> None:
    """Check that runs come before data.

    Raises:
        ConfigurationError: the first path is a folder and no run, but another one is; with the command in order.
    """
    runs = [path for path in paths if names_weights(path)]
    if runs and paths[0].is_dir() and paths[0] not in runs:
        ordered = [*runs, *(path for path in paths if path not in runs)]
        raise ConfigurationError(
            f"{paths[0]} is not a run, but {runs[0]} is: name runs first, then the data: {command(module, *ordered)}"
        )


def _runs_and_data(paths: Sequence[Path]) -> tuple[Sequence[Path], Path | None]:
    """Split the paths into runs and data: the last of several paths is the data unless it is a run."""
    if not paths:
        raise ConfigurationError("name at least one run folder or weights file")
    check_order("fastalex.evaluate", paths)
    *runs, last = paths
    is_file_of_weights = last.is_file() and last.suffix.lower() not in _ARCHIVES
    if not runs or names_weights(last) or is_file_of_weights:
        return paths, None
    return runs, last


def _coefficients(options: EvaluateOptions, networks: int) -> tuple[float, ...] | None:
    """The normalised coefficients; None if they are to be fitted."""
    coefficients = options.coefficients
    if options.fit_coefficients:
        if coefficients:
            raise ConfigurationError("--coefficients and --fit-coefficients exclude each other; leave one out")
        if networks == 1:
            raise ConfigurationError("--fit-coefficients needs several runs, got 1")
        return None
    coefficients = coefficients or (1.0,) * networks
    if len(coefficients) != networks:
        raise ConfigurationError(
            f"--coefficients has {len(coefficients)} numbers for {networks} runs; give one number per run"
        )
    if not all(math.isfinite(c) and c >= 0 for c in coefficients) or not sum(coefficients) > 0:
        raise ConfigurationError(
            f"--coefficients {' '.join(f'{c:g}' for c in coefficients)}: none may be negative, and one must be positive"
        )
    return tuple(c / sum(coefficients) for c in coefficients)


def _open_dataset(data: Path | None, networks: Sequence[TrainedNetwork]) -> AnyDataset:
    """The given data in the networks' stored size, or the training data of the first network."""
    may_prepare = not is_worker()
    if data is not None:
        check_mean_images(networks, None)
        size = next((network.stored_size for network in networks if network.stored_size is not None), None)
        return open_data(data, size, for_training=False, may_prepare=may_prepare)
    network = networks[0]
    if network.data is None:
        raise ConfigurationError(f"{network.weights} is not in a run folder: name the data set to evaluate on")
    if network.data != "synthetic" and not Path(network.data).exists():
        raise ConfigurationError(
            f"the training data {network.data} of {network.weights} are gone: name the data set to evaluate on"
        )
    return open_data(Path(network.data), may_prepare=may_prepare)


def _check_compatible(networks: Sequence[TrainedNetwork]) -> None:
    """Check that the networks of an ensemble have the same classes and see the same stored images."""
    first = networks[0]
    for network in networks[1:]:
        if set(network.spec.classes) != set(first.spec.classes):
            raise ConfigurationError(
                f"{network.weights} has other classes than {first.weights} "
                f"({_class_difference(network.spec.classes, first.spec.classes)}); the networks of an ensemble need "
                "the same classes"
            )
    sizes = {network.stored_size: network.weights for network in networks if network.stored_size is not None}
    if len(sizes) > 1:
        texts = [f"{weights} with images stored in {size} pixels" for size, weights in sorted(sizes.items())]
        raise ConfigurationError(
            f"the networks of an ensemble need the same images, got {', '.join(texts)}; evaluate them one by one"
        )


def _check_classes(network: TrainedNetwork, dataset: AnyDataset) -> None:
    classes = network.spec.classes
    if set(dataset.classes) != set(classes):
        raise ConfigurationError(
            f"{dataset.root} has {len(dataset.classes)} classes that are not the network's {len(classes)} "
            f"({_class_difference(dataset.classes, classes)}); evaluate on data with the same class names, in any order"
        )


def _class_difference(classes: Sequence[str], expected: Sequence[str]) -> str:
    extra, missing = sorted(set(classes) - set(expected)), sorted(set(expected) - set(classes))
    pairs = (("has", extra), ("lacks", missing))
    return "it " + " and ".join(f"{verb} {names[0]!r}" for verb, names in pairs if names)


def _report(job: EvaluationJob, result: EvaluationResult) -> None:
    """Print the results, and then write the files: a full disk must not cost the results."""
    evaluation, predictions = job.evaluation, result.predictions
    dataset, metrics = open_prepared(evaluation.data), predictions.metrics
    networks, classes = evaluation.networks, len(dataset.classes)
    # What was evaluated, and anything unusual about it.
    numbers = [f" {number}" if len(networks) > 1 else "" for number in range(1, len(networks) + 1)]
    rows = {f"weights{number}": str(network.weights) for number, network in zip(numbers, networks, strict=True)}
    rows["data"] = f"{dataset.name}, {evaluation.split}: {metrics.images} images, {classes} classes"
    if tuple(dataset.classes) != networks[0].spec.classes:
        rows["classes"] = "matched by name: the data set orders them differently"
    mean_images = {network.mean_image_for(dataset) for network in networks} - {None}
    if mean_images:
        rows["mean image"] = f"of the training images, from {', '.join(sorted(map(str, mean_images)))}"
    rows["views per image"] = str(evaluation.views)
    if len(networks) > 1:
        rows["coefficients"] = _coefficients_text(evaluation, result.coefficients)
    # Results.
    rows["loss"] = f"{metrics.loss:.4f}"
    rows["top-1 error"] = f"{metrics.top1_error:.2f} % (chance {chance(classes):.2f} %)"
    if has_top5(classes):
        rows["top-5 error"] = f"{metrics.top5_error:.2f} % (chance {chance(classes, 5):.2f} %)"
    rows["speed"] = f"{metrics.images / result.seconds:.1f} images/s"
    out, errors = console(), errors_by_class(predictions, dataset)
    print_rows(out, rows)
    if len(networks) > 1:
        print_whole(out, _networks_table(result, numbers, classes))
    if job.worst:
        print_whole(out, worst_classes_table(errors, job.worst, classes))
    # Files.
    try:
        if job.class_errors:
            write_class_errors(job.class_errors, errors)
            out.print(f"errors by class: {job.class_errors}")
        if job.predictions:
            write_predictions(job.predictions, predictions, dataset, evaluation.split)
            out.print(f"predictions: {job.predictions}")
        if job.confusion:
            write_confusion(job.confusion, confusion_matrix(predictions, classes), dataset.classes)
            out.print(f"confusion matrix: {job.confusion}")
        if job.json:
            write_errors(job.json, evaluation, result)
            out.print(f"errors: {job.json}")
    except OSError as error:
        raise ConfigurationError(
            f"{error.filename} cannot be written: {error.strerror}; the results above are complete; free space, or "
            "name another file"
        ) from None


def _coefficients_text(evaluation: Evaluation, coefficients: Sequence[float]) -> str:
    text = " ".join(f"{c:.4f}" for c in coefficients)
    if evaluation.fitted_on is None:
        return text
    if evaluation.fitted_on == evaluation.split:
        return f"{text}, fitted on {evaluation.fitted_on}, the split evaluated here: the errors are too low"
    return f"{text}, fitted on {evaluation.fitted_on}"


def _networks_table(result: EvaluationResult, numbers: Sequence[str], classes: int) -> Table:
    """The errors of each network of an ensemble alone."""
    table = Table(title="single networks", title_justify="left")
    top5 = ("top-5 error",) if has_top5(classes) else ()
    for name in ("weights", "coefficient", "loss", "top-1 error", *top5):
        table.add_column(name, justify="right")
    columns = (numbers, result.coefficients, result.predictions.network_counts.unbind(0))
    for number, coefficient, counts in zip(*columns, strict=True):
        metrics = Metrics.from_counts(counts)
        errors = (f"{metrics.top1_error:.2f} %", f"{metrics.top5_error:.2f} %")[: 1 + len(top5)]
        table.add_row(number.strip(), f"{coefficient:.4f}", f"{metrics.loss:.4f}", *errors)
    return table

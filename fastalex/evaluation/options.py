"""What ``python -m fastalex.evaluate`` takes, how it becomes an evaluation, and what is said of the outcome."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import torch
from rich.console import Console
from rich.table import Table
from tyro.conf import Positional, arg

from fastalex.cli import check_positive, optional
from fastalex.console import name_value_table, print_whole
from fastalex.datasets import AnyDataset, open_data, open_prepared
from fastalex.errors import ConfigurationError
from fastalex.evaluation.ensemble import Evaluation, EvaluationResult, evaluate
from fastalex.evaluation.prediction_files import (
    errors_by_class,
    worst_classes_table,
    write_class_errors,
    write_predictions,
)
from fastalex.evaluation.trained_network import TrainedNetwork, check_split
from fastalex.metrics import Metrics
from fastalex.network.precision import Precision, check_precision
from fastalex.parallel.devices import default_device, parse_devices
from fastalex.parallel.partition import partition
from fastalex.parallel.world import World


@dataclass(frozen=True)
class EvaluateOptions:
    """Error rates of a trained network, or of several together, on images with known classes."""

    paths: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN [RUN ...] [DATA]", help_behavior_hint="")]
    """Run folders or .safetensors files; several answer with the mean of their softmax outputs. Last, a prepared data
    set or class folders. Default: the data that the first run was trained on."""
    crops: Literal[1, 10] = 1
    """1: the centre. 10: the four corners and the centre, each also mirrored, softmax outputs averaged."""
    split: str = "val"
    """Which part of the data set: val, test, train."""
    weights: Literal["best", "last"] = "best"
    """Which of a run's weights."""
    coefficients: Annotated[tuple[float, ...], optional("C [C ...]")] = ()
    """Weight of each run's softmax outputs in the mean. Default: equal."""
    fit_coefficients: Annotated[str | None, optional("SPLIT")] = None
    """Find the coefficients under which the labels of this split are likeliest. Take another split than the one that
    is judged, or the errors come out too low."""
    worst: int = 5
    """How many of the worst classes to list."""
    class_errors: Annotated[Path | None, optional("FILE.csv")] = None
    """Write the errors of every class to this file."""
    predictions: Annotated[Path | None, optional("FILE.csv|FILE.npz")] = None
    """Write each image's name, class and five most probable classes to this file."""
    overwrite: bool = False
    """Replace files that are there already."""
    devices: Annotated[str | None, optional("DEVICES", "--device")] = None
    """One per stage: "0", "0,1", "cpu", "cpu,cpu". Default: the first GPU if there is one, else the CPU."""
    batch_size: Annotated[int, arg(aliases=("-b",))] = 64
    """Images at a time."""
    precision: Precision = "fp32"
    """fp32, tf32 or bf16."""

    def on(self, devices: Sequence[torch.device]) -> EvaluateOptions:
        """The same options with these devices."""
        return replace(self, devices=",".join(map(str, devices)))


@dataclass(frozen=True)
class EvaluationJob:
    """An evaluation, on which devices, and where its outcome goes."""

    evaluation: Evaluation
    devices: str
    worst: int
    class_errors: Path | None
    predictions: Path | None


def resolve(options: EvaluateOptions) -> EvaluationJob:
    """Check the options against each other and against what is there.

    Raises:
        ConfigurationError, dataloading.DatasetError: what is asked for cannot be done.
    """
    check_positive("--batch-size", options.batch_size)
    if options.worst < 0:
        raise ConfigurationError(f"--worst is {options.worst}; 0 or more is wanted")
    for path, endings in ((options.class_errors, (".csv",)), (options.predictions, (".csv", ".npz"))):
        if path is not None:
            check_output(path, endings, options.overwrite)
    if options.predictions and options.predictions == options.class_errors:
        raise ConfigurationError(f"--predictions and --class-errors both name {options.predictions}; name two files")
    devices = options.devices or default_device()
    check_precision(options.precision, parse_devices(devices))
    stages = len(parse_devices(devices))
    runs, data = _runs_and_data(options.paths)
    networks = tuple(TrainedNetwork.find(run, options.weights) for run in runs)
    coefficients = _coefficients(options, len(networks))
    _check_alike(networks)
    for network in networks:
        partition(network.description.build_architecture(), stages)
    dataset = _open(data, networks)
    check_split(dataset, options.split)
    if options.fit_coefficients:
        check_split(dataset, options.fit_coefficients)
    _check_classes(networks[0], dataset)
    evaluation = Evaluation(
        networks,
        str(dataset.root),
        options.split,
        options.crops,
        coefficients,
        options.fit_coefficients,
        options.batch_size,
        options.precision,
    )
    return EvaluationJob(evaluation, devices, options.worst, options.class_errors, options.predictions)


def evaluate_and_report(world: World, job: EvaluationJob) -> None:
    """Evaluate; the first worker prints the tables and writes the files."""
    judgement = evaluate(world, job.evaluation)
    if judgement is not None:
        _report(job, judgement)
    world.barrier()  # nobody ends before the files are written


def resolve_and_evaluate(world: World, options: EvaluateOptions) -> None:
    """As one of torchrun's workers: the first one resolves, all evaluate the same."""
    evaluate_and_report(world, world.from_first(lambda: resolve(options)))


def check_output(path: Path, endings: Sequence[str], overwrite: bool) -> None:
    """Refuse a file that could not be written, before hours are spent on what goes into it.

    Raises:
        ConfigurationError: it exists and must not be replaced, its folder is missing, or its ending is unknown.
    """
    if path.suffix not in endings:
        raise ConfigurationError(f"{path} ends with {path.suffix!r}; name a file that ends with {' or '.join(endings)}")
    if path.is_dir() or (path.exists() and not overwrite):
        raise ConfigurationError(f"{path} exists already; choose another file, or add --overwrite")
    if not path.absolute().parent.is_dir():
        raise ConfigurationError(f"{path}: there is no folder {path.parent}; make it first")
    if not os.access(path.absolute().parent, os.W_OK):
        raise ConfigurationError(f"{path}: the folder {path.parent} cannot be written to; choose another one")


def _runs_and_data(paths: Sequence[Path]) -> tuple[Sequence[Path], Path | None]:
    """The last of several paths is the data, unless it is a run too."""
    if not paths:
        raise ConfigurationError("name at least one run folder or file of weights")
    *before, last = paths
    if not before or (last / "config.json").is_file() or last.suffix == ".safetensors":
        return paths, None
    return before, last


def _coefficients(options: EvaluateOptions, networks: int) -> tuple[float, ...] | None:
    given = options.coefficients
    if options.fit_coefficients:
        if given:
            raise ConfigurationError("--coefficients and --fit-coefficients exclude each other; leave one out")
        if networks == 1:
            raise ConfigurationError("--fit-coefficients needs several runs; there is 1")
        return None
    given = given or (1.0,) * networks
    if len(given) != networks:
        raise ConfigurationError(f"--coefficients names {len(given)} numbers for {networks} runs; give one for each")
    if not all(math.isfinite(c) and c >= 0 for c in given) or not sum(given) > 0:
        raise ConfigurationError(
            f"--coefficients {' '.join(f'{c:g}' for c in given)}: none may be negative, and one must be positive"
        )
    return tuple(c / sum(given) for c in given)


def _open(data: Path | None, networks: Sequence[TrainedNetwork]) -> AnyDataset:
    network = networks[0]
    if data is None and network.data is None:
        raise ConfigurationError(f"{network.weights} is a file of weights: name the data set to evaluate it on")
    if data is None:
        return open_data(Path(str(network.data)))
    size = next((network.stored_size for network in networks if network.stored_size is not None), None)
    return open_data(data, size, for_training=False)


def _check_alike(networks: Sequence[TrainedNetwork]) -> None:
    first = networks[0]
    for network in networks[1:]:
        if set(network.description.classes) != set(first.description.classes):
            raise ConfigurationError(
                f"{network.weights} has other classes than {first.weights} "
                f"({_difference(network.description.classes, first.description.classes)}); networks that answer "
                "together need the same classes"
            )
    sizes = {network.stored_size: network.weights for network in networks if network.stored_size is not None}
    if len(sizes) > 1:
        texts = [f"{weights} with images stored in {size} pixels" for size, weights in sorted(sizes.items())]
        raise ConfigurationError(
            f"networks that answer together see the same images: {', '.join(texts)}; evaluate them one by one"
        )


def _check_classes(network: TrainedNetwork, dataset: AnyDataset) -> None:
    own = network.description.classes
    if set(dataset.classes) != set(own):
        raise ConfigurationError(
            f"{dataset.root} has {len(dataset.classes)} classes that are not the network's {len(own)} "
            f"({_difference(dataset.classes, own)}); evaluate on data with the same class names, in any order"
        )


def _difference(these: Sequence[str], those: Sequence[str]) -> str:
    only, missing = sorted(set(these) - set(those)), sorted(set(those) - set(these))
    return "it " + " and ".join(f"{verb} {names[0]!r}" for verb, names in (("has", only), ("lacks", missing)) if names)


def _report(job: EvaluationJob, judgement: EvaluationResult) -> None:
    evaluation, predictions = job.evaluation, judgement.predictions
    dataset, metrics = open_prepared(evaluation.data), predictions.metrics
    networks = evaluation.networks
    rows = {
        "weights": ", ".join(str(network.weights) for network in networks),
        "data": f"{dataset.name}, {evaluation.split}: {metrics.images} images",
    }
    if tuple(dataset.classes) != networks[0].description.classes:
        rows["classes"] = "the data's order differs from the network's; matched by name"
    others = {network.mean_image_for(dataset) for network in networks} - {None}
    if others:
        rows["mean image"] = f"of the training images, from {', '.join(sorted(map(str, others)))}"
    rows["views of each"] = str(evaluation.views)
    if len(networks) > 1:
        rows["coefficients"] = _coefficients_row(evaluation, judgement.coefficients)
    rows |= {
        "loss": f"{metrics.loss:.4f}",
        "top-1 error": f"{metrics.top1_error:.2f} %",
        "top-5 error": f"{metrics.top5_error:.2f} %",
        "speed": f"{metrics.images / judgement.seconds:.1f} images/s",
    }
    errors = errors_by_class(predictions, dataset)
    if job.class_errors:
        write_class_errors(job.class_errors, errors)
        rows["errors by class"] = str(job.class_errors)
    if job.predictions:
        write_predictions(job.predictions, predictions, dataset, evaluation.split)
        rows["predictions"] = str(job.predictions)
    console = Console(soft_wrap=True, highlight=False)
    print_whole(console, name_value_table("evaluation", rows))
    if len(networks) > 1:
        print_whole(console, _members_table(job, judgement))
    if job.worst:
        print_whole(console, worst_classes_table(errors, job.worst))


def _coefficients_row(evaluation: Evaluation, coefficients: Sequence[float]) -> str:
    text = " ".join(f"{c:.4f}" for c in coefficients)
    if evaluation.fitted_on is None:
        return text
    if evaluation.fitted_on == evaluation.split:
        return f"{text}, fitted on {evaluation.fitted_on}, the images judged here: the errors are too low"
    return f"{text}, fitted on {evaluation.fitted_on}"


def _members_table(job: EvaluationJob, judgement: EvaluationResult) -> Table:
    table = Table(title="each network alone", title_justify="left")
    table.add_column("weights", overflow="fold")
    for name in ("coefficient", "loss", "top-1 error", "top-5 error"):
        table.add_column(name, justify="right")
    members = zip(job.evaluation.networks, judgement.coefficients, judgement.predictions.members.unbind(0), strict=True)
    for network, coefficient, counts in members:
        alone = Metrics.from_counts(counts)
        errors = (f"{alone.top1_error:.2f} %", f"{alone.top5_error:.2f} %")
        table.add_row(str(network.weights), f"{coefficient:.4f}", f"{alone.loss:.4f}", *errors)
    return table

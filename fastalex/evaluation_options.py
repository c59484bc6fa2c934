"""What ``python -m fastalex.evaluate`` takes, and how it becomes an evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from rich.console import Console
from tyro.conf import Positional, arg

import dataloading
from fastalex.checkpoint import load_model
from fastalex.cli import optional
from fastalex.config import RunConfig
from fastalex.data import open_data
from fastalex.errors import ConfigurationError
from fastalex.evaluation import count_errors
from fastalex.launch import parse_devices
from fastalex.metrics import Metrics
from fastalex.model import Precision
from fastalex.pipeline import SingleDevice
from fastalex.progress import name_value_table


@dataclass(frozen=True)
class EvaluateOptions:
    """Error rates of a trained network on validation images."""

    run: Annotated[Positional[Path], arg(metavar="RUN")]
    """A run folder, or a .safetensors file with weights."""
    data: Annotated[Positional[Path | None], optional("[DATA]")] = None
    """A prepared data set or class folders. Default: the data that the run was trained on."""
    crops: Literal[1, 10] = 1
    """1: the centre. 10: the four corners and the centre, each also mirrored, softmax outputs averaged."""
    weights: Literal["best", "last"] = "best"
    """Which of the run's weights."""
    split: str = "val"
    """Which part of the data set."""
    device: Annotated[str | None, optional("DEVICE")] = None
    """A GPU number or cpu. Default: the first GPU if there is one."""
    batch_size: Annotated[int, arg(aliases=("-b",))] = 64
    """Images at a time."""
    precision: Precision = "fp32"
    """fp32 or bf16."""


def evaluate_run(options: EvaluateOptions) -> Metrics:
    """Evaluate a run's weights and print a table.

    Raises:
        ConfigurationError, dataloading.DatasetError: no such run or data, or data with other classes.
    """
    model, description = load_model(_weights(options))
    data = options.data
    if data is None and not options.run.is_file():
        data = Path(RunConfig.load(options.run).data)
    if data is None:
        raise ConfigurationError(f"{options.run} is a file of weights: name the data set to evaluate it on")
    dataset = open_data(data)
    if tuple(dataset.classes) != description.classes:
        raise ConfigurationError(
            f"{dataset.root} has {len(dataset.classes)} classes that are not the network's {description.num_classes}; "
            "evaluate on data with the same class names"
        )
    if options.split not in dataset.splits:
        raise ConfigurationError(f"{dataset.root} has no part {options.split!r}; it has {', '.join(dataset.splits)}")
    device = _one_device(options.device)
    model.set_precision(options.precision)
    torch.backends.cudnn.allow_tf32 = False  # as in training
    engine = SingleDevice(model, device, options.batch_size)
    loader = dataloading.Loader(
        dataset,
        options.split,
        options.batch_size,
        crop_size=model.architecture.image_size,
        shuffle=False,
        augment=None,
        views=options.crops,
        device=device.index if device.type == "cuda" else None,
        drop_last=False,
    )
    try:
        counts = count_errors(engine, loader.epoch(0), views=options.crops)
    finally:
        loader.close()
    assert counts is not None
    metrics = Metrics.from_counts(counts)
    rows = {
        "weights": str(_weights(options)),
        "data": f"{dataset.name}, {options.split}: {metrics.images} images",
        "views of each": str(options.crops),
        "loss": f"{metrics.loss:.4f}",
        "top-1 error": f"{metrics.top1_error:.2f} %",
        "top-5 error": f"{metrics.top5_error:.2f} %",
    }
    Console(soft_wrap=True, highlight=False).print(name_value_table("evaluation", rows))
    return metrics


def _weights(options: EvaluateOptions) -> Path:
    if options.run.is_file():
        return options.run
    if not options.run.exists():
        raise ConfigurationError(f"no such run folder or file: {options.run}")
    path = options.run / f"{options.weights}.safetensors"
    if not path.exists():
        raise ConfigurationError(f"{options.run} has no {path.name}: is it a run folder with a finished epoch?")
    return path


def _one_device(text: str | None) -> torch.device:
    devices = parse_devices(text or ("0" if torch.cuda.device_count() else "cpu"))
    if len(devices) > 1:
        raise ConfigurationError(f"--device {text}: evaluation runs on one device; name one")
    return devices[0]

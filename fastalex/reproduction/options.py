"""The options of ``python -m fastalex.reproduce``, parsed into a :class:`Job`."""

from __future__ import annotations

import math
import os
from pathlib import Path

from dataloading import Dataset
from fastalex.cli import check_positive
from fastalex.datasets import open_data
from fastalex.errors import ConfigurationError
from fastalex.files import check_place
from fastalex.network.precision import check_precision
from fastalex.network.variation import build_architecture
from fastalex.optional_packages import require
from fastalex.options.reproduce import ReproduceOptions
from fastalex.options.training import NetworkOptions
from fastalex.parallel.devices import default_devices, parse_devices
from fastalex.reproduction.job import TARGETS, Job, Settings, assign

OTHER_FOLDER = "choose another --output"
"""What to do if the folder of the reproduction cannot be used."""


def resolve(options: ReproduceOptions) -> Job:
    """Check the options, and prepare data that are not prepared yet.

    Raises:
        ConfigurationError, dataloading.DatasetError: something is missing or makes no sense.
    """
    for package in ("jinja2", "matplotlib"):
        require(package, "report")
    targets = [word for word in options.words if word in (*TARGETS, "all")]
    data = [Path(word) for word in options.words if word not in (*TARGETS, "all")]
    known = f"{', '.join(TARGETS)}, all"
    for path in data:
        if not os.path.lexists(path) and path.name == str(path) != "synthetic":
            raise ConfigurationError(f"{path} is neither a folder nor anything to reproduce; choose from {known}")
    if not targets:
        raise ConfigurationError(f"say what to reproduce, before the data: {known}")
    if not data:
        raise ConfigurationError(
            f"{' '.join(targets)} needs data: name prepared data sets or class folders, such as prepared/ILSVRC2012"
        )
    for name in ("epochs", "batch_size", "seeds"):
        if (value := getattr(options, name)) is not None:
            check_positive(f"--{name.replace('_', '-')}", value)
    if options.lr is not None and not (math.isfinite(options.lr) and options.lr > 0):
        raise ConfigurationError(f"--lr must be positive, got {options.lr:g}")
    settings = Settings(
        options.devices,
        options.epochs,
        options.batch_size,
        options.lr,
        options.precision,
        options.width,
        options.seeds,
    )
    devices = parse_devices(options.devices or default_devices())
    check_precision(options.precision or "fp32", devices)
    architecture = build_architecture("krizhevsky", variation=NetworkOptions(width=options.width).variation)
    if options.output is not None:
        check_place(options.output, OTHER_FOLDER)
    first, main, pretraining = assign([_open(path, architecture.prepared_size) for path in data])
    return Job(
        tuple(name for name in TARGETS if name in targets or "all" in targets),
        first,
        main,
        pretraining,
        settings,
        options.output or Path("reproduction") / main.name,
        options.plan_only,
    )


def _open(path: Path, size: int | None) -> Dataset:
    if str(path) == "synthetic":
        raise ConfigurationError("synthetic images are noise, so there is nothing to reproduce; name images")
    dataset = open_data(path, size)
    assert isinstance(dataset, Dataset)
    return dataset

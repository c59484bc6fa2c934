"""The options of ``python -m fastalex.reproduce``, parsed into a :class:`Job`."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from dataloading import Dataset
from fastalex.cli import check_positive, optional
from fastalex.datasets import open_data
from fastalex.errors import ConfigurationError
from fastalex.files import check_place
from fastalex.network.precision import Precision, check_precision
from fastalex.network.variation import build_architecture
from fastalex.parallel.devices import default_devices, parse_devices
from fastalex.reproduction.job import TARGETS, Job, Settings, assign
from fastalex.training.options import NetworkOptions

OTHER_FOLDER = "choose another --output"
"""What to do if the folder of the reproduction cannot be used."""


@dataclass(frozen=True)
class ReproduceOptions:
    """Reproduce tables, figures and claims of the paper, with the paper's figures beside those measured.

    Trains, evaluates and draws whatever is still missing, and ends with a page. First it says how long that will take.
    A reproduction that was stopped goes on when the same command is given again.
    """

    words: Annotated[
        Positional[tuple[str, ...]], arg(name="what", metavar="WHAT [WHAT ...] DATA [DATA ...]", help_behavior_hint="")
    ]
    """What to reproduce: table1, table2, figure1, figure2, figure3, figure4, claims, or all. Then the data: prepared
    ILSVRC-2010 and ILSVRC-2012, and a larger set to pre-train on. Other images stand in for them: the first set for
    both, the second to pre-train on."""
    devices: Annotated[str | None, optional("DEVICES")] = None
    """As for fastalex.train."""
    epochs: Annotated[int | None, optional("N")] = None
    """Passes over the training images, in every training. Default: the recipes'."""
    width: float = 1.0
    """Multiplies the network's width; below 1 the initial weights are scaled to fit. Figure 1 has a network of its
    own."""
    seeds: Annotated[int | None, optional("N")] = None
    """Networks per row and per variant. Default: those of the paper, 5 in table 2 and 1 in table 1, and 3 for
    claims."""
    batch_size: Annotated[int | None, optional("N", "-b")] = None
    """Images per update. Default: the recipes'."""
    lr: Annotated[float | None, optional("LR")] = None
    """Initial learning rate, but not in figure 1. Default: the recipes'."""
    precision: Annotated[Precision | None, optional("{fp32,tf32,bf16}")] = None
    """As for fastalex.train."""
    output: Annotated[Path | None, optional("DIR", "-o")] = None
    """Folder of all results. Default: reproduction/DATA."""
    plan_only: bool = False
    """Print the plan, and do nothing else."""


def resolve(options: ReproduceOptions) -> Job:
    """Check the options, and prepare data that are not prepared yet.

    Raises:
        ConfigurationError, dataloading.DatasetError: something is missing or makes no sense.
    """
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

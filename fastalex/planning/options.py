"""The options of ``python -m fastalex.plan``, parsed into a :class:`TrainingPlan`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import torch
from tyro.conf import OmitArgPrefixes, arg

from fastalex.cli import check_positive, optional
from fastalex.errors import ConfigurationError
from fastalex.files import check_new_file
from fastalex.network.architecture import Architecture
from fastalex.network.precision import Precision, default_precision
from fastalex.network.variation import build_architecture
from fastalex.parallel.devices import default_devices, parse_devices
from fastalex.parallel.layout import ParallelPlan, ScheduleName, resolve_layout
from fastalex.parallel.partition import parse_split, partition
from fastalex.parallel.schedules import check_micro_batches, default_micro_batches
from fastalex.planning.speed import PAPER_IMAGES
from fastalex.recipes.published import build_recipe
from fastalex.training.memory import memory_limit
from fastalex.training.options import NetworkOptions

GIB = 2**30


@dataclass(frozen=True)
class PlanOptions:
    """Parameters, memory and time that training would need. Nothing is trained."""

    network: OmitArgPrefixes[NetworkOptions] = field(default_factory=NetworkOptions)
    classes: int = 1000
    """Outputs of the last layer."""
    devices: Annotated[str | None, optional("DEVICES")] = None
    """One device per stage, as for training. With --device-memory they need not exist."""
    device_memory: Annotated[float | None, optional("GIB")] = None
    """Memory of each device in GiB. Default: that of the devices of this machine (CPU workers share its memory)."""
    batch_size: Annotated[int, arg(aliases=("-b",))] = 128
    """Images per update. Training on fewer than 100,000 images has 32 by default."""
    micro_batches: Annotated[int | None, optional("N")] = None
    """Micro-batches per batch. Default: 1 on a single device, else 2 per device on CPUs and 4 per device on GPUs, or
    fewer if they do not divide the batch."""
    split: Annotated[str | None, optional("BLOCK[,BLOCK...]")] = None
    """Where to cut the network into stages: the first block of each later stage, such as conv3 or conv3,fc6. Default:
    balance counted arithmetic."""
    schedule: Annotated[ScheduleName | None, optional("{1f1b,eager-1f1b,gpipe}")] = None
    """Pipeline schedule. Default: eager-1f1b."""
    precision: Annotated[Precision | None, optional("{fp32,tf32,bf16}")] = None
    """fp32, tf32 or bf16. Default: bf16 on CPUs that multiply it, else fp32."""
    images: int = PAPER_IMAGES
    """Training images; ILSVRC-2012 has the default number."""
    epochs: int = build_recipe("krizhevsky").epochs
    """Passes over the training images; those of the recipe krizhevsky by default."""
    measure: bool = False
    """Time some training steps on the devices, with random images."""
    draw: Annotated[Path | None, optional("FILE.svg")] = None
    """Draw the network over the stages, with the sizes of every block and, if measured, its time."""
    force: bool = False
    """Replace the file of the drawing if it exists."""


@dataclass(frozen=True)
class TrainingPlan:
    """What would be trained, on which devices.

    Args:
        network: the options of the network.
        architecture: the network.
        parallel: how the devices share the work; they need not exist unless ``measure`` is set.
        memory: bytes of each device.
        batch_size, precision, images, epochs: of the training.
        measure: whether to measure the speed here.
        draw: file for a drawing of the network, if one is wanted.
    """

    network: NetworkOptions
    architecture: Architecture
    parallel: ParallelPlan
    memory: tuple[int, ...]
    batch_size: int
    precision: Precision
    images: int
    epochs: int
    measure: bool
    draw: Path | None = None

    @property
    def devices(self) -> tuple[torch.device, ...]:
        """The devices, one per worker."""
        return self.parallel.devices


def resolve(options: PlanOptions) -> TrainingPlan:
    """Check the options and decide everything that they leave open.

    Raises:
        ConfigurationError: such a training is not possible.
    """
    for name in ("classes", "batch_size", "images", "epochs"):
        check_positive(f"--{name.replace('_', '-')}", getattr(options, name))
    if options.schedule == "interleaved":
        raise ConfigurationError(
            "--schedule interleaved puts several stages on a device, which plan does not support; choose another one"
        )
    architecture = build_architecture(options.network.arch, options.classes, options.network.variation)
    devices, memory = _devices_and_memory(options)
    return TrainingPlan(
        options.network,
        architecture,
        _parallel_plan(options, architecture, devices),
        memory,
        options.batch_size,
        options.precision or default_precision(devices),
        options.images,
        options.epochs,
        options.measure,
        _drawing_file(options),
    )


def _drawing_file(options: PlanOptions) -> Path | None:
    """The file for the drawing, if it can be written.

    Raises:
        ConfigurationError: it is no SVG file, exists already, or cannot be written.
    """
    path = options.draw
    if path is None:
        if options.force:
            raise ConfigurationError("--force replaces the file of --draw, which is not given; leave it out")
        return None
    check_new_file(path, (".svg",), overwrite=options.force, remedy="add --force")
    return path


def _parallel_plan(options: PlanOptions, architecture: Architecture, devices: tuple[torch.device, ...]) -> ParallelPlan:
    """The plan that training chooses by default, also for devices that this machine lacks."""
    layout, schedule = resolve_layout(len(devices), schedule=options.schedule)
    if options.split is None:
        split = partition(architecture, layout.stages)
    else:
        split = parse_split(options.split, architecture.block_names, layout.stages)
    micro_batches = options.micro_batches
    if micro_batches is None:
        micro_batches = default_micro_batches(layout, schedule, options.batch_size, devices[0].type)
    check_micro_batches(options.batch_size, micro_batches, layout.stages, schedule)
    return ParallelPlan(devices, 1, layout, split, schedule, micro_batches)


def _devices_and_memory(options: PlanOptions) -> tuple[tuple[torch.device, ...], tuple[int, ...]]:
    """The devices, and the bytes of each."""
    text = options.devices or default_devices()
    if options.device_memory is not None:
        if not (math.isfinite(options.device_memory) and options.device_memory > 0):
            raise ConfigurationError(f"--device-memory must be positive, got {options.device_memory:g}")
        # A measurement needs real devices.
        devices = parse_devices(text) if options.measure else _imagined_devices(text)
        return devices, (round(options.device_memory * GIB),) * len(devices)
    try:
        devices = parse_devices(text)
    except ConfigurationError as error:
        raise ConfigurationError(f"{error}; for devices of another machine, add --device-memory GIB") from None
    if devices[0].type == "cuda":
        return devices, tuple(torch.cuda.get_device_properties(device).total_memory for device in devices)
    return devices, (memory_limit() // len(devices),) * len(devices)


def _imagined_devices(text: str) -> tuple[torch.device, ...]:
    """Devices that need not exist."""
    devices = []
    for name in text.split(","):
        index = name.strip().removeprefix("cuda:")
        if index != "cpu" and not index.isdecimal():
            raise ConfigurationError(f"--devices {text}: write GPU numbers (0,1) or cpu (cpu,cpu)")
        devices.append(torch.device("cpu") if index == "cpu" else torch.device("cuda", int(index)))
    if len({device.type for device in devices}) > 1:
        raise ConfigurationError(f"--devices {text}: write GPU numbers (0,1) or cpu (cpu,cpu)")
    return tuple(devices)

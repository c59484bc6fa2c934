"""The options of ``python -m fastalex.plan``, parsed into a :class:`TrainingPlan`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch

from fastalex.cli import check_positive
from fastalex.errors import ConfigurationError
from fastalex.files import check_new_file
from fastalex.network.architecture import Architecture
from fastalex.network.precision import Precision, default_precision
from fastalex.network.variation import build_architecture
from fastalex.options.plan import PlanOptions
from fastalex.options.training import NetworkOptions
from fastalex.parallel.devices import default_devices, parse_devices
from fastalex.parallel.layout import ParallelPlan, resolve_layout
from fastalex.parallel.partition import parse_split, partition
from fastalex.parallel.schedules import check_micro_batches, default_micro_batches
from fastalex.training.memory import memory_limit

GIB = 2**30


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
        draw, json: files for a drawing of the network and for all numbers, if they are wanted.
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
    json: Path | None = None

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
    _check_files(options)
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
        options.draw,
        options.json,
    )


def _check_files(options: PlanOptions) -> None:
    """Check that the files can be written.

    Raises:
        ConfigurationError: one has another suffix, exists already, or cannot be written.
    """
    wanted = [(path, suffix) for path, suffix in ((options.draw, ".svg"), (options.json, ".json")) if path is not None]
    if options.force and not wanted:
        raise ConfigurationError("--force replaces the files of --draw and --json, which are not given; leave it out")
    for path, suffix in wanted:
        check_new_file(path, (suffix,), overwrite=options.force, remedy="add --force")


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

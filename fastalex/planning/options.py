"""TODO."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from typing import Annotated

import torch
from tyro.conf import OmitArgPrefixes, arg

from fastalex.cli import check_positive, optional
from fastalex.errors import ConfigurationError
from fastalex.network.precision import Precision
from fastalex.network.variation import build_architecture
from fastalex.parallel.devices import default_devices, parse_devices
from fastalex.parallel.layout import ScheduleName
from fastalex.parallel.partition import partition
from fastalex.parallel.schedules import check_micro_batches
from fastalex.planning.speed import (
    PAPER_EPOCHS,
    PAPER_IMAGES,
    Trial,
)
from fastalex.training.options import NetworkOptions

GIB = 2**30


@dataclass(frozen=True)
class PlanOptions:
    """What would fit, and how long training would take: parameters, memory, days. Nothing is trained."""

    network: OmitArgPrefixes[NetworkOptions] = field(default_factory=NetworkOptions)
    classes: int = 1000
    """Outputs of the last layer."""
    devices: Annotated[str | None, optional("DEVICES")] = None
    """One per stage, as for training. With --device-memory they need not be there."""
    device_memory: Annotated[float | None, optional("GIB")] = None
    """Memory of each device in GiB. Default: what the devices here have (CPU workers share the machine's)."""
    batch_size: Annotated[int, arg(aliases=("-b",))] = 128
    """Images per update."""
    micro_batches: Annotated[int | None, optional("N")] = None
    """In how many parts a batch passes through. Default: as many as devices on CPUs, 4 on GPUs, 1 on one device;
    training measures instead, and where to cut as well."""
    schedule: ScheduleName = "1f1b"
    """Order of the micro-batches' forward and backward passes: 1f1b, eager-1f1b or gpipe, with one stage a
    device."""
    precision: Precision = "fp32"
    """fp32, tf32 or bf16."""
    images: int = PAPER_IMAGES
    """Training images; the default is ILSVRC-2012's."""
    epochs: int = PAPER_EPOCHS
    """Passes over them."""
    measure: bool = False
    """Time 20 training steps on the devices, on random images."""


@dataclass(frozen=True)
class Plan:
    """What is planned: the trial says network, stages and batches."""

    trial: Trial
    network: NetworkOptions
    devices: str
    on_gpus: bool
    memory: tuple[int, ...]
    images: int
    epochs: int
    measure: bool


def resolve(options: PlanOptions) -> Plan:
    """Check the options.

    Raises:
        ConfigurationError: what is asked for cannot be.
    """
    for name in ("classes", "batch_size", "images", "epochs"):
        check_positive(f"--{name.replace('_', '-')}", getattr(options, name))
    if options.schedule in ("interleaved", "zero-bubble"):
        raise ConfigurationError(
            f"--schedule {options.schedule} puts several stages on a device, of which plan knows nothing; take another "
            "one"
        )
    architecture = build_architecture(options.network.arch, options.classes, options.network.variation)
    devices = options.devices or default_devices()
    count, on_gpus, memory = _devices(options, devices)
    stages = partition(architecture, count)
    micro_batches = options.micro_batches
    if micro_batches is None:
        micro_batches = 1 if count == 1 else 4 if on_gpus else count
    check_micro_batches(options.batch_size, micro_batches, count, options.schedule)
    trial = Trial(architecture, tuple(stages), options.batch_size, micro_batches, options.schedule, options.precision)
    return Plan(trial, options.network, devices, on_gpus, memory, options.images, options.epochs, options.measure)


def _devices(options: PlanOptions, text: str) -> tuple[int, bool, tuple[int, ...]]:
    """How many devices, whether they are GPUs, and the bytes that each has."""
    if options.device_memory is not None:
        if not (math.isfinite(options.device_memory) and options.device_memory > 0):
            raise ConfigurationError(f"--device-memory is {options.device_memory:g}; a positive number is wanted")
        names = [name.strip() for name in text.split(",")]
        if options.measure:
            parse_devices(text)  # to be measured they must be there
        on_cpu = [name == "cpu" for name in names]
        if not all(name == "cpu" or name.removeprefix("cuda:").isdecimal() for name in names) or len(set(on_cpu)) > 1:
            raise ConfigurationError(f"--devices {text}: write GPU numbers (0,1) or cpu (cpu,cpu)")
        return len(names), names[0] != "cpu", (round(options.device_memory * GIB),) * len(names)
    try:
        devices = parse_devices(text)
    except ConfigurationError as error:
        raise ConfigurationError(f"{error}; for devices that are elsewhere, add --device-memory GIB") from None
    if devices[0].type == "cuda":
        return len(devices), True, tuple(torch.cuda.get_device_properties(d).total_memory for d in devices)
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return len(devices), False, (machine // len(devices),) * len(devices)

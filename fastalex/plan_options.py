"""What ``python -m fastalex.plan`` takes, and the tables that it prints."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import torch
from rich.console import Console
from rich.table import Table
from tyro.conf import OmitArgPrefixes, arg

from fastalex.architecture import Variation, build_architecture
from fastalex.cli import optional
from fastalex.errors import ConfigurationError
from fastalex.evaluation_options import check_positive
from fastalex.launch import World, default_devices, parse_devices
from fastalex.model import Precision
from fastalex.options import NetworkOptions
from fastalex.partition import partition
from fastalex.pipeline import ScheduleName, check_micro_batches
from fastalex.planning import (
    GTX_580_BYTES,
    PAPER_DAYS,
    PAPER_EPOCHS,
    PAPER_IMAGES,
    RECORDS,
    LayerCost,
    Speed,
    StageMemory,
    Trial,
    layer_costs,
    paper_statements,
    recorded_speeds,
    stage_memory,
    time_steps,
)
from fastalex.progress import print_whole

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


def report(world: World, plan: Plan) -> None:
    """Print the tables on the first worker; all of them take part where steps are timed."""
    measured = time_steps(world, plan.trial) if plan.measure else None
    if not world.is_first:
        return
    trial = plan.trial
    implementation = "triton" if plan.on_gpus else "native"
    layers = layer_costs(trial.architecture, trial.precision, implementation)
    stages = stage_memory(
        trial.architecture, layers, trial.stages, trial.micro_batches, trial.schedule, trial.precision
    )
    whole = stage_memory(trial.architecture, layers, [trial.architecture.block_names], 1, "1f1b", trial.precision)[0]
    console = Console(soft_wrap=True, highlight=False)
    console.print(_layer_table(layers))
    console.print(_statement_table(layers, whole, trial.batch_size))
    console.print(_memory_table(plan, stages))
    print_whole(console, _time_table(plan, measured))
    for note in _notes(plan):
        console.print(note)


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


# --- tables -----------------------------------------------------------------------------------------------------------


def _table(title: str, *columns: str) -> Table:
    """The first column to the left, all others to the right."""
    table = Table(title=title, title_justify="left")
    for number, name in enumerate(columns):
        table.add_column(name, justify="right" if number else "left", overflow="fold")
    return table


def _layer_table(layers: Sequence[LayerCost]) -> Table:
    parameters, macs = sum(layer.parameters for layer in layers), sum(layer.macs for layer in layers)
    kept = sum(layer.kept_bytes for layer in layers)
    table = _table(
        "layers", "layer", "output", "parameters", "share", "arithmetic of a step", "share", "kept per image"
    )
    for layer in layers:
        table.add_row(
            layer.name,
            "x".join(map(str, layer.output)),
            f"{layer.parameters:,}",
            f"{100 * layer.parameters / parameters:.2f} %",
            f"{layer.macs / 1e6:,.1f} MMAC",
            f"{100 * layer.macs / macs:.1f} %",
            f"{layer.kept_bytes / 1024:,.0f} KiB",
        )
    table.add_section()
    table.add_row("all", "", f"{parameters:,}", "", f"{macs / 1e6:,.1f} MMAC", "", f"{kept / 1024:,.0f} KiB")
    return table


def _statement_table(layers: Sequence[LayerCost], whole: StageMemory, batch_size: int) -> Table:
    table = _table("what the paper says of its network", "paper", "this network", "holds")
    for statement in paper_statements(layers, whole, batch_size):
        table.add_row(statement.paper, statement.here, "yes" if statement.holds else "no")
    return table


def _memory_table(plan: Plan, stages: Sequence[StageMemory]) -> Table:
    trial = plan.trial
    batches = f"batch {trial.batch_size} in {trial.micro_batches} parts, {trial.precision}"
    table = _table(f"memory in GiB: {batches}", "", *(f"{_span(stage.blocks)}" for stage in stages))
    table.add_row("device", *plan.devices.split(","))
    rows: dict[str, Sequence[float]] = {
        "weights, gradients, velocities": [3 * stage.weights for stage in stages],
        "low-precision copies": [stage.copies for stage in stages],
        "activations under way": [stage.activations * stage.in_flight * trial.batch_size for stage in stages],
        "images, boundaries, fc rows": [stage.whole_batch * trial.batch_size for stage in stages],
        "together": [stage.total(trial.batch_size) for stage in stages],
        "device has": list(plan.memory),
    }
    for name, values in rows.items():
        table.add_row(name, *(f"{value / GIB:.2f}" for value in values))
    pairs = list(zip(stages, plan.memory, strict=True))
    table.add_row("fits", *("yes" if stage.total(trial.batch_size) <= has else "no" for stage, has in pairs))
    table.add_row("largest batch that fits", *(_largest(stage, has, trial) for stage, has in pairs))
    table.add_row("on one GTX 580 (3 GiB)", *(_largest(stage, GTX_580_BYTES, trial) for stage in stages))
    return table


def _largest(stage: StageMemory, memory: int, trial: Trial) -> str:
    """The largest batch that fits and that the micro-batches divide."""
    return f"{stage.largest_batch(memory) // trial.micro_batches * trial.micro_batches:,}"


def _time_table(plan: Plan, measured: float | None) -> Table:
    title = f"time for {plan.epochs} epochs of {plan.images:,} images"
    table = _table(title, "device", "setting", "images/s", "days", "known from")
    fast, slow = (Speed("", "", "", PAPER_IMAGES * PAPER_EPOCHS / 86_400 / days) for days in PAPER_DAYS)
    speed = f"{slow.images_per_second:.0f} to {fast.images_per_second:.0f}"
    days = f"{fast.days(plan.images, plan.epochs):.2f} to {slow.days(plan.images, plan.epochs):.2f}"
    table.add_row("two GTX 580, 3 GB each", "2012, batch 128", speed, days, "the paper: 90 epochs in 5 to 6 days")
    speeds = _records(plan)
    if measured is not None:
        trial = plan.trial
        setting = f"{plan.devices}, batch {trial.batch_size}, {trial.precision}"
        speeds = [Speed(f"{trial.steps} steps here, without data", "this machine", setting, measured), *speeds]
    for known in speeds:
        cells = (f"{known.images_per_second:,.1f}", f"{known.days(plan.images, plan.epochs):,.2f}", known.source)
        table.add_row(known.device, known.setting, *cells)
    return table


def _records(plan: Plan) -> list[Speed]:
    return recorded_speeds(plan.network.arch) if plan.network.variation == Variation() else []


def _notes(plan: Plan) -> list[str]:
    notes = ["memory is counted, not measured; the libraries' own (CUDA's context, cuDNN's workspace) comes on top"]
    if plan.network.variation != Variation():
        notes.append("no records: they are of the named networks, unvaried; --measure times 20 steps here")
    elif not RECORDS.is_dir():
        notes.append("no records: bench/results is part of a checkout, not of a package; --measure times 20 steps here")
    elif not _records(plan):
        notes.append(f"no records of {plan.network.arch} in bench/results; --measure times 20 steps here")
    return notes


def _span(blocks: Sequence[str]) -> str:
    return blocks[0] if len(blocks) == 1 else f"{blocks[0]} to {blocks[-1]}"

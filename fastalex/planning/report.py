"""The tables that ``python -m fastalex.plan`` prints. They fit on 80 columns with up to two devices."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table

from fastalex.console import console
from fastalex.files import write_atomically
from fastalex.network.footprint import LayerCost, layer_costs
from fastalex.network.variation import Variation
from fastalex.parallel.stage_memory import StageMemory, stage_memory
from fastalex.parallel.world import World
from fastalex.planning.drawing import draw_network
from fastalex.planning.options import GIB, TrainingPlan
from fastalex.planning.speed import (
    ROUNDS,
    STEPS_PER_ROUND,
    Speed,
    known_speeds,
    measure_blocks,
    measure_speed,
    paper_speeds,
)

_UNITS = (("days", 1.0), ("hours", 24.0), ("minutes", 24.0 * 60))

MIB = 2**20
GTX_580_BYTES = 3 * GIB


def report(world: World, plan: TrainingPlan) -> None:
    """Print the tables on the first worker, and draw. All workers call this; they take part in a measurement."""
    measured = seconds = None
    if plan.measure:
        measured = measure_speed(world, plan.architecture, plan.parallel, plan.batch_size, plan.precision)
        if plan.draw:
            seconds = measure_blocks(world, plan.architecture, plan.parallel, plan.batch_size, plan.precision)
    if not world.is_first:
        return
    parallel = plan.parallel
    implementation = "native" if plan.devices[0].type == "cpu" else "triton"
    layers = layer_costs(plan.architecture, plan.precision, implementation)
    stages = stage_memory(
        plan.architecture, layers, parallel.split, parallel.micro_batches, parallel.schedule, plan.precision
    )
    out = console()
    out.print(_layer_table(layers))
    out.print(_memory_table(plan, stages))
    out.print(_time_table(plan, measured))
    for note in _notes(plan):
        out.print(note)
    if plan.draw:
        devices = [str(parallel.device_of(stage)) for stage in range(parallel.layout.stages)]
        drawing = draw_network(plan.architecture, parallel.split, devices, seconds=seconds, batch_size=plan.batch_size)
        write_atomically(plan.draw, drawing)
        out.print(f"written: {plan.draw}")
    if plan.json:
        write_atomically(plan.json, json.dumps(_record(plan, layers, stages, measured), indent=1) + "\n")
        out.print(f"written: {plan.json}")


def _record(
    plan: TrainingPlan, layers: Sequence[LayerCost], stages: Sequence[StageMemory], measured: float | None
) -> dict[str, Any]:
    """All numbers of the tables; memory in bytes."""
    devices = [str(plan.parallel.device_of(stage)) for stage in range(len(stages))]
    return {
        "architecture": plan.network.arch,
        "variation": asdict(plan.network.variation),
        "classes": plan.architecture.num_classes,
        "parameters": sum(layer.parameters for layer in layers),
        "training_macs_per_image": sum(layer.macs for layer in layers),
        "batch_size": plan.batch_size,
        "micro_batches": plan.parallel.micro_batches,
        "precision": plan.precision,
        "stages": [
            {
                "device": device,
                "blocks": list(stage.blocks),
                "memory": stage.total(plan.batch_size),
                "largest_batch_in_3_gib": stage.largest_batch(GTX_580_BYTES),
            }
            for device, stage in zip(devices, stages, strict=True)
        ],
        "images_per_second": measured,
    }


def _new_table(title: str, *columns: str) -> Table:
    """A table with its first column left-aligned and all others right-aligned."""
    table = Table(title=title, title_justify="left")
    for index, name in enumerate(columns):
        table.add_column(name, justify="right" if index else "left", overflow="fold")
    return table


def _layer_table(layers: Sequence[LayerCost]) -> Table:
    parameters, macs = sum(layer.parameters for layer in layers), sum(layer.macs for layer in layers)
    activations = sum(layer.kept_bytes for layer in layers)
    columns = ("layer", "output", "parameters", "params %", "MMAC", "MMAC %", "KiB kept")
    table = _new_table("layers; MMAC and KiB are per image of a training step", *columns)
    for layer in layers:
        table.add_row(
            layer.name,
            "x".join(map(str, layer.output)),
            f"{layer.parameters:,}",
            f"{100 * layer.parameters / parameters:.2f} %",
            f"{layer.macs / 1e6:,.1f}",
            f"{100 * layer.macs / macs:.1f} %",
            f"{layer.kept_bytes / 1024:,.0f}",
        )
    table.add_section()
    table.add_row("total", "", f"{parameters:,}", "", f"{macs / 1e6:,.1f}", "", f"{activations / 1024:,.0f}")
    return table


def _memory_table(plan: TrainingPlan, stages: Sequence[StageMemory]) -> Table:
    parallel, batch_size = plan.parallel, plan.batch_size
    batches = f"batch {batch_size}"
    if parallel.micro_batches > 1:
        batches += f" in {parallel.micro_batches} micro-batches"
    if len(stages) > 1:
        batches += f" ({parallel.schedule})"
    table = _new_table(f"memory in MiB: {batches}, {plan.precision}", "", *(_span(stage.blocks) for stage in stages))
    table.add_row("device", *map(str, parallel.devices))
    rows: dict[str, Sequence[float]] = {
        "weights, gradients, momentum": [3 * stage.weights for stage in stages],
        "low-precision copies": [stage.copies for stage in stages],
        "activations": [stage.activations * stage.in_flight * batch_size for stage in stages],
        "images, boundaries, deferred": [stage.whole_batch * batch_size for stage in stages],
        "total": [stage.total(batch_size) for stage in stages],
        "device memory": list(plan.memory),
    }
    for name, values in rows.items():
        if any(values):  # nothing keeps low-precision copies in fp32
            table.add_row(name, *(_mebibytes(value) for value in values))
    pairs = list(zip(stages, plan.memory, strict=True))
    table.add_row("fits", *("yes" if stage.total(batch_size) <= memory else "no" for stage, memory in pairs))
    table.add_row("largest batch", *(_largest_batch(plan, stage, memory) for stage, memory in pairs))
    table.add_row("largest on a GTX 580 (3 GiB)", *(_largest_batch(plan, stage, GTX_580_BYTES) for stage in stages))
    return table


def _mebibytes(value: float) -> str:
    """With a decimal where there are few."""
    return f"{value / MIB:,.{0 if value >= 10 * MIB else 1}f}"


def _largest_batch(plan: TrainingPlan, stage: StageMemory, memory: int) -> str:
    """The largest batch that fits and that the number of micro-batches divides."""
    micro_batches = plan.parallel.micro_batches
    return f"{stage.largest_batch(memory) // micro_batches * micro_batches:,}"


def _time_table(plan: TrainingPlan, measured: float | None) -> Table:
    slowest, fastest = paper_speeds()
    speeds = _known(plan)
    if measured is not None:
        devices = ",".join(map(str, plan.devices))
        speeds = [Speed("this machine", f"{devices}, {plan.precision}, batch {plan.batch_size}", measured), *speeds]
    unit, per_day = _unit_of_time(min([slowest, *(speed.images_per_second for speed in speeds)]), plan)

    def time(images_per_second: float) -> str:
        return f"{per_day * Speed('', '', images_per_second).days(plan.images, plan.epochs):,.2f}"

    title = f"time for {plan.epochs} epochs of {plan.images:,} images"
    table = _new_table(title, "device", "setting", "images/s", unit)
    paper = (f"{slowest:.0f} to {fastest:.0f}", f"{time(fastest)} to {time(slowest)}")
    table.add_row("two GTX 580", "the paper, batch 128", *paper)
    for speed in speeds:
        rate = speed.images_per_second
        table.add_row(speed.device, speed.setting, f"{rate:,.1f}", time(rate))
    return table


def _unit_of_time(slowest: float, plan: TrainingPlan) -> tuple[str, float]:
    """The unit for a table of times, and how many of it a day has: the largest that the longest time reaches."""
    longest = Speed("", "", slowest).days(plan.images, plan.epochs)
    return next(((unit, per_day) for unit, per_day in _UNITS if longest * per_day >= 1), _UNITS[-1])


def _known(plan: TrainingPlan) -> list[Speed]:
    return known_speeds(plan.network.arch) if plan.network.variation == Variation() else []


def _notes(plan: TrainingPlan) -> list[str]:
    notes = [
        "Memory is counted, not measured. Libraries need more: CUDA's context and cuDNN's",
        "workspaces are not included.",
    ]
    if _known(plan):
        notes.append('Known speeds: "steps" are without image loading, "training" is a whole run.')
    if plan.measure:
        notes.append(f"This machine: {ROUNDS * STEPS_PER_ROUND} training steps on random images, without a loader.")
    if plan.network.variation != Variation():
        notes.append("Known speeds are of networks without variations; measure this one here.")
    elif not _known(plan):
        notes.append(f"No speed of {plan.network.arch} is known; measure it here.")
    return notes


def _span(blocks: Sequence[str]) -> str:
    return blocks[0] if len(blocks) == 1 else f"{blocks[0]} to {blocks[-1]}"

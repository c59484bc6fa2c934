"""What ``python -m fastalex.plan`` takes, and the tables that it prints."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from fastalex.console import print_whole
from fastalex.network.footprint import LayerCost, layer_costs
from fastalex.network.variation import Variation
from fastalex.parallel.stage_memory import StageMemory, stage_memory
from fastalex.parallel.world import World
from fastalex.planning.options import GIB, Plan
from fastalex.planning.speed import (
    GTX_580_BYTES,
    PAPER_DAYS,
    PAPER_EPOCHS,
    PAPER_IMAGES,
    RECORDS,
    Speed,
    Trial,
    paper_statements,
    recorded_speeds,
    time_steps,
)


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

"""What a run leaves to be found out on its devices: where to cut the network, the schedule, how many micro-batches.

All workers measure at the same time, as they compute at the same time in training. The first one decides, because the
others' clocks would say something else, and the decision is written into the run, so that resuming keeps it.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from fastalex.files import write_atomically
from fastalex.network.architecture import Architecture, ConvBlock, block_shapes
from fastalex.network.footprint import training_macs
from fastalex.network.model import AlexNet
from fastalex.parallel.costs import BlockCost, Link, measure_blocks, measure_link, measure_reduction, seconds_at
from fastalex.parallel.layout import ScheduleName
from fastalex.parallel.partition import Stages, all_cuts, choose, format_split, parse_split, partition
from fastalex.parallel.schedules import possible_micro_batches, puts_off, usual_micro_batches
from fastalex.parallel.simulate import INSTANT, Orders, Plan, Result, orders
from fastalex.parallel.torchrun import machines
from fastalex.parallel.world import World
from fastalex.training.config import RunConfig

# On a CPU, passes are timed with this many images at most; for more, time grows in proportion.
_MOST_IMAGES = 16


# Of each device, where their number is open.
_MOST_STAGES = 4


def settle(world: World, config: RunConfig) -> RunConfig:
    """The run with its cut, schedule and number of micro-batches decided; measures what is left to that.

    Every worker calls this, and has its part of the layout afterwards. The first one prints what stages cost and saves
    the result in the run folder.
    """
    (layout, schedule), batch_size = config.arranged, config.recipe.batch_size
    architecture = config.network.build_architecture()
    if layout.stages == 1:
        settled = replace(config, micro_batches=config.micro_batches or 1)
    elif _asks_for_costs(world, config):
        settled = _measured(world, config, architecture)
    else:
        usual = usual_micro_batches(layout, schedule, batch_size, world.device.type)
        analytic = format_split(partition(architecture, layout.stages))
        split = analytic if config.split == "analytic" else config.split
        settled = replace(config, split=split, micro_batches=config.micro_batches or usual)
        if world.is_first and _saved_costs(config) is None:  # a run that goes on has shown its costs
            _print(arithmetic_table(architecture, parse_split(architecture, split, layout.stages)))
    if world.is_first and settled != config:
        settled.save()
    if settled.layout != world.layout:
        world.arrange(settled.layout)
    return settled


def _asks_for_costs(world: World, config: RunConfig) -> bool:
    """Whether anything is left to measurements."""
    if config.split in ("auto", "analytic"):
        return config.split == "auto"
    unordered = config.arranged[1] == "zero-bubble" and world.from_first(lambda: _saved_costs(config) is None)
    return config.micro_batches is None or unordered


def _costs_of(config: RunConfig) -> Path:
    return Path(config.output) / "costs.json"


def _saved_costs(config: RunConfig) -> dict[str, Any] | None:
    """What the run has measured, if it was on so many devices: one that goes on may have others."""
    path = _costs_of(config)
    saved: dict[str, Any] | None = json.loads(path.read_text()) if path.is_file() else None
    return saved if saved is not None and len(saved["blocks"]) == config.layout.ranks else None


def orders_of(world: World, config: RunConfig, architecture: Architecture) -> Orders | None:
    """The order of a settled run's passes, where the schedule is ``zero-bubble``: from the costs that were measured, or
    from counted arithmetic where none were. None for other schedules, which have an order of their own."""
    (layout, schedule), rows = config.arranged, config.recipe.batch_size // config.layout.replicas
    if layout.stages == 1 or schedule != "zero-bubble":
        return None

    def find() -> Orders:
        cut = parse_split(architecture, config.split, layout.stages)
        plan = Plan(cut, layout.ranks, rows, config.micro_batches or 1, schedule, layout.replicas)
        costs: Sequence[Sequence[BlockCost]] = [counted_costs(architecture, rows)]
        if (saved := _saved_costs(config)) is not None:
            costs = [[BlockCost.from_json(cost) for cost in rank] for rank in saved["blocks"]]
            link, reduce_link = (Link(**saved[name]) for name in ("link", "reduce_link"))
            plan = replace(plan, cores=saved["cores"], link=link, reduce_link=reduce_link)
        return orders(plan, costs)

    return world.from_first(find)


def counted_costs(architecture: Architecture, batch_size: int) -> list[BlockCost]:
    """Costs where nothing is measured: multiply-accumulates for seconds.

    Args:
        batch_size: images per step of one replica.
    """
    counted = []
    for index, (block, shape) in enumerate(zip(architecture.blocks, block_shapes(architecture), strict=True)):
        macs, convolves = float(shape.macs), isinstance(block, ConvBlock)
        back = macs if index else 0.0  # nobody needs the images' gradient
        product = 0.0 if convolves else batch_size * macs
        counted.append(
            BlockCost(
                shape.name,
                forward=((1, macs),),
                backward=((1, back + macs * convolves),),
                finish=product,
                output_bytes=0,
                parameter_bytes=0,
                input_backward=((1, back),) if convolves else (),
                put_off=((1, macs),) if convolves else (),
                product=product,
            )
        )
    return counted


def _measured(world: World, config: RunConfig, architecture: Architecture) -> RunConfig:
    layout, batch_size = config.layout, config.recipe.batch_size // config.layout.replicas
    earlier = world.from_first(lambda: _settled_before(config))
    if earlier is not None:
        return replace(config, **earlier)
    possible = _possible(config, architecture)
    model = config.network.build(seed=0)
    model.set_precision(config.precision)
    sizes = sorted({batch_size // count for _, counts, _ in possible for count in counts})
    if world.device.type == "cpu":
        sizes = sorted({min(sizes[0], _MOST_IMAGES), min(sizes[-1], _MOST_IMAGES)})
    costs, cores = measure_costs(world, model, batch_size, sizes)
    link, reduce_link = measure_links(world)

    def decide() -> dict[str, Any]:
        results = [
            choose(
                Plan((), layout.ranks, batch_size, 1, schedule, layout.replicas, cores, link, reduce_link),
                costs,
                cuts,
                counts,
            )
            for schedule, counts, cuts in possible
        ]
        (plan, result), *others = sorted(results, key=lambda pair: pair[1].seconds)
        _print(cost_table(costs, plan, result, others))
        _save_costs(_costs_of(config), costs, plan)
        return {
            "schedule": plan.schedule,
            "stages": len(plan.stages),
            "split": format_split(plan.stages),
            "micro_batches": plan.micro_batches,
        }

    return replace(config, **world.from_first(decide))


def _possible(
    config: RunConfig, architecture: Architecture
) -> list[tuple[ScheduleName, Sequence[int], Sequence[Stages]]]:
    """What to choose from: schedules, each with its numbers of micro-batches and its cuts.

    Where the schedule is open, so is how many stages each device has; of ``zero-bubble``, where that is not given.
    """
    every: list[ScheduleName] = ["1f1b", "eager-1f1b", "interleaved"]
    if not config.cuda_graphs:  # which it cannot have
        every.append("zero-bubble")
    schedules = every if config.schedule is None else [config.schedule]
    possible: list[tuple[ScheduleName, Sequence[int], Sequence[Stages]]] = []
    for schedule in schedules:
        layout, given = replace(config, schedule=schedule).layout, config.micro_batches
        counts = possible_micro_batches(layout, schedule, config.recipe.batch_size, max(16, given or 0))
        if given is not None:
            counts = [count for count in counts if count == given]
        if config.split != "auto":
            cuts = [parse_split(architecture, config.split, layout.stages)]
        elif schedule == "zero-bubble" and config.stages is None:
            numbers = range(layout.ranks, min(_MOST_STAGES * layout.ranks, len(architecture.block_names)) + 1)
            cuts = [cut for number in numbers for cut in all_cuts(architecture.block_names, number)]
        else:
            cuts = list(all_cuts(architecture.block_names, layout.stages))  # none into more stages than blocks
        if counts and cuts:
            possible.append((schedule, counts, cuts))
    return possible


def _settled_before(config: RunConfig) -> dict[str, Any] | None:
    """What an earlier attempt at the same run has decided, if it got so far before its workers were restarted."""
    if not (Path(config.output) / "config.json").is_file():
        return None
    saved = RunConfig.load(Path(config.output))
    decided = {name: getattr(saved, name) for name in ("schedule", "stages", "split", "micro_batches")}
    return decided if replace(config, **decided) == saved != config else None


def _save_costs(path: Path, costs: Sequence[Sequence[BlockCost]], plan: Plan) -> None:
    """What was measured: blocks by rank, and the links between stages and between replicas."""
    blocks = [[cost.to_json() for cost in rank] for rank in costs]
    links = {"link": asdict(plan.link), "reduce_link": asdict(plan.reduce_link)}
    write_atomically(path, json.dumps({"blocks": blocks, **links, "cores": plan.cores}, indent=1) + "\n")


def measure_costs(
    world: World, model: AlexNet, batch_size: int, micro_batch_sizes: Sequence[int]
) -> tuple[list[list[BlockCost]], float]:
    """What the blocks cost on every rank of a pipeline, and the cores that all workers share.

    Costs are those of a worker that has its threads' cores for itself; the cores are counted as
    :class:`fastalex.parallel.simulate.Plan` does.

    Args:
        batch_size: images per step of one replica.
    """
    layout = world.layout
    put_off = layout.ranks > 1 and layout.replicas == 1
    ours = measure_blocks(model, world.device, batch_size, micro_batch_sizes, put_off=put_off, together=world.barrier)
    everyone = world.gather_objects([cost.to_json() for cost in ours])
    cores = all_cores(world.device)
    alone = min(1.0, cores / world.size)
    ranks = range(layout.ranks)
    return [[BlockCost.from_json(cost).times(alone) for cost in everyone[rank]] for rank in ranks], cores


def measure_links(world: World) -> tuple[Link, Link]:
    """The connections between the stages of a replica, and between replicas."""
    layout, device = world.layout, world.device
    link = reduce_link = INSTANT
    if layout.ranks > 1:
        link = measure_link(world.pipeline_rank, device, world.pipeline_group)
    if layout.replicas > 1:
        reduce_link = measure_reduction(device, world.replica_group, layout.replicas)
    return link, reduce_link


def all_cores(device: torch.device) -> float:
    """How many workers can compute at once at full speed, on all machines together, which are taken to be alike."""
    if device.type == "cuda":
        return math.inf
    return machines() * len(os.sched_getaffinity(0)) / torch.get_num_threads()


def arithmetic_table(architecture: Architecture, stages: Stages) -> Table:
    """What every stage counts in arithmetic, where nothing is measured."""
    macs = training_macs(architecture)
    table = Table(title="multiply-accumulates of a training step by stage, counted", title_justify="left")
    for name in ("stage", "blocks", "MMAC per image", "share"):
        table.add_column(name, justify="left" if name == "blocks" else "right")
    for index, stage in enumerate(stages):
        count = sum(macs[name] for name in stage)
        share = f"{100 * count / sum(macs.values()):.1f} %"
        table.add_row(str(index), ", ".join(stage), f"{count / 1e6:,.1f}", share)
    return table


def _print(table: Table) -> None:
    Console(soft_wrap=True, highlight=False).print(table)


def cost_table(
    costs: Sequence[Sequence[BlockCost]], plan: Plan, result: Result, others: Sequence[tuple[Plan, Result]] = ()
) -> Table:
    """What every block costs a step on the device that it is on, and what its stage costs.

    Args:
        others: the best of each other schedule, slower than the one chosen.
    """
    images = plan.batch_size // plan.micro_batches
    table = Table(
        title=f"measured milliseconds per step of {plan.batch_size} images in {plan.micro_batches} "
        + ("micro-batch" if plan.micro_batches == 1 else "micro-batches"),
        title_justify="left",
    )
    for name in ("stage", "block"):
        table.add_column(name)
    for name in ("forward", "backward", "update", "block", "stage", "sends KiB/image"):
        table.add_column(name, justify="right")
    for index, stage in enumerate(plan.stages):
        blocks = {cost.name: cost for cost in costs[index % plan.ranks]}
        later = plan.schedule != "zero-bubble" and puts_off(index, plan.ranks, plan.micro_batches, plan.replicas)
        parts = {
            name: (
                plan.micro_batches * seconds_at(blocks[name].forward, images),
                plan.micro_batches * blocks[name].backward_seconds(images, puts_off=later),
                blocks[name].end_seconds(images, plan.micro_batches, puts_off=later),
            )
            for name in stage
        }
        total = sum(map(sum, parts.values()))
        for name in stage:
            ends = name == stage[-1]
            sends = f"{blocks[name].output_bytes / 1024:.0f}" if ends and index < len(plan.stages) - 1 else ""
            seconds = (*parts[name], sum(parts[name]))
            numbers = [f"{1000 * value:.1f}" for value in seconds]
            table.add_row(str(index), name, *numbers, f"{1000 * total:.1f}" if ends else "", sends, end_section=ends)

    def rate(chosen: Plan, result: Result) -> str:
        return f"{chosen.replicas * chosen.batch_size / result.seconds:.1f} images/s"

    table.caption = f"expected: {rate(plan, result)} and less, as bookkeeping is not counted"
    for other, its in others:
        table.caption += f"; by {other.schedule} {rate(other, its)} at best"
    return table

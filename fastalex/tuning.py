"""What a run leaves to be found out on its devices: where to cut the network, and into how many micro-batches.

All workers measure at the same time, as they compute at the same time in training. The first one decides, because the
others' clocks would say something else, and the decision is written into the run, so that resuming keeps it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from fastalex.architecture import Architecture
from fastalex.config import RunConfig
from fastalex.costs import BlockCost, Link, measure_blocks, measure_link, measure_reduction, seconds_at
from fastalex.launch import World
from fastalex.layout import possible_micro_batches, usual_micro_batches
from fastalex.model import AlexNet
from fastalex.partition import Stages, all_cuts, choose, cut_before, first_blocks, partition
from fastalex.simulate import INSTANT, Plan, Result

# Passes are timed with this many images at most; for more, time grows in proportion.
_MOST_IMAGES = 16


def settle(world: World, config: RunConfig) -> RunConfig:
    """The run with its cut and its number of micro-batches decided; measures if either is left to that.

    Every worker calls this. The first one saves the result in the run folder.
    """
    layout, batch_size = config.layout, config.recipe.batch_size
    architecture = config.network.build_architecture()
    if layout.stages == 1:
        settled = replace(config, micro_batches=config.micro_batches or 1)
    elif config.split == "analytic":
        usual = usual_micro_batches(layout, config.schedule, batch_size, world.device.type)
        split = first_blocks(partition(architecture, layout.stages))
        settled = replace(config, split=split, micro_batches=config.micro_batches or usual)
    elif config.split == "auto" or config.micro_batches is None:
        settled = _measured(world, config, architecture)
    else:
        return config
    if world.is_first and settled != config:
        settled.save()
    return settled


def _measured(world: World, config: RunConfig, architecture: Architecture) -> RunConfig:
    layout, batch_size = config.layout, config.recipe.batch_size // config.layout.replicas
    earlier = world.from_first(lambda: _settled_before(config))
    if earlier is not None:
        return earlier
    given = [config.micro_batches] if config.micro_batches else None
    counts = given or possible_micro_batches(layout, config.schedule, config.recipe.batch_size)
    model = config.network.build(seed=0)
    model.set_precision(config.precision)
    sizes = {min(batch_size // count, _MOST_IMAGES) for count in counts}
    costs, cores = measure_costs(world, model, batch_size, sorted({min(sizes), max(sizes)}))
    link, reduce_link = measure_links(world)

    def decide() -> tuple[str, int]:
        cuts: Sequence[Stages] = (
            [cut_before(architecture, config.split, layout.stages)]
            if config.split != "auto"
            else [*all_cuts(architecture.block_names, layout.stages)]
        )
        plan = Plan((), layout.ranks, batch_size, 1, config.schedule, layout.replicas, cores, link, reduce_link)
        plan, result = choose(plan, costs, cuts, counts)
        Console(soft_wrap=True, highlight=False).print(cost_table(costs, plan, result))
        return first_blocks(plan.stages), plan.micro_batches

    split, micro_batches = world.from_first(decide)
    return replace(config, split=split, micro_batches=micro_batches)


def _settled_before(config: RunConfig) -> RunConfig | None:
    """What an earlier attempt at the same run has decided, if it got so far before its workers were restarted."""
    if not (Path(config.output) / "config.json").is_file():
        return None
    saved = RunConfig.load(Path(config.output))
    same = replace(saved, split=config.split, micro_batches=config.micro_batches) == config
    return saved if same and saved != config else None


def measure_costs(
    world: World, model: AlexNet, batch_size: int, micro_batch_sizes: Sequence[int]
) -> tuple[list[list[BlockCost]], float]:
    """What the blocks cost on every rank of a pipeline, and the cores that all workers share.

    Costs are those of a worker that has its threads' cores for itself; the cores are counted as
    :class:`fastalex.simulate.Plan` does.

    Args:
        batch_size: images per step of one replica.
    """
    ours = measure_blocks(model, world.device, batch_size, micro_batch_sizes, together=world.barrier)
    everyone = world.gather_objects([cost.to_json() for cost in ours])
    cores = machine_cores(world.device)
    alone = min(1.0, cores / world.size)
    ranks = range(world.layout.ranks)
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


def machine_cores(device: torch.device) -> float:
    """How many workers can compute at once at full speed."""
    if device.type == "cuda":
        return math.inf
    return len(os.sched_getaffinity(0)) / torch.get_num_threads()


def cost_table(costs: Sequence[Sequence[BlockCost]], plan: Plan, result: Result) -> Table:
    """What every block costs a step on the device that it is on, and what its stage costs."""
    images = plan.batch_size // plan.micro_batches
    table = Table(
        title=f"measured milliseconds per step of {plan.batch_size} images in {plan.micro_batches} micro-batches",
        title_justify="left",
    )
    for name in ("stage", "block"):
        table.add_column(name)
    for name in ("forward", "backward", "update", "block", "stage", "sends KiB/image"):
        table.add_column(name, justify="right")
    for index, stage in enumerate(plan.stages):
        blocks = {cost.name: cost for cost in costs[index % plan.ranks]}
        parts = {
            name: (
                plan.micro_batches * seconds_at(blocks[name].forward, images),
                plan.micro_batches * seconds_at(blocks[name].backward, images),
                blocks[name].finish,
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
    table.caption = f"expected: {plan.replicas * plan.batch_size / result.seconds:.1f} images/s"
    return table

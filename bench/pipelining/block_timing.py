"""Measures what each block of a network costs on the device at hand, and how fast the links between workers are."""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

import kernels
from fastalex.network.architecture import LinearBlock, block_shapes
from fastalex.network.model import AlexNet, Stage
from fastalex.parallel.world import World
from pipelining.block_costs import INSTANT, BlockCost, Link

REPEATS = 3
"""How often each block is timed, after one untimed round; the median counts."""

Passes = list[tuple[float, float, float]]
"""Seconds of each block's forward pass, backward pass and deferred weight gradients."""


def measure_costs(
    world: World, model: AlexNet, batch_size: int, micro_batch_sizes: Sequence[int]
) -> list[list[BlockCost]]:
    """Measure the costs of all blocks on every rank of a pipeline. Every worker calls this.

    All workers measure at the same time, as they compute at the same time in training. The results are scaled to those
    of a worker that has the cores of its threads to itself.

    Args:
        batch_size: images per step of one replica.
        micro_batch_sizes: numbers of images for which the passes are timed.
    """
    layout = world.layout
    convolutions = layout.ranks > 1 and layout.replicas == 1
    own = measure_blocks(model, world.device, batch_size, micro_batch_sizes, convolutions, world.barrier)
    gathered = world.gather_objects([cost.to_json() for cost in own])
    alone = min(1.0, shared_cores(world.device) / world.size)
    return [[BlockCost.from_json(cost).scaled(alone) for cost in gathered[rank]] for rank in range(layout.ranks)]


def shared_cores(device: torch.device) -> float:
    """How many workers can compute at full speed at the same time: this machine's cores over a worker's threads."""
    if device.type == "cuda":
        return math.inf
    return len(os.sched_getaffinity(0)) / torch.get_num_threads()


def measure_blocks(
    model: AlexNet,
    device: torch.device,
    batch_size: int,
    micro_batch_sizes: Sequence[int],
    convolutions: bool = False,
    together: Callable[[], Any] = lambda: None,
) -> list[BlockCost]:
    """Time every block of a network in training on random images.

    The times are those of a step's later micro-batches: convolutions transform their weights in the first one.

    Args:
        model: moved to `device` and left in training mode, without gradients; its weights stay as they are.
        batch_size: images per step, from which the deferred weight gradients are computed.
        micro_batch_sizes: numbers of images for which the passes are timed.
        convolutions: also measure deferred weight gradients of convolutions.
        together: called before each timing. Workers that share a machine wait for each other here.
    """
    model.to(device)
    architecture, dtype = model.architecture, model.compute_dtype
    stages = [model.stage([name]).train() for name in architecture.block_names]
    sizes, side = sorted(micro_batch_sizes), architecture.image_size
    inputs = [
        torch.randn(count, 3, side, side, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last)
        for count in sizes
    ]
    whole = _measure_passes(stages, inputs, device, together, convolutions=False)
    split = _measure_passes(stages, inputs, device, together, convolutions=True) if convolutions else []
    costs, shapes, in_features = [], block_shapes(architecture), 0
    for index, (spec, shape) in enumerate(zip(architecture.blocks, shapes, strict=True)):
        curves: dict[str, Any] = {
            "forward": _curve(sizes, [passes[index][0] for passes in whole]),
            "backward": _curve(sizes, [passes[index][1] for passes in whole]),
        }
        is_linear = isinstance(spec, LinearBlock)
        if split and not is_linear:
            curves["input_backward"] = _curve(sizes, [passes[index][1] for passes in split])
            curves["deferred"] = _curve(sizes, [passes[index][2] for passes in split])
        rows = torch.randn(batch_size, in_features, device=device, dtype=dtype) if is_linear else None
        together()
        finish = _finish_seconds(stages[index], rows, device)
        in_features = math.prod(shape.output)
        costs.append(
            BlockCost(
                name=shape.name,
                finish=finish,
                output_bytes=in_features * dtype.itemsize,
                parameter_bytes=4 * shape.parameters,
                **curves,
            )
        )
    model.zero_grad()
    return costs


def _curve(sizes: Sequence[int], seconds: Sequence[float]) -> tuple[tuple[int, float], ...]:
    return tuple(zip(sizes, seconds, strict=True))


def _measure_passes(
    stages: Sequence[Stage],
    inputs: Sequence[Tensor],
    device: torch.device,
    together: Callable[[], Any],
    *,
    convolutions: bool,
) -> list[Passes]:
    """The median times of every block, for each of the inputs.

    Every round measures all sizes, so that a disturbance of the machine affects one timing of a size only.
    """
    for stage in stages:
        stage.configure_deferral(None, convolutions=convolutions)
    rounds: list[list[Passes]] = []
    for _ in range(REPEATS + 1):
        rounds.append([])
        for images in inputs:
            together()
            rounds[-1].append(_time_step(stages, images, device))
    by_size = zip(*rounds[1:], strict=True)
    return [[_medians(timings) for timings in zip(*size, strict=True)] for size in by_size]


def _medians(timings: Sequence[tuple[float, float, float]]) -> tuple[float, float, float]:
    forward, backward, deferred = (statistics.median(values) for values in zip(*timings, strict=True))
    return forward, backward, deferred


def _time_step(stages: Sequence[Stage], images: Tensor, device: torch.device) -> Passes:
    """Time one step of two micro-batches: the first has one image and is not timed.

    Blocks run in the order of training, so that the caches hold what they hold there.
    """
    for stage in stages:
        stage.zero_grad()
        stage.begin_step()
    _time_passes(stages, images[:1], device)
    forward, backward = _time_passes(stages, images, device)
    deferred = []
    for stage in stages:
        start = _now(device)
        stage.finish_gradients()
        deferred.append(_now(device) - start)
    return list(zip(forward, backward, deferred, strict=True))


def _time_passes(stages: Sequence[Stage], images: Tensor, device: torch.device) -> tuple[list[float], list[float]]:
    """Seconds of each block's forward and backward pass."""
    x, ends, forward, backward = images, [], [], []
    for stage in stages:
        start = _now(device)
        y = stage(x, seed=1, first_row=0)
        forward.append(_now(device) - start)
        ends.append((x, y))
        x = y.detach().requires_grad_()
    gradient: Tensor | None = x.detach()
    for x, y in reversed(ends):
        start = _now(device)
        y.backward(gradient)
        backward.append(_now(device) - start)
        gradient = x.grad
    return forward, backward[::-1]


def _finish_seconds(stage: Stage, rows: Tensor | None, device: torch.device) -> float:
    """Seconds of a block's deferred weight gradient and its update, the median of several steps.

    Args:
        rows: inputs of a fully connected block, one batch; None for a convolution.
    """
    stage.configure_deferral(None, convolutions=False)
    weights = [nn.Parameter(parameter.detach().clone()) for parameter in stage.parameters()]
    gradients, velocities = ([torch.zeros_like(weight) for weight in weights] for _ in range(2))
    times = []
    for _ in range(REPEATS + 1):
        stage.zero_grad()
        stage.begin_step()
        if rows is not None:
            y = stage(rows, seed=1, first_row=0)
            y.backward(torch.ones_like(y))
        start = _now(device)
        stage.finish_gradients()
        kernels.sgd_update_(
            weights,
            gradients,
            velocities,
            learning_rates=[1e-3] * len(weights),
            weight_decays=[5e-4] * len(weights),
            momentum=0.9,
        )
        times.append(_now(device) - start)
    return statistics.median(times[1:])


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


# --- links ------------------------------------------------------------------------------------------------------------


def measure_links(world: World) -> tuple[Link, Link]:
    """Measure the links between the stages of a replica and between replicas. Every worker calls this."""
    layout, device = world.layout, world.device
    link = reduce_link = INSTANT
    if layout.ranks > 1:
        link = measure_link(world.pipeline_rank, device, world.pipeline_group)
    if layout.replicas > 1:
        reduce_link = measure_reduction(device, world.replica_group, layout.replicas)
    return link, reduce_link


def measure_link(rank: int, device: torch.device, group: Any = None, size: int = 4 * 2**20) -> Link:
    """Time messages between the first two workers of a group. Every worker gets the result.

    Args:
        rank: this worker's rank in the group.
        size: bytes of the larger message.
    """
    seconds = torch.zeros(2, dtype=torch.float64)
    if rank < 2:
        for index, count in enumerate((1, size)):
            message = torch.zeros(count, dtype=torch.uint8, device=device)
            times = []
            for _ in range(6):
                start = _now(device)
                for source in (0, 1):
                    if rank == source:
                        dist.send(message, group=group, group_dst=1 - source)
                    else:
                        dist.recv(message, group=group, group_src=source)
                times.append((_now(device) - start) / 2)
            seconds[index] = min(times[1:])
    seconds = seconds.to(device)
    dist.broadcast(seconds, group=group, group_src=0)
    latency, large = seconds.tolist()
    return Link(latency, size / max(large - latency, 1e-9))


def measure_reduction(device: torch.device, group: Any, workers: int, size: int = 16 * 2**20) -> Link:
    """Time all-reduces over a group. Every worker gets the result of the slowest one.

    Returns:
        A link that 2 (workers - 1) / workers times the bytes of a gradient cross, as in a ring all-reduce.
    """
    seconds = []
    for count in (1, size // 4):
        values = torch.zeros(count, device=device)
        times = []
        for _ in range(4):
            start = _now(device)
            dist.all_reduce(values, group=group)
            times.append(_now(device) - start)
        seconds.append(min(times[1:]))
    slowest = torch.tensor(seconds, dtype=torch.float64, device=device)
    dist.all_reduce(slowest, dist.ReduceOp.MAX, group=group)
    latency, large = slowest.tolist()
    return Link(latency, 2 * (workers - 1) / workers * size / max(large - latency, 1e-9))

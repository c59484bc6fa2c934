"""Autotuning of the split: time every block on the devices, and balance the slowest stage.

As torchgpipe's ``balance_by_time`` and PipeDream's profiler do, on all workers at the same time, as in training.
"""

from __future__ import annotations

import statistics
import time

import torch
from torch import Tensor

from fastalex.network.model import AlexNet, Stage
from fastalex.parallel.layout import ParallelPlan, Split
from fastalex.parallel.partition import balanced
from fastalex.parallel.world import World

WARM_UP, REPEATS = 1, 3


def balance_split(world: World, model: AlexNet, plan: ParallelPlan, batch_size: int) -> Split:
    """The split whose slowest stage takes the least measured time. Every worker calls this and gets the same answer.

    Args:
        model: the network in the precision of the run, on the CPU; its weights and gradients stay as they are.
        plan: the run's plan; its stages and micro-batches count.
        batch_size: images per step of all replicas together.
    """
    seconds = time_blocks(world, model, plan.rows(batch_size) // plan.micro_batches, plan.micro_batches)
    # Any block may end up on any device, so it costs what it takes on the slowest one.
    everyone = world.gather_objects(seconds)
    costs = {name: max(times[name] for times in everyone) for name in seconds}
    return world.from_first(lambda: balanced(model.architecture.block_names, plan.layout.stages, costs))


def time_blocks(world: World, model: AlexNet, rows: int, micro_batches: int) -> dict[str, float]:
    """Seconds that each block takes in a training step, without its update: the median of a few steps.

    Args:
        rows: images of a micro-batch.
        micro_batches: per step.
    """
    device, size = world.device, model.architecture.image_size
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    model.zero_grad()
    stages = {name: model.stage([name]).to(device) for name in model.architecture.block_names}
    for stage in stages.values():
        stage.train()
        stage.configure_deferral(None, convolutions=False)
    images = torch.randn(rows, 3, size, size, device=device).to(memory_format=torch.channels_last)
    times: dict[str, list[float]] = {name: [] for name in stages}
    for _ in range(WARM_UP + REPEATS):
        world.barrier()  # all workers compute at the same time, as in training
        for name, seconds in _time_step(stages, images, micro_batches, device).items():
            times[name].append(seconds)
    model.to("cpu")
    for parameter, gradient in gradients:
        parameter.grad = gradient
    return {name: statistics.median(seconds[WARM_UP:]) for name, seconds in times.items()}


def _time_step(stages: dict[str, Stage], images: Tensor, micro_batches: int, device: torch.device) -> dict[str, float]:
    """One step through all blocks, block by block; the gradients are discarded."""
    seconds = dict.fromkeys(stages, 0.0)
    for stage in stages.values():
        stage.begin_step()
    for _ in range(micro_batches):
        # Forward through all blocks, then backward, so that the caches hold what they hold in training.
        x, passes = images, []
        for name, stage in stages.items():
            start = _now(device)
            y = stage(x, seed=1)
            seconds[name] += _now(device) - start
            passes.append((name, x, y))
            x = y.detach().requires_grad_()
        gradient: Tensor | None = torch.ones_like(x)
        for name, x, y in reversed(passes):
            start = _now(device)
            y.backward(gradient)
            seconds[name] += _now(device) - start
            gradient = x.grad
    for name, stage in stages.items():
        start = _now(device)
        stage.finish_gradients()
        seconds[name] += _now(device) - start
        stage.zero_grad()
    return seconds


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()

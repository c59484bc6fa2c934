"""Training speed: known from a table, stated by the paper, or measured here with the real training step."""

from __future__ import annotations

import json
import statistics
import sys
import time
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import torch

from fastalex.errors import Interrupted
from fastalex.network.architecture import Architecture
from fastalex.network.model import AlexNet
from fastalex.network.precision import Precision, configure_libraries
from fastalex.options.plan import PAPER_IMAGES
from fastalex.parallel.block_times import time_blocks
from fastalex.parallel.layout import ParallelPlan
from fastalex.parallel.pipeline import build_engine
from fastalex.parallel.world import World
from fastalex.recipes.optimizer import KrizhevskySGD
from fastalex.recipes.published import build_recipe
from fastalex.training.graphed_step import build_step
from fastalex.training.memory import keep_freed_memory

PAPER_EPOCHS, PAPER_DAYS = 90, (5.0, 6.0)
"""The paper's training on two GTX 580: ILSVRC-2012, "roughly 90 cycles", "five to six days"."""

WARM_UP_STEPS, ROUNDS, STEPS_PER_ROUND = 6, 5, 4
"""Steps of a measurement. The warm-up compiles kernels and captures CUDA graphs."""


@dataclass(frozen=True)
class Speed:
    """A training speed.

    Args:
        device: where it was measured.
        setting: how, in a few words.
        images_per_second: of training, without validation.
    """

    device: str
    setting: str
    images_per_second: float

    def days(self, images: int, epochs: int) -> float:
        """Days to train on ``images`` images for ``epochs`` epochs."""
        return images * epochs / self.images_per_second / 86_400


def known_speeds(architecture: str) -> list[Speed]:
    """The speeds of a named architecture in ``speeds.json``, fastest first.

    Their setting ends with "steps" (training steps on images in device memory) or "training" (a whole run).
    """
    speeds = []
    for row in _table():
        if row["architecture"] == architecture:
            setting = f"{row['precision']}, batch {row['batch_size']}, {row['setting']}"
            speeds.append(Speed(row["device"], setting, row["images_per_second"]))
    return sorted(speeds, key=lambda speed: -speed.images_per_second)


def paper_speeds() -> tuple[float, float]:
    """The slowest and the fastest speed, in images per second, that the paper's statement allows."""
    fastest, slowest = (PAPER_IMAGES * PAPER_EPOCHS / 86_400 / days for days in PAPER_DAYS)
    return slowest, fastest


@cache
def _table() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(files("fastalex.planning").joinpath("speeds.json").read_text())
    return rows


def measure_speed(
    world: World, architecture: Architecture, plan: ParallelPlan, batch_size: int, precision: Precision
) -> float:
    """Images per second of whole training steps on random images in device memory. All workers call this.

    Returns:
        The median over :data:`ROUNDS` rounds of :data:`STEPS_PER_ROUND` steps. A round ends when all workers have
        finished it.

    Raises:
        Interrupted: a worker was asked to stop.
    """
    # Build what the trainer builds.
    if world.device.type == "cpu":
        keep_freed_memory()
    world.arrange(plan.layout)
    model = AlexNet(architecture, seed=0)
    model.set_precision(precision)
    configure_libraries(precision)
    engine = build_engine(model, world, plan, batch_size)
    optimizer = KrizhevskySGD(engine.stage, build_recipe("krizhevsky"), engine.stage.compute_copies())
    optimizer.set_epoch(1)
    step = build_step(engine, optimizer)

    # Random images, on the first and the last stage only.
    rows = plan.rows(batch_size)
    size = architecture.image_size
    generator = torch.Generator().manual_seed(0)
    images = labels = None
    if engine.is_first:
        images = (50 * torch.randn(rows, 3, size, size, generator=generator)).to(world.device)
    if engine.is_last:
        labels = torch.randint(architecture.num_classes, (rows,), generator=generator).to(world.device)

    def run(first: int, steps: int) -> float:
        started = time.perf_counter()
        for number in range(first, first + steps):
            step(images, labels, number)
            if world.device.type == "cpu":  # where a step takes seconds
                stop_if_requested()
        if world.device.type == "cuda":
            torch.cuda.synchronize(world.device)
        world.barrier()
        seconds = time.perf_counter() - started
        stop_if_requested()
        return seconds

    def stop_if_requested() -> None:
        if world.stop_requested():
            raise Interrupted("interrupted; nothing was measured", world.signal_number)

    if world.is_first:
        print(f"measuring {WARM_UP_STEPS + ROUNDS * STEPS_PER_ROUND} training steps", file=sys.stderr, flush=True)
    run(0, WARM_UP_STEPS)
    seconds = [run(WARM_UP_STEPS + index * STEPS_PER_ROUND, STEPS_PER_ROUND) for index in range(ROUNDS)]
    return batch_size * STEPS_PER_ROUND / statistics.median(seconds)


def measure_blocks(
    world: World, architecture: Architecture, plan: ParallelPlan, batch_size: int, precision: Precision
) -> dict[str, float]:
    """Seconds that each block takes in a training step, on the device of its stage. All workers call this.

    See :func:`fastalex.parallel.block_times.time_blocks`; what a step spends between blocks is not included.
    """
    model = AlexNet(architecture, seed=0)
    model.set_precision(precision)
    configure_libraries(precision)
    times = time_blocks(world, model, plan.rows(batch_size) // plan.micro_batches, plan.micro_batches)
    everyone = world.gather_objects(times)
    stage_of = {name: stage for stage, names in enumerate(plan.split) for name in names}
    return {name: everyone[stage_of[name] % plan.layout.ranks][name] for name in times}

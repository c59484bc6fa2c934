"""What a network costs before it is trained: parameters, memory and time.

Activations are not counted by a formula of their own. The network runs once with tensors that have shapes and no
numbers, and what autograd keeps for the backward pass is added up as it is kept.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastalex.network.architecture import Architecture
from fastalex.network.footprint import LayerCost
from fastalex.network.model import AlexNet
from fastalex.network.precision import Precision, configure_libraries
from fastalex.parallel.engine import SingleDevice
from fastalex.parallel.layout import ScheduleName
from fastalex.parallel.pipeline import Pipeline
from fastalex.parallel.stage_memory import StageMemory
from fastalex.parallel.world import World
from fastalex.recipes.optimizer import KrizhevskySGD
from fastalex.recipes.published import build_recipe

RECORDS = Path(__file__).resolve().parents[2] / "bench" / "results"
"""Where a checkout keeps its measurements; an installed package has none."""


PAPER_IMAGES, PAPER_EPOCHS, PAPER_DAYS = 1_281_167, 90, (5.0, 6.0)
"""The paper's training on two GTX 580: "roughly 90 cycles", "five to six days"."""


GTX_580_BYTES = 3 * 2**30


@dataclass(frozen=True)
class Statement:
    """A sentence of the paper, what it comes to here, and whether it holds."""

    paper: str
    here: str
    holds: bool


def paper_statements(layers: Sequence[LayerCost], memory: StageMemory, batch_size: int) -> list[Statement]:
    """The paper's statements about its network, checked on this one.

    Args:
        memory: of the whole network on one device, its batch in one piece.
    """
    convolutions = [layer for layer in layers if layer.is_convolution]
    parameters, units = sum(layer.parameters for layer in layers), sum(layer.units for layer in layers)
    shares = {layer.name: 100 * layer.parameters / parameters for layer in convolutions}
    above = [f"{name} {share:.2f} %" for name, share in shares.items() if share > 1]
    needed = memory.total(batch_size)
    return [
        Statement(
            "five convolutional and three fully connected layers",
            f"{len(convolutions)} and {len(layers) - len(convolutions)}",
            (len(convolutions), len(layers)) == (5, 8),
        ),
        Statement("60 million parameters", f"{parameters:,}", abs(parameters / 60e6 - 1) < 0.05),
        Statement("650,000 neurons", f"{units:,}", abs(units / 650e3 - 1) < 0.05),
        Statement(
            "each convolutional layer has no more than 1 % of the parameters",
            f"above it: {', '.join(above)}" if above else f"at most {max(shares.values()):.2f} %",
            not above,
        ),
        Statement(
            "too big for one GTX 580 of 3 GB",
            f"{needed / 2**30:.2f} GiB at a batch of {batch_size} as it is stored here",
            needed > GTX_580_BYTES,
        ),
    ]


@dataclass(frozen=True)
class Speed:
    """How many images a second were trained on, where, and how this is known."""

    source: str
    device: str
    setting: str
    images_per_second: float

    def days(self, images: int, epochs: int) -> float:
        """How long so many epochs of so many images take."""
        return images * epochs / self.images_per_second / 86_400


def recorded_speeds(architecture: str, folder: Path = RECORDS) -> list[Speed]:
    """Our own training speeds of a named architecture in the records, fastest first."""
    found = []
    for path in sorted(folder.glob("*/*.json")):
        if path.stem.endswith(("-before", "-quick")):  # kept to compare with what is there now; small sizes
            continue
        record = json.loads(path.read_text())
        for row in record["rows"]:
            ours = row.get("provider") == "fastalex" or row.get("ours") is True
            if ours and row.get("architecture") == architecture and row.get("images_per_second"):
                found.append(Speed(path.stem, record["device"], _setting(row), row["images_per_second"]))
    return sorted(found, key=lambda speed: -speed.images_per_second)


def _setting(row: dict[str, Any]) -> str:
    batch = row.get("batch_size") or row.get("batch")
    parts = (row.get("devices"), row.get("way"), f"batch {batch}", row.get("precision"))
    return ", ".join(str(part) for part in parts if part)


@dataclass(frozen=True)
class Trial:
    """Steps to be timed. ``stages`` are the block names of each worker's stage."""

    architecture: Architecture
    stages: tuple[tuple[str, ...], ...]
    batch_size: int
    micro_batches: int
    schedule: ScheduleName
    precision: Precision
    steps: int = 20
    warm_up: int = 3


def time_steps(world: World, trial: Trial) -> float:
    """Images per second of whole training steps, update included, on random images that are there already."""
    model = AlexNet(trial.architecture, seed=0)
    model.set_precision(trial.precision)
    configure_libraries(trial.precision)
    engine = _engine(world, model, trial)
    optimizer = KrizhevskySGD(engine.stage, build_recipe("krizhevsky"), engine.stage.compute_copies())
    optimizer.set_epoch(0, 0)
    generator = torch.Generator().manual_seed(0)
    size = trial.architecture.image_size
    images = 50 * torch.randn(trial.batch_size, 3, size, size, generator=generator)
    labels = torch.randint(trial.architecture.num_classes, (trial.batch_size,), generator=generator)
    given = images.to(world.device) if engine.is_first else None, labels.to(world.device) if engine.is_last else None
    seconds = []
    for step in range(trial.warm_up + trial.steps):
        world.barrier()
        started = time.perf_counter()
        engine.train_step(*given, seed=step)
        optimizer.step()
        optimizer.zero_grad()
        if world.device.type == "cuda":
            torch.cuda.synchronize()
        world.barrier()  # a step ends when its slowest stage does
        seconds.append(time.perf_counter() - started)
    return trial.batch_size / statistics.median(seconds[trial.warm_up :])


def _engine(world: World, model: AlexNet, trial: Trial) -> SingleDevice | Pipeline:
    if world.size == 1:
        return SingleDevice(model, world.device, trial.batch_size, trial.micro_batches)
    return Pipeline(
        model, trial.stages, world.rank, world.device, trial.batch_size, trial.micro_batches, trial.schedule
    )

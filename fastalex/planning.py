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
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import kernels
from fastalex.architecture import Architecture, BlockShape, ConvBlock, LinearBlock, block_shapes
from fastalex.launch import World
from fastalex.layout import ScheduleName, puts_off
from fastalex.model import COMPUTE_DTYPES, AlexNet, Precision, prepare_images
from fastalex.optimizer import KrizhevskySGD
from fastalex.partition import training_macs
from fastalex.pipeline import Pipeline, SingleDevice
from fastalex.precision import configure_libraries
from fastalex.recipe import build_recipe

RECORDS = Path(__file__).resolve().parents[1] / "bench" / "results"
"""Where a checkout keeps its measurements; an installed package has none."""
PAPER_IMAGES, PAPER_EPOCHS, PAPER_DAYS = 1_281_167, 90, (5.0, 6.0)
"""The paper's training on two GTX 580: "roughly 90 cycles", "five to six days"."""
GTX_580_BYTES = 3 * 2**30


@dataclass(frozen=True)
class LayerCost:
    """One layer: for one image, multiply-accumulates of a training step and bytes kept for its backward pass.

    ``units`` is what the paper counts as neurons: the outputs of the layer itself, before pooling.
    """

    name: str
    is_convolution: bool
    output: tuple[int, ...]
    units: int
    parameters: int
    macs: int
    kept_bytes: int


def layer_costs(architecture: Architecture, precision: Precision, implementation: str) -> list[LayerCost]:
    """The costs of every layer; ``implementation`` is that of the operators (``triton`` on GPUs, else ``native``)."""
    kept, macs = kept_bytes(architecture, precision, implementation), training_macs(architecture)
    return [
        LayerCost(
            shape.name,
            isinstance(block, ConvBlock),
            shape.output,
            _units(block, shape),
            shape.parameters,
            macs[shape.name],
            kept[shape.name],
        )
        for block, shape in zip(architecture.blocks, block_shapes(architecture), strict=True)
    ]


def _units(block: ConvBlock | LinearBlock, shape: BlockShape) -> int:
    if isinstance(block, LinearBlock):
        return block.out_features
    places = shape.macs // (shape.parameters - block.out_channels)  # multiply-accumulates over weights: pixels
    return block.out_channels * places


def kept_bytes(
    architecture: Architecture, precision: Precision = "fp32", implementation: str = "native"
) -> dict[str, int]:
    """Bytes that each block keeps for the backward pass of one image; what two of them keep is the first one's."""
    with FakeTensorMode(), kernels.using(implementation):
        model = AlexNet(architecture, seed=0)
        model.set_precision(precision)
        one, two = (_kept_by_a_pass(model, images) for images in (1, 2))
    return {name: two[name] - one[name] for name in two}  # without what does not grow with the batch, such as seeds


def _kept_by_a_pass(model: AlexNet, images: int) -> dict[str, int]:
    stage = model.stage(model.architecture.block_names).train()
    stage.defer_weight_gradients()  # as both engines do
    size = model.architecture.image_size
    seen = {_memory_of(tensor) for p, c in _with_copies(model) for tensor in (p, c)}
    alive: list[Tensor] = []  # while a tensor lives, no other one has its memory
    kept = dict.fromkeys(model.architecture.block_names, 0)
    x = prepare_images(torch.empty(images, 3, size, size), model.architecture, model.compute_dtype)
    for block in stage.blocks():
        name = block.spec.name

        def keep(tensor: Tensor, name: str = name) -> Tensor:
            alive.append(tensor)
            if (memory := _memory_of(tensor)) not in seen:
                seen.add(memory)
                kept[name] += tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            x = block(x, 0, 0)
        alive.append(x)
    return kept


def _with_copies(model: AlexNet) -> list[tuple[Tensor, Tensor]]:
    copies = {parameter: copy for block in model.blocks() for parameter, copy in block.copies().items()}
    return [(parameter, copies.get(parameter, parameter)) for parameter in model.parameters()]


def _memory_of(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


# --- memory -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StageMemory:
    """What one stage needs in training, in bytes.

    ``copies`` are the low-precision copies of the weights. What grows with the batch is per image: ``activations``, of
    the share ``in_flight`` of the batch that is under way at once, and ``whole_batch``: images, what crosses to and
    from the neighbouring stages, and what layers keep for weight gradients that are put off: fully connected ones their
    rows, convolutions of the last stage their inputs, results and the results' gradients.
    Not counted: the libraries' own workspace and context, and gradients of activations on their way.
    """

    blocks: tuple[str, ...]
    weights: int
    copies: int
    activations: int
    in_flight: float
    whole_batch: int

    @property
    def fixed(self) -> int:
        """Weights, gradients, velocities and copies."""
        return 3 * self.weights + self.copies

    @property
    def per_image(self) -> float:
        """What another image in the batch adds."""
        return self.activations * self.in_flight + self.whole_batch

    def total(self, batch_size: int) -> int:
        """All of it."""
        return self.fixed + round(self.per_image * batch_size)

    def largest_batch(self, memory: int) -> int:
        """The largest batch that fits into so many bytes, 0 if none does."""
        return max(0, int((memory - self.fixed) / self.per_image))


def stage_memory(
    architecture: Architecture,
    layers: Sequence[LayerCost],
    stages: Sequence[Sequence[str]],
    micro_batches: int,
    schedule: ScheduleName,
    precision: Precision,
) -> list[StageMemory]:
    """What each stage needs."""
    size = COMPUTE_DTYPES[precision].itemsize
    inputs = dict(zip(architecture.block_names, _input_sizes(architecture), strict=True))
    found = []
    for rank, names in enumerate(stages):
        own = [layer for layer in layers if layer.name in names]
        parameters = sum(layer.parameters for layer in own)
        low = 0 if size == 4 else sum(layer.parameters for layer in own if layer is not layers[-1]) * size
        # One micro-batch at a time on one device; all of GPipe's and, at most, of zero-bubble's; of 1F1B's as many as
        # stages from here to the end, of the eager one's one more for each later stage.
        later = len(stages) - 1 - rank
        ahead = {"gpipe": micro_batches, "zero-bubble": micro_batches, "eager-1f1b": 2 * later}.get(schedule, later)
        under_way = 1 if len(stages) == 1 else 1 + ahead
        crossing = size * (inputs[names[0]] if rank else 0)
        crossing += size * (inputs[stages[rank + 1][0]] if rank + 1 < len(stages) else 0)
        images = 0 if rank else 4 * inputs[names[0]]
        factors = size * sum(inputs[layer.name] + layer.output[0] for layer in own if not layer.is_convolution)
        if (schedule == "zero-bubble" and rank) or puts_off(rank, len(stages), micro_batches):
            factors += size * sum(inputs[layer.name] + 2 * layer.units for layer in own if layer.is_convolution)
        found.append(
            StageMemory(
                tuple(names),
                4 * parameters,
                low,
                sum(layer.kept_bytes for layer in own),
                min(under_way, micro_batches) / micro_batches,
                images + crossing + factors,
            )
        )
    return found


def _input_sizes(architecture: Architecture) -> list[int]:
    outputs = [int(torch.Size(shape.output).numel()) for shape in block_shapes(architecture)]
    return [3 * architecture.image_size**2, *outputs[:-1]]


# --- what the paper says of its network -------------------------------------------------------------------------------


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


# --- time -------------------------------------------------------------------------------------------------------------


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

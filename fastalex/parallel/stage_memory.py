"""TODO."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fastalex.network.architecture import Architecture, block_shapes
from fastalex.network.footprint import LayerCost
from fastalex.network.precision import COMPUTE_DTYPES, Precision
from fastalex.parallel.layout import ScheduleName
from fastalex.parallel.schedules import puts_off


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

"""Memory of each pipeline stage in training, counted before anything runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fastalex.network.architecture import Architecture, block_shapes
from fastalex.network.footprint import LayerCost
from fastalex.network.precision import COMPUTE_DTYPES, Precision
from fastalex.parallel.layout import ScheduleName
from fastalex.parallel.schedules import defers_convolutions


@dataclass(frozen=True)
class StageMemory:
    """Bytes that one stage needs in training.

    Not counted: the libraries' workspace and context, and gradients of activations.

    Args:
        weights: parameters in fp32.
        copies: low-precision copies of the weights.
        activations: kept for the backward pass, per image.
        in_flight: share of the batch whose activations are kept at the same time.
        whole_batch: kept per image for the whole step: images, tensors that cross to and from neighbouring stages, and
            what deferred weight gradients need (rows of fully connected layers; inputs, outputs and output gradients of
            convolutions).
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
        """What each image of the batch adds."""
        return self.activations * self.in_flight + self.whole_batch

    def total(self, batch_size: int) -> int:
        """All of it, for a batch of this size."""
        return self.fixed + round(self.per_image * batch_size)

    def largest_batch(self, memory: int) -> int:
        """The largest batch that fits into ``memory`` bytes; 0 if none does."""
        return max(0, int((memory - self.fixed) / self.per_image))


def stage_memory(
    architecture: Architecture,
    layers: Sequence[LayerCost],
    split: Sequence[Sequence[str]],
    micro_batches: int,
    schedule: ScheduleName,
    precision: Precision,
) -> list[StageMemory]:
    """The memory of every stage.

    Args:
        layers: of the whole network (:func:`fastalex.network.footprint.layer_costs`).
    """
    size = COMPUTE_DTYPES[precision].itemsize
    inputs = dict(zip(architecture.block_names, _input_sizes(architecture), strict=True))
    stages = []
    for index, names in enumerate(split):
        own = [layer for layer in layers if layer.name in names]
        parameters = sum(layer.parameters for layer in own)
        # The last layer computes in fp32 and needs no copy.
        copied = 0 if size == 4 else sum(layer.parameters for layer in own if layer is not layers[-1])
        # Tensors that cross the stage's boundaries, the images, and what deferred weight gradients need.
        crossing = size * (inputs[names[0]] if index else 0)
        crossing += size * (inputs[split[index + 1][0]] if index + 1 < len(split) else 0)
        images = 0 if index else 4 * inputs[names[0]]
        deferred = size * sum(inputs[layer.name] + layer.output[0] for layer in own if not layer.is_convolution)
        if defers_convolutions(index, len(split), micro_batches):
            deferred += size * sum(inputs[layer.name] + 2 * layer.units for layer in own if layer.is_convolution)
        stages.append(
            StageMemory(
                blocks=tuple(names),
                weights=4 * parameters,
                copies=size * copied,
                activations=sum(layer.kept_bytes for layer in own),
                in_flight=_in_flight(schedule, index, len(split), micro_batches) / micro_batches,
                whole_batch=images + crossing + deferred,
            )
        )
    return stages


def _in_flight(schedule: ScheduleName, stage: int, stages: int, micro_batches: int) -> int:
    """Micro-batches whose activations a stage keeps at the same time: in 1F1B one for itself and each later stage."""
    if stages == 1:
        return 1
    later = stages - 1 - stage
    ahead = {"gpipe": micro_batches, "eager-1f1b": 2 * later}.get(schedule, later)
    return min(1 + ahead, micro_batches)


def _input_sizes(architecture: Architecture) -> list[int]:
    """Elements of each block's input, for one image."""
    outputs = [int(torch.Size(shape.output).numel()) for shape in block_shapes(architecture)]
    return [3 * architecture.image_size**2, *outputs[:-1]]

"""Costs of single blocks and links, from which `pipeline_simulation` and `pipeline_prediction` compute a step's time.

All times are in seconds. A pass takes a time that depends on the number of images in the micro-batch; deferred weight
gradients and the update take theirs once per step. `block_timing` measures these costs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

Curve = tuple[tuple[int, float], ...]
"""(images, seconds) points, in ascending order of images."""

CURVES = ("forward", "backward", "input_backward", "deferred")
"""The fields of :class:`BlockCost` that are curves."""


@dataclass(frozen=True)
class BlockCost:
    """The cost of one block on one device.

    Args:
        name: name of the block.
        forward: forward pass of one micro-batch.
        backward: backward pass of one micro-batch: the input gradient, and a convolution's weight gradient. Fully
            connected weight gradients are deferred and part of `finish`.
        finish: seconds per step for the fully connected weight gradient and the update.
        output_bytes: size of the output activation per image.
        parameter_bytes: size of the gradients.
        input_backward: backward pass of a convolution whose weight gradient is deferred; empty for other blocks and if
            not measured.
        deferred: deferred weight gradient of a convolution for one micro-batch; empty like `input_backward`.
    """

    name: str
    forward: Curve
    backward: Curve
    finish: float
    output_bytes: int
    parameter_bytes: int
    input_backward: Curve = ()
    deferred: Curve = ()

    def backward_seconds(self, images: float, *, deferred: bool) -> float:
        """Seconds of the backward pass of a micro-batch, with or without deferred convolution gradients."""
        return seconds_at(self.input_backward if deferred and self.input_backward else self.backward, images)

    def end_seconds(self, images: float, micro_batches: int, *, deferred: bool) -> float:
        """Seconds after the passes of a step: deferred weight gradients of all micro-batches, and the update."""
        convolution = micro_batches * seconds_at(self.deferred, images) if deferred and self.deferred else 0.0
        return self.finish + convolution

    def scaled(self, factor: float) -> BlockCost:
        """The cost of the same block on a device that takes `factor` times as long."""

        def scale(curve: Curve) -> Curve:
            return tuple((images, seconds * factor) for images, seconds in curve)

        curves: dict[str, Any] = {name: scale(getattr(self, name)) for name in CURVES}
        return replace(self, finish=self.finish * factor, **curves)

    def to_json(self) -> dict[str, Any]:
        """The cost as plain lists and numbers."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> BlockCost:
        """The inverse of :meth:`to_json`."""
        curves = {name: tuple((int(n), float(s)) for n, s in values.get(name, ())) for name in CURVES}
        return cls(**{**values, **curves})


@dataclass(frozen=True)
class Link:
    """A connection between two workers: seconds = latency + bytes / bytes_per_second."""

    latency: float = 0.0
    bytes_per_second: float = math.inf

    def seconds(self, size: float) -> float:
        """Transfer time of `size` bytes."""
        return self.latency + size / self.bytes_per_second


INSTANT = Link()
"""A link without latency and with unlimited bandwidth."""


def seconds_at(curve: Curve, images: float) -> float:
    """The value of a curve at a number of images.

    Linear interpolation between points; the first segment is extended to fewer images, but not below 0. Beyond the
    last point, or with a single point, time is proportional to the number of images: extrapolating the last segment
    would amplify the measurement errors of its two points.
    """
    last, seconds = curve[-1]
    if len(curve) == 1 or images >= last:
        return seconds * images / last
    (n0, s0), (n1, s1) = next(pair for pair in pairwise(curve) if images <= pair[1][0])
    return max(0.0, s0 + (s1 - s0) * (images - n0) / (n1 - n0))


def slowest_stage(split: Sequence[Sequence[str]], costs: Sequence[BlockCost], images: int, micro_batches: int) -> float:
    """Seconds per step of the slowest stage, without waits and transfers."""
    seconds = {
        cost.name: micro_batches * (seconds_at(cost.forward, images) + seconds_at(cost.backward, images)) + cost.finish
        for cost in costs
    }
    return max(sum(seconds[name] for name in stage) for stage in split)

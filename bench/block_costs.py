"""What each block of a network costs on the device at hand, and what it costs to send tensors between devices.

Costs are seconds: of the forward and the backward pass by the number of images in a micro-batch, and of what happens
once a step (weight gradients that were put off, and the update).
"""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

import kernels
from fastalex.network.architecture import block_shapes
from fastalex.network.blocks import Convolution, Linear
from fastalex.network.deferred_gradients import KeptFactors
from fastalex.network.model import AlexNet

REPEATS = 3
"""How often a block is timed; the median counts, after one round to warm up."""


Curve = tuple[tuple[int, float], ...]
"""Seconds by images, in ascending order of images."""


CURVES = ("forward", "backward", "input_backward", "put_off")


@dataclass(frozen=True)
class BlockCost:
    """One block on one device.

    Args:
        name: of the block.
        forward, backward: seconds by images in a micro-batch; the backward pass makes a convolution's weight gradient,
            a fully connected one's is in ``finish``.
        finish: seconds a step for its fully connected weight gradients, and for its update.
        product: those of ``finish`` that its fully connected weight gradients take.
        output_bytes: of the activation that it hands on, per image.
        parameter_bytes: of its gradients.
        input_backward: as ``backward``, where a convolution's weight gradient is put off to the end of the step; empty
            for other blocks and where it was not measured.
        put_off: seconds at the end of a step for a micro-batch's convolutional weight gradient, by images; empty as
            ``input_backward``.
    """

    name: str
    forward: Curve
    backward: Curve
    finish: float
    output_bytes: int
    parameter_bytes: int
    input_backward: Curve = ()
    put_off: Curve = ()
    product: float = 0.0

    def backward_seconds(self, images: float, *, puts_off: bool) -> float:
        """Seconds of a micro-batch's backward pass, where convolutions put their weight gradients off or do not."""
        return seconds_at(self.input_backward if puts_off and self.input_backward else self.backward, images)

    def end_seconds(self, images: float, micro_batches: int, *, puts_off: bool) -> float:
        """Seconds after the passes of a step: for the weight gradients that were put off, and for the update."""
        return self.finish + (micro_batches * seconds_at(self.put_off, images) if puts_off and self.put_off else 0.0)

    def times(self, factor: float) -> BlockCost:
        """The same block on a device that takes ``factor`` times as long."""

        def scaled(curve: Curve) -> Curve:
            return tuple((images, seconds * factor) for images, seconds in curve)

        curves: dict[str, Any] = {name: scaled(getattr(self, name)) for name in CURVES}
        return replace(self, finish=self.finish * factor, product=self.product * factor, **curves)

    def to_json(self) -> dict[str, Any]:
        """As plain lists and numbers."""
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
        """How long ``size`` bytes take."""
        return self.latency + size / self.bytes_per_second


def seconds_at(curve: Curve, images: float) -> float:
    """A curve's value, on straight lines through its points; the first one goes on to fewer images.

    Beyond the last point, and with one point, seconds are proportional to images: the last line would go on with
    whatever was off in its two points, and the costs that a small micro-batch does not share are small by then.
    """
    last, seconds = curve[-1]
    if len(curve) == 1 or images >= last:
        return seconds * images / last
    (n0, s0), (n1, s1) = next(pair for pair in pairwise(curve) if images <= pair[1][0])
    return max(0.0, s0 + (s1 - s0) * (images - n0) / (n1 - n0))


def measure_blocks(
    model: AlexNet,
    device: torch.device,
    batch_size: int,
    micro_batch_sizes: Sequence[int],
    *,
    put_off: bool = False,
    together: Callable[[], Any] = lambda: None,
) -> list[BlockCost]:
    """Time every block of a network in training on random images.

    Args:
        model: its weights and gradients stay as they are.
        batch_size: images per step, of which weight gradients are made.
        micro_batch_sizes: for which numbers of images the passes are timed.
        put_off: whether to time convolutional weight gradients apart from the backward pass, too.
        together: called before each timing; workers that share a machine wait for each other here, so that all
            of them compute at the same time, as they do in training.
    """
    blocks = [block if device.type == "cpu" else copy.deepcopy(block).to(device) for block in model.blocks()]
    size = model.architecture.image_size
    images = sorted(micro_batch_sizes)
    inputs = [
        torch.randn(count, 3, size, size, device=device, dtype=model.compute_dtype).contiguous(
            memory_format=torch.channels_last
        )
        for count in images
    ]
    # Round after round over all sizes: what disturbs the machine for a moment is in one of a size's timings only.
    rounds: list[list[list[tuple[float, ...]]]] = []
    with _left_as_found(blocks):
        for block in blocks:
            if isinstance(block, Convolution):
                block.kept = kernels.KeptTransforms()
                block.kept.begin()
            else:
                block.kept = KeptFactors()
        for _ in range(REPEATS + 1):
            rounds.append([])
            for x in inputs:
                together()
                rounds[-1].append(_passes(blocks, x, device, put_off))
    passes = [
        [tuple(map(statistics.median, zip(*block, strict=True))) for block in zip(*timings, strict=True)]
        for timings in zip(*rounds[1:], strict=True)
    ]
    costs = []
    for index, (block, shape) in enumerate(zip(blocks, block_shapes(model.architecture), strict=True)):
        together()
        ways = zip(*(one[index] for one in passes), strict=True)
        seconds: dict[str, Any] = {
            name: tuple(zip(images, way, strict=True)) for name, way in zip(CURVES, ways, strict=False)
        }
        output_bytes = math.prod(shape.output) * model.compute_dtype.itemsize
        seconds["finish"], seconds["product"] = _finish(block, batch_size, device)
        costs.append(
            BlockCost(name=shape.name, output_bytes=output_bytes, parameter_bytes=4 * shape.parameters, **seconds)
        )
    return costs


def _passes(
    blocks: Sequence[Convolution | Linear], images: Tensor, device: torch.device, put_off: bool
) -> list[tuple[float, ...]]:
    """Each block's seconds in the order of `CURVES`, the last two only of convolutions and if ``put_off``. Blocks run
    in the order of training, so that caches hold what they hold there."""
    network = nn.ModuleList(blocks).train()
    row = [whole[:2] for whole in _there_and_back(blocks, network, images, device, put_off=False)]
    if put_off:
        apart = _there_and_back(blocks, network, images, device, put_off=True)
        row = [
            (*whole, *seconds[1:]) if isinstance(block, Convolution) else whole
            for block, whole, seconds in zip(blocks, row, apart, strict=True)
        ]
    return row


@contextmanager
def _left_as_found(blocks: Sequence[Convolution | Linear]) -> Iterator[None]:
    """Give the blocks their modes and gradients back."""
    modes = [(block.training, block.kept, getattr(block, "put_off", None)) for block in blocks]
    parameters = [parameter for block in blocks for parameter in block.parameters()]
    gradients = [parameter.grad for parameter in parameters]
    yield
    for block, (training, kept, put_off) in zip(blocks, modes, strict=True):
        block.train(training)
        block.kept = kept
        if isinstance(block, Convolution):
            block.put_off = put_off
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient


def _there_and_back(
    blocks: Sequence[Convolution | Linear], network: nn.Module, images: Tensor, device: torch.device, *, put_off: bool
) -> list[tuple[float, ...]]:
    """Seconds of each block's forward pass, backward pass and weight gradient that was put off.

    The passes are those of a step's later micro-batches: what convolutions do once a step, which is under a hundredth
    of it, is in none of them.
    """
    for block in blocks:
        if isinstance(block, Linear):
            assert block.kept is not None
            block.kept.clear()
        else:
            block.put_off = [] if put_off else None
    network.zero_grad()
    x, ends, forward, backward, later = images, [], [], [], []
    for block in blocks:
        start = _now(device)
        y = block(x, 1, 0)
        forward.append(_now(device) - start)
        ends.append((x, y))
        x = y.detach().requires_grad_()
    gradient: Tensor | None = x.detach()
    while ends:
        x, y = ends.pop()
        start = _now(device)
        y.backward(gradient)
        backward.append(_now(device) - start)
        gradient = x.grad
    for block in blocks:
        start = _now(device)
        if isinstance(block, Convolution) and block.put_off:
            block.add_gradients(block.put_off)
        later.append(_now(device) - start)
    return list(zip(forward, reversed(backward), later, strict=True))


def _finish(block: nn.Module, batch_size: int, device: torch.device) -> tuple[float, float]:
    """Seconds of a fully connected block's weight gradient and any block's update, and those of the gradient alone."""
    weights = [nn.Parameter(parameter.detach().clone()) for parameter in block.parameters()]
    velocities = [torch.zeros_like(weight) for weight in weights]
    dtype: torch.dtype = block.compute_dtype  # type: ignore[assignment]
    factors: tuple[Tensor, Tensor] | None = None
    if isinstance(block, Linear):
        rows, columns = block.weight.shape
        factors = (
            torch.randn(batch_size, columns, device=device, dtype=dtype),
            torch.randn(batch_size, rows, device=device, dtype=dtype),
        )
    for weight in weights:
        weight.grad = torch.zeros_like(weight)
    kept, times, products = KeptFactors(), [], []
    for _ in range(REPEATS + 1):
        start = _now(device)
        if factors is not None:
            weights[0].grad = None
            kept.add(*factors)
            kept.add_product_to(weights[0])
        products.append(_now(device) - start)
        kernels.sgd_update_(
            weights,
            [weight.grad for weight in weights if weight.grad is not None],
            velocities,
            learning_rates=[1e-3] * len(weights),
            weight_decays=[5e-4] * len(weights),
            momentum=0.9,
        )
        times.append(_now(device) - start)
    return statistics.median(times[1:]), statistics.median(products[1:])


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def measure_link(rank: int, device: torch.device, group: Any = None, size: int = 4 * 2**20) -> Link:
    """Time tensors going to and fro between the first two workers of a group; every worker gets the result.

    Args:
        rank: of this worker in the group.
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
    """Time sums over all workers of a group; every worker gets the slowest one's result.

    Returns:
        A link that 2 (workers - 1) / workers times the bytes of a gradient cross, as in a ring.
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

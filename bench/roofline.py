"""The least time of one training step: python bench/roofline.py [--architecture krizhevsky] [--batch 128]

The limit of an operator is the larger of two times: its arithmetic at the speed of a large matrix product, and its
bytes at the bandwidth of a copy. The limit of the step is the sum over its operators, which depend on each other and
cannot overlap. Both ceilings are measured in the same run as the step that is compared with them.

The operators are those that the network can be fused into without changing what it computes:

- a convolution or matrix product with bias and ReLU reads its input and its weights and writes its output; backward
  reads the incoming gradient twice, the input and the weights, and writes the gradients of both;
- the normalisations and poolings after a convolution are one pass: forward reads the convolution's output and writes
  the block's; backward reads the convolution's output and the incoming gradient, and writes the gradient;
- the update reads weight, velocity and gradient and writes weight, velocity and, with bf16, the bf16 copy.

Activations and gradients have the dtype of the arithmetic, weights and velocities are fp32.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import rich.console
import rich.table
import torch
from harness import CUDA, DEVICE, DeviceClock

from fastalex.network.architecture import (
    Activation,
    Architecture,
    ConvBlock,
    LocalResponseNorm,
    MaxPool,
    SameMapNorm,
    block_shapes,
    four_sided,
)
from fastalex.network.variation import build_architecture

MATRIX_SIZE = 8192 if CUDA else 2048  # rows and columns of the largest product measured
COPIED_BYTES = 2**29 if CUDA else 2**27
NAMES = {LocalResponseNorm: "norm", SameMapNorm: "same-map norm", MaxPool: "pool"}


@dataclass(frozen=True)
class Operation:
    """One operator of a step, with the fewest floating-point operations and bytes possible."""

    name: str
    part: str
    flops: int
    bytes: int

    def limit_ms(self, ceilings: Ceilings) -> float:
        """The least time of the operator in milliseconds."""
        return max(self.flops / ceilings.gflop_per_s, self.bytes / ceilings.gb_per_s) / 1e6


@dataclass(frozen=True)
class Ceilings:
    """The speeds of a large matrix product in a dtype and of a copy (bytes read and written)."""

    dtype: torch.dtype
    gflop_per_s: float
    gb_per_s: float


def measure(dtype: torch.dtype, *, tf32: bool = False, seconds: float = 1.0) -> Ceilings:
    """Measure both ceilings."""
    return Ceilings(dtype, matrix_rate(dtype, tf32=tf32, seconds=seconds), copy_bandwidth(seconds))


def matrix_rate(dtype: torch.dtype, *, tf32: bool = False, seconds: float = 1.0) -> float:
    """GFLOP/s of a product of square matrices, which are smaller on slow devices."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = tf32
    size, milliseconds = 256, 0.0
    try:
        while size < MATRIX_SIZE and milliseconds < 20:
            size *= 2
            a, b = (torch.randn(size, size, device=DEVICE).to(dtype) for _ in range(2))
            milliseconds = median_ms(partial(torch.mm, a, b), 0)
        return 2 * size**3 / median_ms(partial(torch.mm, a, b), seconds) / 1e6
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def copy_bandwidth(seconds: float = 1.0) -> float:
    """GB/s of a copy within the device, read and written bytes together."""
    source = torch.zeros(COPIED_BYTES, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    return 2 * COPIED_BYTES / median_ms(lambda: target.copy_(source), seconds) / 1e6


def median_ms(work: Callable[[], object], seconds: float) -> float:
    """The median milliseconds of `work`, repeated for `seconds`."""
    times: list[float] = []
    clock = DeviceClock() if CUDA else None
    end = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        if clock is not None:
            times.append(clock.time(lambda: None, lambda _: work()))
            continue
        begin = time.perf_counter()
        work()
        times.append((time.perf_counter() - begin) * 1e3)
    return statistics.median(times[1:])


def operations(architecture: Architecture, batch: int, dtype: torch.dtype) -> list[Operation]:
    """The operators of one training step in order: forward, backward, update."""
    forward, backward = [], []
    size = architecture.image_size
    shape: tuple[int, ...] = (3, size, size)
    item = dtype.itemsize
    parameters = 0
    for index, (block, shapes) in enumerate(zip(architecture.blocks, block_shapes(architecture), strict=True)):
        inputs, outputs = batch * math.prod(shape) * item, batch * math.prod(shapes.output) * item
        weights, flops = shapes.parameters * item, 2 * batch * shapes.macs
        product, rest = outputs, ""
        if isinstance(block, ConvBlock):
            product = batch * math.prod(_convolved(block, shape)) * item
            rest = " + ".join(NAMES[type(step)] for step in block.steps if not isinstance(step, Activation))
        forward.append(Operation(block.name, "forward", flops, inputs + weights + product))
        if rest:
            forward.append(Operation(f"{block.name} {rest}", "forward", 0, product + outputs))
            backward.append(Operation(f"{block.name} {rest}", "backward", 0, outputs + 2 * product))
        backward.append(Operation(f"{block.name} weights", "backward", flops, inputs + product + weights))
        if index:  # images need no gradient
            backward.append(Operation(f"{block.name} inputs", "backward", flops, product + weights + inputs))
        shape = shapes.output
        parameters += shapes.parameters
    gradient = item
    copy = 0 if dtype == torch.float32 else item
    update = Operation("update", "update", 0, parameters * (4 * 4 + gradient + copy))
    return [*forward, *reversed(backward), update]


def _convolved(block: ConvBlock, shape: Sequence[int]) -> tuple[int, int, int]:
    top, bottom, left, right = four_sided(block.padding)
    height = (shape[1] + top + bottom - block.kernel_size) // block.stride + 1
    width = (shape[2] + left + right - block.kernel_size) // block.stride + 1
    return block.out_channels, height, width


def limit_ms(architecture: Architecture, batch: int, ceilings: Ceilings) -> float:
    """The least time of one training step in milliseconds."""
    return sum(operation.limit_ms(ceilings) for operation in operations(architecture, batch, ceilings.dtype))


def table(architecture: Architecture, batch: int, ceilings: Ceilings) -> rich.table.Table:
    """The arithmetic, the bytes and the limit of every operator."""
    total = limit_ms(architecture, batch, ceilings)
    name = str(ceilings.dtype).removeprefix("torch.")
    result = rich.table.Table(
        title=f"{architecture.name}, batch {batch}, {name}: at least {total:.2f} ms, "
        f"at most {1e3 * batch / total:,.0f} images/s "
        f"({ceilings.gflop_per_s:,.0f} GFLOP/s, {ceilings.gb_per_s:,.0f} GB/s)"
    )
    for column in ("operator", "part"):
        result.add_column(column)
    for column in ("GFLOP", "MB", "ms", "share", "bound by"):
        result.add_column(column, justify="right")
    for operation in operations(architecture, batch, ceilings.dtype):
        ms = operation.limit_ms(ceilings)
        arithmetic = operation.flops / ceilings.gflop_per_s / 1e6 >= ms
        cells = [f"{operation.flops / 1e9:.2f}", f"{operation.bytes / 1e6:.1f}", f"{ms:.3f}", f"{ms / total:.1%}"]
        result.add_row(operation.name, operation.part, *cells, "arithmetic" if arithmetic else "bytes")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--architecture", default="krizhevsky")
    parser.add_argument("--batch", type=int, default=128 if CUDA else 64)
    arguments = parser.parse_args()
    console = rich.console.Console()
    for dtype in (torch.bfloat16, torch.float32) if CUDA else (torch.float32,):
        console.print(table(build_architecture(arguments.architecture), arguments.batch, measure(dtype)))


if __name__ == "__main__":
    main()

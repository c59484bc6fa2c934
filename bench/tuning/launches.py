"""Finds the fastest launches of the memory-bound kernels: items and warps of a program.

Part of `python bench/conv_relu.py --tune`. Each kernel is timed within its operator, in channels_last at the shapes of
AlexNet's layers, all of them together. A launch is rejected if the result differs from the default launch's by more
than rounding, or from call to call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import harness
import torch
from static_analysis.cases import BLOCKS
from torch import Tensor

import kernels
from kernels import tuned
from kernels.tuned import Entry, Launch
from tuning.convolution import uninitialised_as_nan

# One to four items per thread, one to eight warps.
CANDIDATES = tuple(Launch(32 * warps * each, warps) for each in (1, 2, 4) for warps in (1, 2, 4, 8))
# Seconds per launch and shape.
_SECONDS = 0.03

Operator = Callable[[Tensor], Tensor]
Work = Callable[[], Tensor]
Timer = Callable[[Work], float]

# The kernels of forward and of backward.
OPERATORS: tuple[tuple[Operator, tuple[str, ...], tuple[str, ...]], ...] = (
    (partial(kernels.max_pool2d, kernel_size=3, stride=2), ("max_pool_fwd_kernel",), ("max_pool_bwd_kernel",)),
    (partial(kernels.local_response_norm, size=5, k=2.0, groups=2), ("lrn_fwd_kernel",), ("lrn_bwd_kernel",)),
    (
        partial(kernels.lrn_max_pool2d, groups=2, relu="before"),
        ("lrn_pool_fwd_kernel",),
        ("lrn_pool_bwd_kernel",),
    ),
    (kernels.same_map_norm, ("same_map_fwd_kernel",), ("same_map_spread_kernel", "same_map_bwd_kernel")),
    (kernels.same_map_norm_max_pool2d, ("same_map_pool_fwd_kernel",), ("same_map_pool_bwd_kernel",)),
)


def median(work: Work) -> float:
    """Milliseconds of a piece of work."""
    return harness.timed(lambda: None, lambda _: work(), _SECONDS)[1]


def tune(
    dtypes: Sequence[torch.dtype],
    shapes: Sequence[tuple[int, ...]],
    candidates: Sequence[Launch] = CANDIDATES,
    time: Timer = median,
) -> dict[tuple[str, str], Entry]:
    """The fastest launch of every kernel, by kernel and dtype.

    Args:
        shapes: of the operators' inputs.
        time: returns the milliseconds of a piece of work.
    """
    found = {}
    for dtype in dtypes:
        for operator, *directions in OPERATORS:
            for names, of_direction in zip(directions, (_forward, _backward), strict=True):
                work = [of_direction(operator, x) for x in _inputs(shapes, dtype)]
                for kernel in names:
                    entry, refused = best(kernel, work, dtype, candidates, time)
                    found[kernel, str(dtype).removeprefix("torch.")] = entry
                    _report(kernel, dtype, entry, refused)
    return found


def shapes_of(batch: int) -> list[tuple[int, ...]]:
    """Inputs of the layers that normalise or pool."""
    return [(batch, channels, side, side) for channels, side in BLOCKS.values()]


def _inputs(shapes: Sequence[tuple[int, ...]], dtype: torch.dtype) -> Iterator[Tensor]:
    generator = torch.Generator(harness.DEVICE).manual_seed(0)
    for shape in shapes:
        x = torch.randn(shape, generator=generator, device=harness.DEVICE).to(dtype)
        yield x.to(memory_format=torch.channels_last)


def _forward(operator: Operator, x: Tensor) -> Work:
    x.requires_grad_()  # so that the kernels write what backward needs
    return lambda: operator(x).detach()


def _backward(operator: Operator, x: Tensor) -> Work:
    x.requires_grad_()
    y = operator(x)
    grad = torch.ones_like(y)
    return lambda: torch.autograd.grad(y, x, grad, retain_graph=True)[0]


def best(
    kernel: str, work: Sequence[Work], dtype: torch.dtype, candidates: Sequence[Launch], time: Timer
) -> tuple[Entry, dict[Launch, str]]:
    """The fastest launch with correct results, and the rejected ones with reasons."""
    wanted = [run() for run in work]
    default_ms = sum(time(run) for run in work)
    times, refused = {Launch(): default_ms}, {}
    for launch in candidates:
        if launch in times:
            continue
        try:
            with tuned.trying(kernel, launch):
                with uninitialised_as_nan():
                    results = [(run(), run()) for run in work]
                    if harness.CUDA:
                        torch.cuda.synchronize()
                reason = _what_is_wrong(results, wanted, dtype)
                if reason is None:
                    times[launch] = sum(time(run) for run in work)
                else:
                    refused[launch] = reason
        except Exception as error:
            # Too many registers: Triton has no common type for such errors.
            refused[launch] = harness.failure_reason(error)
    fastest = min(times, key=lambda launch: times[launch])
    return Entry(fastest, round(times[fastest], 5), round(default_ms, 5)), refused


def _what_is_wrong(
    results: Sequence[tuple[Tensor, Tensor]], wanted: Sequence[Tensor], dtype: torch.dtype
) -> str | None:
    for (found, again), expected in zip(results, wanted, strict=True):
        distance = float((found.double() - expected.double()).abs().max() / expected.double().abs().max())
        if not distance <= harness.TOLERANCES[dtype]:
            return f"is off by {distance:.1e}"
        if not torch.equal(found, again):
            return "is not deterministic"
    return None


def _report(kernel: str, dtype: torch.dtype, entry: Entry, refused: dict[Launch, Any]) -> None:
    print(f"{kernel} in {dtype}: {entry.launch}, {entry.ms} ms, default {entry.default_ms} ms; {len(refused)} refused")
    for launch, reason in refused.items():
        print(f"  {launch}: {reason}", flush=True)

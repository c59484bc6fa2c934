"""CUDA graphs of single passes: the forward and the backward pass of one stage and one micro-batch.

A step of a pipeline cannot be captured as a whole, because it waits for tensors of other processes. Captured are the
parts between two such waits: each pass, and the deferred weight gradients at the end of the step. The schedules of
``torch.distributed.pipelining`` are unchanged; the stages that they call replay graphs.

All graphs of a worker share one memory pool. Memory in the pool is reused after its last use in the order of the
captures. The graphs must therefore be replayed in this order, and tensors that are sent to other stages must be kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

Replay = Callable[[], object]
"""Repeats what was recorded, on the same memory."""

Record = Callable[[Callable[[], None]], Replay]
"""Records a function. The replay reads and writes the same memory as the function."""


class MicroBatch:
    """The recorded forward and backward pass of one micro-batch through one stage.

    Args:
        stage: a module with ``forward(x, *, seed, first_row)`` and a flag ``is_first``.
        x: the buffer from which the stage reads its input.
        seed: dropout seed, int64 on the device.
        first_row: position of the micro-batch's first image in the whole batch, int64 on the device.

    Attributes:
        y: the stage's output. Set by the first forward pass.
        dy: the buffer from which the backward pass reads the gradient of ``y``.
        dx: the gradient of ``x``; None for images. Set by the first backward pass.
    """

    y: Tensor
    dy: Tensor
    dx: Tensor | None

    def __init__(self, stage: nn.Module, x: Tensor, seed: Tensor, first_row: Tensor) -> None:
        self.x = x
        self._stage, self._arguments = stage, {"seed": seed, "first_row": first_row}
        self._autograd_ends: tuple[Tensor, Tensor] | None = None  # input and output, between the two passes
        self._replays: dict[str, Replay] = {}

    def record(self, kind: Literal["forward", "backward"], record: Record) -> None:
        """Record one of the passes. The forward pass comes first."""
        self._replays[kind] = record(self._forward if kind == "forward" else self._backward)
        if kind == "forward":
            self.dy = torch.empty_like(self.y)

    def forward(self, x: Tensor) -> Tensor:
        """Replay the forward pass."""
        self.x.copy_(x, non_blocking=True)
        self._replays["forward"]()
        return self.y.detach()

    def backward(self, dy: Tensor) -> Tensor | None:
        """Replay the backward pass."""
        self.dy.copy_(dy)
        self._replays["backward"]()
        return None if self.dx is None else self.dx.detach()

    def _forward(self) -> None:
        x = self.x.detach().requires_grad_(not self._stage.is_first)
        with torch.enable_grad():
            y = self._stage(x, **self._arguments)
        self._autograd_ends, self.y = (x, y), y.detach()

    def _backward(self) -> None:
        assert self._autograd_ends is not None
        x, y = self._autograd_ends
        torch.autograd.backward(y, self.dy)
        self._autograd_ends, self.dx = None, x.grad


class GraphedStage(nn.Module):
    """A stage that runs eagerly until its passes are recorded, and replays them afterwards.

    Args:
        stage: as for :class:`MicroBatch`.

    Attributes:
        micro_batches: the recorded passes, in the order of the step's forward passes; empty before recording.
    """

    def __init__(self, stage: nn.Module, device: torch.device) -> None:
        super().__init__()
        self.stage = stage
        self.micro_batches: Sequence[MicroBatch] = ()
        # Images need no gradient, but autograd runs a backward pass only if some input needs one.
        self._anchor = torch.zeros((), device=device, requires_grad=True)
        self._next = 0

    def forward(self, x: Tensor, *, seed: int | Tensor = 0, first_row: int | Tensor = 0) -> Tensor:
        """Run the stage, or replay its next micro-batch. A replay reads seed and row from the recorded buffers."""
        if not self.micro_batches:
            return self.stage(x, seed=seed, first_row=first_row)
        micro_batch = self.micro_batches[self._next]
        self._next = (self._next + 1) % len(self.micro_batches)
        return _ReplayPasses.apply(x, self._anchor, micro_batch)


class _ReplayPasses(torch.autograd.Function):
    """Replays a micro-batch's passes as an autograd operation."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, anchor: Tensor, micro_batch: MicroBatch) -> Tensor:
        ctx.micro_batch = micro_batch
        return micro_batch.forward(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None]:
        (dy,) = gradients
        return ctx.micro_batch.backward(dy), None, None


def graph_recorder(stream: torch.cuda.Stream) -> Record:
    """A function that captures CUDA graphs on ``stream``. Its graphs share one memory pool; capturing computes nothing.

    The function raises RuntimeError if a capture fails, and leaves the allocator usable.
    """
    pool = torch.cuda.graph_pool_handle()

    def record(run: Callable[[], None]) -> Replay:
        graph = torch.cuda.CUDAGraph()
        try:
            # "thread_local": the loader's threads go on calling CUDA during the capture.
            with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                run()
        except BaseException:
            _release_pool(stream.device.index, pool)
            raise
        return graph.replay

    return record


def _release_pool(device: int, pool: Any) -> None:
    """Stop allocating to a capture's pool. If ending a capture fails, torch does not do this itself."""
    try:
        torch._C._cuda_endAllocateToPool(device, pool)
    except RuntimeError:  # the capture did end
        return
    torch._C._cuda_releasePool(device, pool)

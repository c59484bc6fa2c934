"""The passes of a pipeline's stages, recorded one by one to be replayed: on GPUs as CUDA graphs.

A step over stages cannot be captured whole, as it waits for tensors of other processes in its middle. What lies between
two such tensors can: one stage's forward or backward pass of one micro-batch, and what is left to the end of the step.
The schedules of ``torch.distributed.pipelining`` stay as they are; the stages that they call are replays.

A worker's graphs share one pool of memory, where a tensor's place is given away after its last use in the order of
their capture. That must therefore be the order of their replays; and what is sent to other stages keeps its place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fastalex.network.model import Stage

Replay = Callable[[], object]


Record = Callable[[Callable[[], None]], Replay]
"""Runs a function and returns what does the same again: reads the same memory, and writes the same memory."""


class MicroBatch:
    """One micro-batch's way there and back through one stage.

    Args:
        x: where the stage reads its input.
        seed: key of the dropout masks, on the device.
        first_row: of the micro-batch in the whole batch, on the device.

    Attributes:
        y: the stage's output, since the first forward pass.
        dy: where the backward pass reads the output's gradient.
        dx: the input's gradient, since the first backward pass; None for images.
    """

    y: Tensor
    dy: Tensor
    dx: Tensor | None

    def __init__(self, stage: Stage, x: Tensor, seed: Tensor, first_row: Tensor) -> None:
        self.x = x
        self._stage, self._key = stage, {"seed": seed, "first_row": first_row}
        self._graph: tuple[Tensor, Tensor] | None = None  # autograd's ends, between the two passes
        self._replays: dict[str, Replay] = {}

    def record(self, kind: Literal["forward", "backward"], record: Record) -> None:
        """Record one of the passes, the forward one first."""
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
            y = self._stage(x, **self._key)
        self._graph, self.y = (x, y), y.detach()

    def _backward(self) -> None:
        assert self._graph is not None
        x, y = self._graph
        torch.autograd.backward(y, self.dy)
        self._graph, self.dx = None, x.grad


class GraphedStage(nn.Module):
    """A stage as a schedule calls it: itself, until its passes are recorded.

    Attributes:
        micro_batches: the recorded passes, in the order of a step's forward passes.
    """

    def __init__(self, stage: Stage, device: torch.device) -> None:
        super().__init__()
        self.stage = stage
        self.micro_batches: Sequence[MicroBatch] = ()
        # Images need no gradient, but autograd calls back only for what does.
        self._anchor = torch.zeros((), device=device, requires_grad=True)
        self._next = 0

    def forward(self, x: Tensor, *, seed: int | Tensor = 0, first_row: int | Tensor = 0) -> Tensor:
        """As :meth:`fastalex.network.model.Stage.forward`; a replay reads key and row where they were recorded."""
        if not self.micro_batches:
            return self.stage(x, seed=seed, first_row=first_row)
        micro_batch = self.micro_batches[self._next]
        self._next = (self._next + 1) % len(self.micro_batches)
        return _Passes.apply(x, self._anchor, micro_batch)


class _Passes(torch.autograd.Function):
    """Both passes, as autograd calls them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, anchor: Tensor, micro_batch: MicroBatch) -> Tensor:
        ctx.micro_batch = micro_batch
        return micro_batch.forward(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None]:
        (dy,) = gradients
        return ctx.micro_batch.backward(dy), None, None


def in_graphs(stream: torch.cuda.Stream) -> Record:
    """Records CUDA graphs on this stream, with one pool of memory; nothing is computed meanwhile."""
    pool = torch.cuda.graph_pool_handle()

    def record(run: Callable[[], None]) -> Replay:
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads (the loader's) go on calling CUDA meanwhile; only this one's calls must be recordable.
            with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                run()
        except BaseException:
            _leave_pool(stream.device.index, pool)
            raise
        return graph.replay

    return record


def _leave_pool(device: int, pool: Any) -> None:
    """Let the allocator work as before: where a capture's end fails, torch leaves it allocating for that capture."""
    try:
        torch._C._cuda_endAllocateToPool(device, pool)
    except RuntimeError:  # the end did not fail
        return
    torch._C._cuda_releasePool(device, pool)

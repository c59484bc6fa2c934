"""One training step: forward, loss, backward and update of one batch.

The calls are the same on every device. :mod:`fastalex.training.graphed_step` runs the same step from CUDA graphs.
Everything that changes between steps is therefore read from device memory: images, labels, the dropout seed and the
learning rates.

torch.compile is not used. The fusions that it would find are written by hand in :mod:`kernels`, CUDA graphs save the
launches, and it would have to recompile for every architecture, batch size and split. ``bench/train_step.py`` compares
the two.

Nothing here waits for the device. Counts stay on it, and :class:`~fastalex.training.readback.DelayedReadback` copies
them to the host while later steps run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor

from fastalex.errors import ConfigurationError
from fastalex.network.blocks import WeightedBlock
from fastalex.network.deferred_gradients import LinearGradientSink
from fastalex.parallel.engine import Engine, WholeNetwork
from fastalex.recipes.optimizer import KrizhevskySGD
from fastalex.training.config import NonFinitePolicy


class OverlappedUpdate:
    """Updates the fully connected weights on a second stream, while the main stream goes on with the backward pass.

    These weights are 96 % of the network of 2012, and their update moves memory, while convolutions mostly compute. A
    weight is updated as soon as the layer's last backward pass of the step has used it. The main stream waits for the
    second one before the step's own update, which leaves these weights out.

    Args:
        engine: holds the whole network alone. Replicas average gradients first, and the passes of pipeline stages may
            be replayed from CUDA graphs, which call nothing.

    Raises:
        ConfigurationError: another engine, or not on a GPU.
    """

    def __init__(self, engine: Engine, optimizer: KrizhevskySGD) -> None:
        if not isinstance(engine, WholeNetwork) or engine.is_replicated or engine.device.type != "cuda":
            raise ConfigurationError(
                f"overlap_update needs one GPU that holds the whole network, got {type(engine).__name__} on "
                f"{engine.device}: leave it out"
            )
        self.optimizer = optimizer
        self._device, self._micro_batches = engine.device, engine.micro_batches
        self._stream = torch.cuda.Stream(engine.device)
        # Fully connected layers in groups have no sink.
        sinks = [(block, block.gradient_sink) for block in engine.stage.blocks()]
        self._layers = [(block, sink) for block, sink in sinks if isinstance(sink, LinearGradientSink)]

    @contextmanager
    def during_backward(self) -> Iterator[None]:
        """In this block, which holds the passes of one step, weights are updated."""
        for block, sink in self._layers:
            sink.when_complete(self._micro_batches, partial(self._update, block, sink))
        try:
            yield
        finally:
            for _, sink in self._layers:
                sink.when_complete(0, None)
            torch.cuda.current_stream(self._device).wait_stream(self._stream)

    def _update(self, block: WeightedBlock, sink: LinearGradientSink) -> None:
        # The main stream has been given the last product with this weight.
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        sink.record_stream(self._stream)
        with torch.cuda.stream(self._stream):
            block.finish_gradient()
            self.optimizer.step(only=[block.weight])
        block.weight.grad = None


class TrainingStep:
    """Forward, loss, backward and update of one batch.

    Args:
        engine: computes the gradients.
        optimizer: updates the engine's parameters.
        on_non_finite: ``stop`` updates in any case and leaves checking the losses to the caller; ``skip`` keeps weights
            and velocities unchanged in steps with a non-finite loss or gradient.
        agree: replaces a one-element tensor, in place, by its minimum over all workers, so that all workers skip the
            same steps. Needed for ``skip`` with several workers.
        overlap_update: update fully connected weights on a second stream (:class:`OverlappedUpdate`). Not with
            ``skip``, which knows only at the end of the backward pass whether to update.

    Raises:
        ConfigurationError: ``overlap_update`` with ``skip``, or with an engine that does not support it.

    Attributes:
        steps: number of steps made, int64 on the device.
        skipped: number of skipped steps, int64 on the device.
        first_bad: number of the first step, counted from 1, with a non-finite loss; 0 if there was none. int64 on the
            device. Only the last stage computes losses, so only its worker knows this.
    """

    def __init__(
        self,
        engine: Engine,
        optimizer: KrizhevskySGD,
        on_non_finite: NonFinitePolicy = "stop",
        agree: Callable[[Tensor], object] | None = None,
        *,
        overlap_update: bool = False,
    ) -> None:
        if overlap_update and on_non_finite == "skip":
            raise ConfigurationError("overlap_update needs on_non_finite stop, got skip: leave one of them out")
        self.engine, self.optimizer = engine, optimizer
        self.on_non_finite, self.agree = on_non_finite, agree
        self._overlapped = OverlappedUpdate(engine, optimizer) if overlap_update else None
        self.steps, self.skipped, self.first_bad = (
            torch.zeros((), dtype=torch.int64, device=engine.device) for _ in range(3)
        )

    @property
    def learning_rate(self) -> float:
        """The current learning rate of the first block's weights, including warm-up."""
        return self.optimizer.param_groups[0]["lr"] * self.optimizer.warmup

    def __call__(self, images: Tensor | None, labels: Tensor | None, seed: int | Tensor) -> Tensor | None:
        """Make one step. :meth:`fastalex.parallel.engine.Engine.train_step` documents the arguments.

        Returns:
            The batch's counts on the device where the last stage is, else None. They are zeros for a skipped step, and
            the next call may overwrite them.
        """
        counts, enabled = self.compute_gradients(images, labels, seed)
        self.optimizer.step(enabled=enabled)
        self.optimizer.zero_grad()
        return counts

    def compute_gradients(
        self, images: Tensor | None, labels: Tensor | None, seed: int | Tensor
    ) -> tuple[Tensor | None, Tensor | None]:
        """The step up to its update.

        Returns:
            The batch's counts, and whether to update (1 or 0, one element on the device; None always updates).
        """
        with nullcontext() if self._overlapped is None else self._overlapped.during_backward():
            counts = self.engine.train_step(images, labels, seed)
        self.steps += 1
        if counts is not None:
            is_first_bad = (self.first_bad == 0) & ~torch.isfinite(counts[0])
            self.first_bad += self.steps * is_first_bad
        if self.on_non_finite == "stop":
            return counts, None

        # All workers update, or none does.
        enabled = self._all_finite(counts)
        if self.agree is not None:
            self.agree(enabled)
        self.skipped += 1 - enabled.to(torch.int64)
        if counts is not None:
            counts = torch.where(enabled > 0, counts, torch.zeros_like(counts))
        return counts, enabled

    def _all_finite(self, counts: Tensor | None) -> Tensor:
        """1 if this worker's loss and gradients are finite, else 0: one float64 element on the device."""
        gradients = [p.grad for p in self.engine.stage.parameters() if p.grad is not None]
        sums = [norm.double() for norm in torch._foreach_norm(gradients)]
        if counts is not None:
            sums.append(counts[0])
        return torch.isfinite(torch.stack(sums)).all().double()

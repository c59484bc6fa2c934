"""Training steps that run from CUDA graphs: launching a step's hundred kernels takes longer than computing them.

The first :data:`WARM_UP_STEPS` steps run eagerly. They compile kernels and fill caches, and are normal steps of the
run. The next step captures the graphs, and from then on the graphs are replayed. If the capture fails, training goes on
with eager steps and prints one line.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastalex.parallel.cuda_graphs import Replay, graph_recorder
from fastalex.parallel.engine import Engine
from fastalex.recipes.optimizer import KrizhevskySGD
from fastalex.training.config import NonFinitePolicy
from fastalex.training.step import TrainingStep

WARM_UP_STEPS = 3
"""Eager steps before the capture."""


class _GraphedStepBase(TrainingStep):
    """What both kinds of graphed steps share: a stream of their own, and how they handle a failed capture."""

    def __init__(
        self,
        engine: Engine,
        optimizer: KrizhevskySGD,
        on_non_finite: NonFinitePolicy = "stop",
        agree: Callable[[Tensor], object] | None = None,
        say: Callable[[str], None] = print,
        *,
        overlap_update: bool = False,
    ) -> None:
        super().__init__(engine, optimizer, on_non_finite, agree, overlap_update=overlap_update)
        self.say = say
        self.capture_failed = False
        self._calls = 0
        self._stream = torch.cuda.Stream(engine.device)
        # Until the capture ends, no batch may be freed: DALI then synchronises the device, which CUDA forbids during a
        # capture and answers by ending the process.
        self._batches_in_use: list[Tensor] = []

    def _on_capture_stream(self, step: Callable[[], Tensor | None]) -> Tensor | None:
        """Run a step on the stream of the capture and make its counts available on the current stream."""
        current = torch.cuda.current_stream(self.engine.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            counts = step()
        current.wait_stream(self._stream)
        if counts is not None:
            counts.record_stream(current)
        return counts

    def _try_capture(self, capture: Callable[[], None]) -> bool:
        """Capture; return whether that succeeded."""
        current = torch.cuda.current_stream(self.engine.device)
        try:
            capture()
        except RuntimeError as error:
            torch.cuda.set_stream(current)  # torch leaves the capture's stream current if ending the capture fails
            self.capture_failed = True
            # Discard the gradients of the capture: they were never computed.
            self.optimizer.zero_grad()
            self.engine.stage.discard_deferred()
            self.say(f"CUDA graphs are off because the capture failed: {_reason(error)}")
        finally:
            self._batches_in_use.clear()
        return not self.capture_failed


def _reason(error: BaseException) -> str:
    """The first line of the original error; the one raised at the end of a failed capture gives no reason."""
    while isinstance(error.__context__, RuntimeError):
        error = error.__context__
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class GraphedStep(_GraphedStepBase):
    """A whole step in two CUDA graphs: the gradients, and the update.

    The update reads a table of the gradients' addresses. The first capture decides these addresses, so the table can
    only be built between the two captures.
    """

    _replays: tuple[Replay, Replay] | None = None
    _inputs: tuple[Tensor, Tensor, Tensor] | None = None
    _outputs: tuple[Tensor | None, Tensor | None] = (None, None)

    def __call__(self, images: Tensor | None, labels: Tensor | None, seed: int | Tensor) -> Tensor | None:
        """As :meth:`TrainingStep.__call__`."""
        if self.capture_failed:
            return super().__call__(images, labels, seed)
        assert images is not None
        assert labels is not None
        inputs = self._copy_inputs(images, labels, seed)
        self._calls += 1
        if self._replays is None:
            self._batches_in_use.append(images)

        # Warm up eagerly, then capture once, then replay.
        if self._calls <= WARM_UP_STEPS:
            return self._on_capture_stream(lambda: super(GraphedStep, self).__call__(*inputs))
        if self._replays is None and not self._try_capture(lambda: self._capture(*inputs)):
            self._inputs, self._outputs = None, (None, None)
            return super().__call__(images, labels, seed)
        assert self._replays is not None
        for replay in self._replays:
            replay()
        return self._outputs[0]

    def _copy_inputs(self, images: Tensor, labels: Tensor, seed: int | Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Copy the step's inputs into the buffers that the graphs read, in the dtype and memory format of conv1."""
        if self._inputs is None:
            dtype, device = self.engine.stage.input_dtype, self.engine.device
            self._inputs = (
                torch.empty(images.shape, dtype=dtype, device=device, memory_format=torch.channels_last),
                torch.empty_like(labels, device=device),
                torch.zeros((), dtype=torch.int64, device=device),
            )
        self._inputs[0].copy_(images, non_blocking=True)
        self._inputs[1].copy_(labels, non_blocking=True)
        self._inputs[2].fill_(seed)
        return self._inputs

    def _capture(self, images: Tensor, labels: Tensor, seed: Tensor) -> None:
        """Capture both graphs. Nothing is computed."""
        record = graph_recorder(self._stream)

        def gradients() -> None:
            self._outputs = self.compute_gradients(images, labels, seed)

        replay_gradients = record(gradients)
        # A disabled update has learning rates of 0: it changes no weight, but builds the table of addresses.
        self.optimizer.step(enabled=torch.zeros((), dtype=torch.float64, device=self.engine.device))
        self._replays = replay_gradients, record(lambda: self.optimizer.step(enabled=self._outputs[1]))


class GraphedPasses(_GraphedStepBase):
    """A step of a pipeline with one CUDA graph per forward and backward pass of this worker's stages.

    Communication between the passes, and the update after them, run eagerly.
    """

    def __call__(self, images: Tensor | None, labels: Tensor | None, seed: int | Tensor) -> Tensor | None:
        """As :meth:`TrainingStep.__call__`."""
        self._calls += 1
        if self._calls <= WARM_UP_STEPS + 1 and images is not None:
            self._batches_in_use.append(images)
        if self._calls == WARM_UP_STEPS + 1:
            record = graph_recorder(self._stream)
            self._try_capture(lambda: self.engine.capture(record))
        return self._on_capture_stream(lambda: super(GraphedPasses, self).__call__(images, labels, seed))


def build_step(
    engine: Engine,
    optimizer: KrizhevskySGD,
    *,
    on_non_finite: NonFinitePolicy = "stop",
    agree: Callable[[Tensor], object] | None = None,
    graphs: bool | None = None,
    overlap_update: bool = False,
    say: Callable[[str], None] = print,
) -> TrainingStep:
    """The step for an engine, from CUDA graphs if the engine can be captured.

    Args:
        graphs: whether to use CUDA graphs; None lets the engine decide.
        overlap_update: as for :class:`~fastalex.training.step.TrainingStep`.
        say: prints one line if the capture fails.
    """
    if engine.capture_obstacle(graphs) is not None:
        return TrainingStep(engine, optimizer, on_non_finite, agree, overlap_update=overlap_update)
    kind = GraphedPasses if engine.captures_passes else GraphedStep
    return kind(engine, optimizer, on_non_finite, agree, say, overlap_update=overlap_update)

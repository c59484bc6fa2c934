"""TODO."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastalex.parallel.cuda_graphs import Replay, in_graphs
from fastalex.parallel.engine import Engine
from fastalex.parallel.pipeline import Pipeline
from fastalex.recipes.optimizer import KrizhevskySGD
from fastalex.training.config import NonFinitePolicy
from fastalex.training.step import TrainingStep

# Steps before the capture: they compile kernels and fill caches, and are steps of the run like any other.
WARM_UP_STEPS = 3


class _Captured(TrainingStep):
    """What steps on GPUs share that are captured after a few plain ones: they run on a stream of their own.

    If the capture fails, the steps go on plainly and ``say`` gets one line.
    """

    engine: Engine

    def __init__(
        self,
        engine: Engine,
        optimizer: KrizhevskySGD,
        on_non_finite: NonFinitePolicy = "stop",
        agree: Callable[[Tensor], object] | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        super().__init__(engine, optimizer, on_non_finite, agree)
        self.say = say
        self.capturing = True
        self._calls = 0
        self._stream = torch.cuda.Stream(engine.device)
        # DALI synchronises the device when it gets a batch's memory back, which ends the process during a capture.
        self._held: list[Tensor] = []

    def _on_stream(self, make: Callable[[], Tensor | None]) -> Tensor | None:
        """Make a step on the stream that the capture uses; its counts are for the current one."""
        current = torch.cuda.current_stream(self.engine.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            counts = make()
        current.wait_stream(self._stream)
        if counts is not None:
            counts.record_stream(current)
        return counts

    def _captures(self, capture: Callable[[], None]) -> bool:
        """Whether it could be done."""
        current = torch.cuda.current_stream(self.engine.device)
        try:
            capture()
        except RuntimeError as error:
            torch.cuda.set_stream(current)  # torch leaves the capture's stream in place where its end fails
            self.capturing = False
            self.optimizer.zero_grad()  # the capture's gradients were never computed
            self.engine.stage.discard_deferred()
            self.say(f"CUDA graphs are off, as the capture failed: {_reason(error)}")
        finally:
            self._held.clear()
        return self.capturing


def _reason(error: BaseException) -> str:
    """One line. What the end of a capture says after an error within it names no reason: that error does."""
    while isinstance(error.__context__, RuntimeError):
        error = error.__context__
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class GraphedStep(_Captured):
    """A step on one GPU, captured in two CUDA graphs after a few plain ones and replayed from then on.

    The first graph ends with the gradients. Its capture gives them the addresses that they keep; only then can the
    update's table of addresses be made, which is what the second graph reads.
    """

    _replays: tuple[Replay, Replay] | None = None
    _inputs: tuple[Tensor, Tensor, Tensor] | None = None
    _outputs: tuple[Tensor | None, Tensor | None] = (None, None)

    def __call__(self, images: Tensor | None, labels: Tensor | None, seed: int | Tensor) -> Tensor | None:
        """As :meth:`TrainingStep.__call__`."""
        if not self.capturing:
            return super().__call__(images, labels, seed)
        assert images is not None
        assert labels is not None
        inputs = self._take(images, labels, seed)
        self._calls += 1
        if self._replays is None:
            self._held.append(images)
        if self._calls <= WARM_UP_STEPS:
            return self._on_stream(lambda: super(GraphedStep, self).__call__(*inputs))
        if self._replays is None and not self._captures(lambda: self._capture(*inputs)):
            self._inputs, self._outputs = None, (None, None)
            return super().__call__(images, labels, seed)
        assert self._replays is not None
        for replay in self._replays:
            replay()
        return self._outputs[0]

    def _take(self, images: Tensor, labels: Tensor, seed: int | Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Copy the step's inputs to where the graphs read them, in the dtype and layout that conv1 takes."""
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
        """Record the step; nothing is computed."""
        record = in_graphs(self._stream)

        def gradients() -> None:
            self._outputs = self.compute_gradients(images, labels, seed)

        replay_gradients = record(gradients)
        # With learning rates of 0 an update reads no gradient and changes nothing, but makes its table of addresses.
        self.optimizer.step(enabled=torch.zeros((), dtype=torch.float64, device=self.engine.device))
        self._replays = replay_gradients, record(lambda: self.optimizer.step(enabled=self._outputs[1]))


class GraphedPasses(_Captured):
    """A step over stages on GPUs. After a few plain ones the passes of this worker's stages are captured, each in a
    CUDA graph, and replayed from then on; what happens between them and the update stay as they are."""

    engine: Pipeline

    def __call__(self, images: Tensor | None, labels: Tensor | None, seed: int | Tensor) -> Tensor | None:
        """As :meth:`TrainingStep.__call__`."""
        self._calls += 1
        if self._calls <= WARM_UP_STEPS + 1 and images is not None:
            self._held.append(images)
        if self._calls == WARM_UP_STEPS + 1:
            record = in_graphs(self._stream)
            self._captures(lambda: self.engine.capture(record))
        return self._on_stream(lambda: super(GraphedPasses, self).__call__(images, labels, seed))


def build_step(
    engine: Engine,
    optimizer: KrizhevskySGD,
    *,
    on_non_finite: NonFinitePolicy = "stop",
    agree: Callable[[Tensor], object] | None = None,
    graphs: bool | None = None,
    say: Callable[[str], None] = print,
) -> TrainingStep:
    """The step for this engine: captured where that is wanted and possible.

    Args:
        graphs: False never captures, None does not capture stages.
        say: gets one line where a capture fails.
    """
    if engine.capture_obstacle(graphs) is not None:
        return TrainingStep(engine, optimizer, on_non_finite, agree)
    kind = GraphedPasses if engine.captures_passes else GraphedStep
    return kind(engine, optimizer, on_non_finite, agree, say)

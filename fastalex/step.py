"""One training step as the trainer calls it: forward, loss, backward and update, with what keeps it from waiting.

The same calls on every device. On one GPU the step is captured in CUDA graphs, because its hundred launches take the
host longer than the GPU takes to compute them; over stages the passes are, if that is asked for. What differs from step
to step is read from the device's memory: images, labels, the key of the dropout masks and the learning rates.

torch.compile has no part in this: what it would fuse is fused by hand in :mod:`kernels`, the launches that it would
save are in the graphs, and it would have to compile anew for every architecture, batch size and cut.
``bench/train_step.py`` times it beside this step.

Nothing here waits for the device. Counts stay on it; :class:`LateReader` brings them to the host while later steps run.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

import torch
from torch import Tensor

from fastalex.captured import Replay, in_graphs
from fastalex.optimizer import KrizhevskySGD
from fastalex.pipeline import DataParallel, Pipeline, SingleDevice

NonFinitePolicy = Literal["stop", "skip"]
# Steps before the capture: they compile kernels and fill caches, and are steps of the run like any other.
WARM_UP_STEPS = 3

Tag = TypeVar("Tag")


class TrainingStep:
    """Forward, loss, backward and update of one batch.

    Args:
        engine: computes the gradients.
        optimizer: updates the engine's parameters.
        on_non_finite: ``stop`` leaves it to the caller to look at the losses; ``skip`` leaves weights and velocities as
            they are in steps whose loss or gradients are not finite.
        agree: replaces a tensor of one element, in place, by its minimum over all workers; wanted for ``skip`` with
            several stages.

    Attributes:
        skipped: how many steps were skipped: int64, on the device.
        first_bad: the first step, counted from 1, whose loss was not finite, or 0: int64, on the device. Known where
            the last stage is.
    """

    def __init__(
        self,
        engine: SingleDevice | Pipeline,
        optimizer: KrizhevskySGD,
        on_non_finite: NonFinitePolicy = "stop",
        agree: Callable[[Tensor], object] | None = None,
    ) -> None:
        self.engine, self.optimizer = engine, optimizer
        self.on_non_finite, self.agree = on_non_finite, agree
        self.made, self.skipped, self.first_bad = (
            torch.zeros((), dtype=torch.int64, device=engine.device) for _ in range(3)
        )

    def __call__(self, images: Tensor | None, labels: Tensor | None, seed: int | Tensor) -> Tensor | None:
        """Make one step; see :meth:`fastalex.pipeline.SingleDevice.train_step` for the arguments.

        Returns:
            The batch's counts, on the device, where the last stage is, else None; zeros for a skipped step. They are
            overwritten by the next call.
        """
        counts, enabled = self.compute_gradients(images, labels, seed)
        self.optimizer.step(enabled=enabled)
        self.optimizer.zero_grad()
        return counts

    def compute_gradients(
        self, images: Tensor | None, labels: Tensor | None, seed: int | Tensor
    ) -> tuple[Tensor | None, Tensor | None]:
        """The step up to its update: the counts, and whether the update is to be made (None: it is)."""
        counts = self.engine.train_step(images, labels, seed)
        self.made += 1
        if counts is not None:
            is_first_bad = (self.first_bad == 0) & ~torch.isfinite(counts[0])
            self.first_bad += self.made * is_first_bad
        if self.on_non_finite == "stop":
            return counts, None
        enabled = self._all_finite(counts)
        if self.agree is not None:
            self.agree(enabled)
        self.skipped += 1 - enabled.to(torch.int64)
        if counts is not None:
            counts = torch.where(enabled > 0, counts, torch.zeros_like(counts))
        return counts, enabled

    def _all_finite(self, counts: Tensor | None) -> Tensor:
        """1 if this worker's loss and gradients are finite, else 0: float64, one element, on the device."""
        gradients = [p.grad for p in self.engine.stage.parameters() if p.grad is not None]
        sums = [norm.double() for norm in torch._foreach_norm(gradients)]
        if counts is not None:
            sums.append(counts[0])
        return torch.isfinite(torch.stack(sums)).all().double()


class _Captured(TrainingStep):
    """What steps on GPUs share that are captured after a few plain ones: they run on a stream of their own.

    If the capture fails, the steps go on plainly and ``say`` gets one line.
    """

    engine: SingleDevice | Pipeline

    def __init__(
        self,
        engine: SingleDevice | Pipeline,
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
            self.engine.stage.drop_kept()
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
            self._captures(lambda: self.engine.record(record))
        return self._on_stream(lambda: super(GraphedPasses, self).__call__(images, labels, seed))


def why_not_captured(engine: SingleDevice | Pipeline, graphs: bool | None = None) -> str | None:
    """One line that says why this engine's steps are not captured in CUDA graphs, or None if they are to be.

    Args:
        graphs: as :func:`build_step` takes it.
    """
    if engine.device.type != "cuda":
        return "CUDA graphs are off: this is a CPU"
    if graphs is False:
        return "CUDA graphs are off, as was asked for"
    if isinstance(engine, DataParallel) or (isinstance(engine, Pipeline) and engine.replicated):
        return "CUDA graphs are off: replicas exchange gradients in the middle of a step"
    if isinstance(engine, Pipeline) and not engine.records:
        return "CUDA graphs are off: passes of the zero-bubble schedule are not captured"
    if isinstance(engine, Pipeline) and graphs is None:
        return "CUDA graphs are off: those of stages are new and have to be asked for (--cuda-graphs)"
    return None


def build_step(
    engine: SingleDevice | Pipeline,
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
    if why_not_captured(engine, graphs) is not None:
        return TrainingStep(engine, optimizer, on_non_finite, agree)
    kind = GraphedPasses if isinstance(engine, Pipeline) else GraphedStep
    return kind(engine, optimizer, on_non_finite, agree, say)


@dataclass
class _Entry(Generic[Tag]):
    values: Tensor
    event: torch.cuda.Event | None
    tag: Tag


class LateReader(Generic[Tag]):
    """Brings small vectors from the device to the host, in order, some calls late, so that nobody waits for them.

    Args:
        delay: a vector is handed out when so many later ones have been put; by then its copy is long done. 0 waits for
            it at once.
    """

    def __init__(self, delay: int) -> None:
        self.delay = delay
        self._entries: deque[_Entry[Tag]] = deque()

    def put(self, values: Tensor, tag: Tag) -> None:
        """Take a vector; what becomes of the tensor afterwards does not matter."""
        if values.is_cuda:
            host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            host.copy_(values, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
            self._entries.append(_Entry(host, event, tag))
        else:
            self._entries.append(_Entry(values.clone(), None, tag))

    def take(self, *, everything: bool = False) -> list[tuple[Tensor, Tag]]:
        """The vectors that are due, oldest first; with ``everything`` all that are left."""
        due = []
        while self._entries and (everything or len(self._entries) > self.delay):
            entry = self._entries.popleft()
            if entry.event is not None:
                entry.event.synchronize()
            due.append((entry.values, entry.tag))
        return due

"""Counting: what the steps of a run have added up to, shared among all workers without waiting for the device."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from fastalex.errors import ConfigurationError, NonFiniteLoss
from fastalex.metrics import Metrics
from fastalex.options.training import resume_command
from fastalex.parallel.world import World
from fastalex.training.checkpoint import latest_checkpoint
from fastalex.training.metrics_log import Rate
from fastalex.training.readback import DelayedReadback
from fastalex.training.state import TrainingState
from fastalex.training.step import TrainingStep

# Abort after this many consecutive skipped steps, or an epoch of them: training has stalled.
_MOST_SKIPPED = 100


@dataclass(frozen=True)
class Report:
    """What a stretch of steps has added up to.

    Attributes:
        state: the training state after the last of these steps.
        metrics: over all images of the stretch, except those of skipped steps.
        learning_rate: of the weights of the first block this worker holds, including warm-up.
    """

    state: TrainingState
    metrics: Metrics
    rate: Rate
    learning_rate: float


@dataclass(frozen=True)
class _Moment:
    """The run at the time when counts were sent to the host; ``rate`` is None if no report is due."""

    state: TrainingState
    rate: Rate | None
    learning_rate: float


class Counters:
    """Collects the counts of training steps, shares them among all workers and hands out what is due for reporting.

    Counts of successive steps add up on the device (:meth:`add`). Every few steps they start their way to the host
    (:meth:`send`). Those that have arrived are summed over all workers, checked, and returned as reports
    (:meth:`receive`). The same exchange tells every worker whether one of them was asked to stop or wants a checkpoint,
    so that all stop or save at the same step. All workers must make the same calls.

    Args:
        step: the training step, which counts skipped and non-finite steps on the device.
        state: the run's state; its number of skipped steps is updated here.
        run: the run folder; error messages name its latest checkpoint.
        wants_save: asked at each exchange: whether this worker finds that a checkpoint is due.

    Attributes:
        exchange_every: steps between two exchanges.
        stop_requested: whether any worker was asked to stop, as of the last exchange.
        save_requested: whether any worker wanted a checkpoint at the last exchange. Who saves sets it to False.
    """

    def __init__(
        self,
        world: World,
        step: TrainingStep,
        state: TrainingState,
        run: Path,
        *,
        steps_per_epoch: int,
        wants_save: Callable[[], bool] = lambda: False,
    ) -> None:
        on_cpu = world.device.type == "cpu"
        # An exchange takes a fraction of a millisecond: negligible beside a step on a CPU, but not on a GPU.
        self.exchange_every = 1 if on_cpu else 10
        # On a GPU, counts are read while the next steps run.
        self.readback: DelayedReadback[_Moment] = DelayedReadback(0 if on_cpu else 1)
        self.stop_requested = self.save_requested = False
        self._wants_save = wants_save
        self._world, self._step, self._state, self._run = world, step, state, run
        self._most_skipped = min(_MOST_SKIPPED, steps_per_epoch)
        self._first_step = self._last_finite_step = state.step
        self._skipped_before = state.skipped
        self._on_device = torch.zeros(4, dtype=torch.float64, device=world.device)  # not sent yet
        self._unreported = torch.zeros(4, dtype=torch.float64)  # known to all workers, but not due yet

    def add(self, counts: Tensor | None) -> None:
        """Add the counts of one step; None where the last stage is not."""
        if counts is not None:
            self._on_device += counts

    def send(self, rate: Rate | None) -> None:
        """Start copying the counts since the last call to the host.

        Args:
            rate: of the steps since the last report, if a report is due; None otherwise.
        """
        # Every worker of a pipeline skips the same steps; one of them counts.
        counts_skipped = self._step.engine.is_last and self._world.replica == 0
        events = torch.stack([self._step.first_bad, self._step.skipped * counts_skipped])
        self.readback.put(torch.cat([self._on_device, events.double()]), self._now(rate))
        self._on_device.zero_()

    def receive(self, *, everything: bool) -> Iterator[Report]:
        """Share the counts that have arrived (all of them with ``everything``), and yield the reports that are due.

        Raises:
            NonFiniteLoss: a loss is not finite and the run stops at such losses, or too many steps in a row were
                skipped.
        """
        for values, moment in self.readback.take(everything=everything):
            *counts, _, skipped = self._share(values).tolist()
            if self._step.on_non_finite == "stop" and not math.isfinite(counts[0]):
                first_bad = self._world.gather_objects(int(values[4]))  # 0 on workers that have seen none
                self._raise_non_finite(counts[0], self._first_step + min(filter(None, first_bad)), moment.learning_rate)
            self._unreported += torch.tensor(counts, dtype=torch.float64)
            self._state.skipped = moment.state.skipped = self._skipped_before + int(skipped)
            if moment.rate is not None and self._has_progress(moment.state.step):
                yield self._report(moment, moment.rate)

    def receive_rest(self, rate: Rate) -> Iterator[Report]:
        """As :meth:`receive` of everything, and a last report of the steps that none was due for, at this rate."""
        yield from self.receive(everything=True)
        if self._unreported[3]:
            yield self._report(self._now(rate), rate)

    def check_finite(self, loss: float) -> None:
        """Raise NonFiniteLoss if the current weights have a non-finite loss."""
        if not math.isfinite(loss):
            self._raise_non_finite(loss, self._state.step, self._step.learning_rate)

    def check_weights(self, are_finite: bool) -> None:
        """Raise NonFiniteLoss if the last update has ruined the weights, which no loss shows yet."""
        if not are_finite:
            raise NonFiniteLoss(
                f"weights are not finite after step {self._state.step} with learning rate "
                f"{self._step.learning_rate:g}; {self._remedy()}"
            )

    def _now(self, rate: Rate | None) -> _Moment:
        return _Moment(replace(self._state), rate, self._step.learning_rate)

    def _share(self, values: Tensor) -> Tensor:
        """The sum of a CPU vector over all workers. Requests to save and to stop are part of the same message."""
        requests = torch.tensor([self._wants_save(), self._world.signal_number], dtype=torch.float64)
        shared = self._world.sum(torch.cat([values, requests]))
        self.save_requested = bool(shared[-2])
        self.stop_requested = self.stop_requested or bool(shared[-1])
        return shared[:-2]

    def _has_progress(self, step: int) -> bool:
        """Whether any of the unreported steps was not skipped."""
        if self._unreported[3]:
            return True
        skipped = step - self._last_finite_step
        if skipped >= self._most_skipped:
            raise NonFiniteLoss(
                f"all {skipped} steps up to step {step} were skipped because their loss or gradients were not finite; "
                f"{self._remedy()}"
            )
        return False

    def _report(self, moment: _Moment, rate: Rate) -> Report:
        metrics = Metrics.from_counts(self._unreported)
        self._unreported.zero_()
        self._last_finite_step = moment.state.step
        return Report(moment.state, metrics, rate, moment.learning_rate)

    def _raise_non_finite(self, loss: float, step: int, learning_rate: float) -> None:
        raise NonFiniteLoss(f"the loss is {loss} at step {step} with learning rate {learning_rate:g}; {self._remedy()}")

    def _remedy(self) -> str:
        try:
            checkpoint = latest_checkpoint(self._run)
        except ConfigurationError:
            return "there is no checkpoint yet: start again with a lower learning rate, or skip non-finite steps"
        lower = f"{self._step.optimizer.recipe.lr / 10:g}"
        resume = resume_command(self._run, lr=lower)
        return (
            f"the last good checkpoint is {checkpoint}: skip non-finite steps, or resume from it with a lower learning "
            f"rate: {resume}"
        )

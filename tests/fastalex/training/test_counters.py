"""Counting: what is shared among workers, what is due when, and which losses end a run."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fastalex.errors import NonFiniteLoss
from fastalex.parallel.layout import Layout
from fastalex.parallel.world import World
from fastalex.training.counters import Counters, Report
from fastalex.training.metrics_log import Rate
from fastalex.training.readback import DelayedReadback
from fastalex.training.state import TrainingState

CPU = torch.device("cpu")
RATE = Rate(8, 1.0, 0.0)


class _Step(SimpleNamespace):
    """A training step as far as it is counted."""

    def __init__(self, on_non_finite: str = "stop") -> None:
        super().__init__(
            first_bad=torch.zeros((), dtype=torch.int64),
            skipped=torch.zeros((), dtype=torch.int64),
            engine=SimpleNamespace(is_last=True),
            optimizer=SimpleNamespace(recipe=SimpleNamespace(lr=0.02)),
            on_non_finite=on_non_finite,
            learning_rate=0.01,
        )


class _TwoWorkers(World):
    """This worker and another one whose vectors are zero but for the last element."""

    other_signal = 0

    def sum(self, values):
        values[-1] += self.other_signal
        return values


def counters(
    tmp_path: Path,
    step: _Step | None = None,
    state: TrainingState | None = None,
    *,
    world: World | None = None,
    delay: int = 0,
) -> Counters:
    """Counters of a run of four steps an epoch."""
    world, state = world or World(0, 1, CPU), state or TrainingState()
    counters = Counters(world, step or _Step(), state, tmp_path, steps_per_epoch=4)  # type: ignore[arg-type]
    counters.readback = DelayedReadback(delay)
    return counters


def counts(loss: float = 2.0, images: float = 8.0) -> torch.Tensor:
    return torch.tensor([loss * images, 4.0, 1.0, images], dtype=torch.float64)


def receive(counters: Counters, *, everything: bool = False) -> list[Report]:
    return list(counters.receive(everything=everything))


def test_steps_add_up_until_a_report_is_due(tmp_path):
    state = TrainingState()
    counting = counters(tmp_path, state=state)
    counting.add(counts(loss=1.0))
    counting.add(None)  # a worker without the last stage
    state.step = 1
    counting.send(None)
    assert receive(counting) == []
    counting.add(counts(loss=3.0))
    state.step = 2
    counting.send(RATE)
    (report,) = receive(counting)
    assert (report.metrics.loss, report.metrics.top1_error, report.metrics.images) == (2.0, 50.0, 16)
    assert (report.state.step, report.rate, report.learning_rate) == (2, RATE, 0.01)


def test_a_late_report_keeps_the_state_of_its_step(tmp_path):
    state = TrainingState()
    counting = counters(tmp_path, state=state, delay=1)
    for step in (1, 2):
        counting.add(counts(loss=step))
        state.step = step
        counting.send(RATE)
    assert [report.state.step for report in receive(counting)] == [1]
    assert [report.state.step for report in receive(counting, everything=True)] == [2]


def test_the_rest_is_reported_when_the_run_stops(tmp_path):
    counting = counters(tmp_path, delay=1)
    counting.add(counts())
    counting.send(None)
    (report,) = counting.receive_rest(RATE)
    assert (report.metrics.images, report.rate) == (8, RATE)
    assert list(counting.receive_rest(RATE)) == []


def test_any_worker_stops_all(tmp_path):
    world = _TwoWorkers(0, 2, CPU)
    counting = counters(tmp_path, world=world)
    for other_signal, expected in ((0, False), (15, True), (0, True)):  # it stays
        world.other_signal = other_signal
        counting.send(None)
        receive(counting)
        assert counting.stop_requested == expected


def test_any_worker_that_wants_a_checkpoint_asks_all(tmp_path):
    wants = iter([False, True, False])
    counting = Counters(
        World(0, 1, CPU),
        _Step(),  # type: ignore[arg-type]
        TrainingState(),
        tmp_path,
        steps_per_epoch=4,
        wants_save=lambda: next(wants),
    )
    for expected in (False, True, False):
        counting.send(None)
        receive(counting)
        assert (counting.save_requested, counting.stop_requested) == (expected, False)


def test_a_non_finite_loss_names_its_step_and_rate(tmp_path):
    step, state = _Step(), TrainingState(step=100)
    counting = counters(tmp_path, step, state)
    step.first_bad.fill_(3)
    counting.add(counts(loss=float("nan")))
    state.step = 110
    counting.send(RATE)
    message = r"the loss is nan at step 103 with learning rate 0.01; there is no checkpoint yet: .* lower learning rate"
    with pytest.raises(NonFiniteLoss, match=message):
        receive(counting)
    counting.check_finite(1.0)
    with pytest.raises(NonFiniteLoss, match="the loss is inf at step 110"):
        counting.check_finite(float("inf"))


def test_the_first_of_all_workers_bad_steps_is_named(tmp_path):
    """Replicas see different images; workers without the last stage see no loss."""

    class Replicas(_TwoWorkers):
        def gather_objects(self, value):
            return [0, 5, value, 6]

    step, state = _Step(), TrainingState(step=100)
    counting = counters(tmp_path, step, state, world=Replicas(2, 4, CPU))
    step.first_bad.fill_(4)
    counting.add(counts(loss=float("inf")))
    counting.send(None)
    with pytest.raises(NonFiniteLoss, match=r"the loss is inf at step 104 "):
        receive(counting)


def test_the_remedy_is_a_command(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "checkpoints" / "0001-00000004").mkdir(parents=True)
    with pytest.raises(NonFiniteLoss) as error:
        counters(tmp_path).check_finite(float("nan"))
    assert f"checkpoint is {tmp_path}/checkpoints/0001-00000004: skip non-finite steps, or resume" in str(error.value)
    assert str(error.value).endswith(f"-m fastalex.train --resume {tmp_path} --lr 0.002")


def test_skipped_steps_are_counted_and_too_many_end_the_run(tmp_path):
    step, state = _Step("skip"), TrainingState(step=10, skipped=5)
    counting = counters(tmp_path, step, state)
    for number in range(1, 4):
        step.skipped.fill_(number)
        counting.add(torch.zeros(4, dtype=torch.float64))
        state.step = 10 + number
        counting.send(RATE)
        assert receive(counting) == []
        assert state.skipped == 5 + number
    counting.add(counts())
    state.step = 14
    counting.send(RATE)
    (report,) = receive(counting)
    assert report.state.skipped == 8
    state.step = 18  # an epoch of skipped steps
    counting.send(RATE)
    with pytest.raises(
        NonFiniteLoss, match=r"all 4 steps up to step 18 were skipped because .* not finite; there is no"
    ):
        receive(counting)


@pytest.mark.parametrize(("is_last", "replica", "expected"), [(True, 0, 1), (False, 0, 0), (True, 1, 0)])
def test_only_one_worker_counts_skipped_steps(tmp_path, is_last, replica, expected):
    step, state = _Step("skip"), TrainingState()
    step.engine.is_last = is_last
    step.skipped.fill_(1)
    world = _TwoWorkers(replica, 2, CPU, layout=Layout(replicas=2))
    counting = counters(tmp_path, step, state, world=world)
    counting.send(None)
    receive(counting)
    assert state.skipped == expected

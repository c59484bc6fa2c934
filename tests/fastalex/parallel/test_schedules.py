"""The order of passes, and the micro-batches that it can run."""

import pytest
import torch
import torch.distributed as dist
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe, ScheduleInterleaved1F1B
from torch.testing._internal.distributed.fake_pg import FakeStore

from fastalex.errors import ConfigurationError
from fastalex.parallel.layout import Layout
from fastalex.parallel.schedules import (
    check_batch,
    check_micro_batches,
    default_micro_batches,
    defers_convolutions,
    evaluation_order,
    rank_order,
)


def text(order) -> str:
    return " ".join(f"{kind[0].upper()}{stage}.{m}" for kind, stage, m in order)


@pytest.mark.parametrize(
    ("schedule", "rank", "ranks", "stages", "micro_batches", "expected"),
    [
        ("gpipe", 0, 2, 2, 2, "F0.0 F0.1 B0.0 B0.1"),
        ("1f1b", 0, 2, 2, 3, "F0.0 F0.1 B0.0 F0.2 B0.1 B0.2"),
        ("1f1b", 1, 2, 2, 3, "F1.0 B1.0 F1.1 B1.1 F1.2 B1.2"),
        ("eager-1f1b", 0, 2, 2, 4, "F0.0 F0.1 F0.2 B0.0 F0.3 B0.1 B0.2 B0.3"),
        ("eager-1f1b", 1, 2, 2, 4, "F1.0 B1.0 F1.1 B1.1 F1.2 B1.2 F1.3 B1.3"),
        ("interleaved", 1, 2, 4, 2, "F1.0 F1.1 F3.0 B3.0 F3.1 B3.1 B1.0 B1.1"),
    ],
)
def test_orders_are_the_published_ones(schedule, rank, ranks, stages, micro_batches, expected):
    assert text(rank_order(schedule, rank, ranks, stages, micro_batches)) == expected


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b", "eager-1f1b", "interleaved"])
@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("micro_batches", [3, 6])
def test_every_pass_runs_once_and_forward_before_backward(schedule, ranks, micro_batches):
    stages = ranks * (2 if schedule == "interleaved" else 1)
    for rank in range(ranks):
        order = rank_order(schedule, rank, ranks, stages, micro_batches)
        local = [(stage, m) for stage in range(rank, stages, ranks) for m in range(micro_batches)]
        assert sorted(order) == sorted((kind, *one) for kind in ("forward", "backward") for one in local)
        for one in local:
            assert order.index(("forward", *one)) < order.index(("backward", *one))


def test_evaluation_passes_every_stage():
    assert text(evaluation_order(1, 2, 4, 2)) == "F1.0 F1.1 F3.0 F3.1 B3.0 B3.1 B1.0 B1.1"


@pytest.mark.parametrize(
    ("batch_size", "micro_batches", "stages", "schedule", "message"),
    [
        (
            30,
            4,
            2,
            "1f1b",
            "a batch of 30 cannot be divided into 4 micro-batches; choose micro-batches from 1, 2, 3, 5",
        ),
        (32, 0, 1, "1f1b", "micro_batches must be at least 1, got 0"),
        (32, 2, 4, "1f1b", "at least as many micro-batches as stages, got 2 micro-batches for 4 stages"),
        (30, 5, 2, "interleaved", "equal rounds of 2 or more, got 5 micro-batches on 2 devices"),
    ],
)
def test_what_cannot_run_is_refused(batch_size, micro_batches, stages, schedule, message):
    with pytest.raises(ConfigurationError, match=message):
        check_micro_batches(batch_size, micro_batches, stages, schedule)


def test_gpipe_runs_fewer_micro_batches_than_stages():
    check_micro_batches(32, 2, 4, "gpipe")


def test_a_batch_that_replicas_do_not_divide():
    with pytest.raises(ConfigurationError, match=r"batch of 30 cannot be divided among 4 replicas; .* such as 32"):
        check_batch(Layout(4, 2, 2), "1f1b", 30, 2)
    with pytest.raises(ConfigurationError, match=r"^each replica's batch of 6 cannot be divided into 4 micro-batches"):
        check_batch(Layout(2, 2, 2), "1f1b", 12, 4)  # which 12 images could be
    with pytest.raises(ConfigurationError, match=r"^a batch of 6 cannot be divided into 4 micro-batches"):
        check_batch(Layout(1, 2, 2), "1f1b", 6, 4)
    check_batch(Layout(2, 2, 2), "1f1b", 12, 3)


def test_as_few_micro_batches_as_the_schedules_take():
    check_micro_batches(32, 4, 4, "1f1b")
    check_micro_batches(6, 3, 2, "eager-1f1b")  # one round of three
    check_micro_batches(8, 1, 1, "gpipe")


@pytest.mark.parametrize(
    ("layout", "schedule", "batch_size", "device", "expected"),
    [
        (Layout(1, 1, 1), "eager-1f1b", 32, "cuda", 1),
        (Layout(4, 1, 1), "eager-1f1b", 32, "cuda", 1),
        (Layout(1, 2, 2), "eager-1f1b", 128, "cpu", 4),
        (Layout(1, 2, 2), "eager-1f1b", 128, "cuda", 8),
        (Layout(1, 2, 2), "eager-1f1b", 6, "cpu", 3),
        (Layout(1, 2, 2), "1f1b", 6, "cpu", 3),
        (Layout(1, 2, 4), "interleaved", 6, "cpu", 3),
        (Layout(2, 2, 2), "eager-1f1b", 8, "cuda", 4),
        (Layout(1, 2, 2), "gpipe", 127, "cpu", 1),
    ],
)
def test_default_micro_batches(layout, schedule, batch_size, device, expected):
    assert default_micro_batches(layout, schedule, batch_size, device) == expected


def test_no_default_where_nothing_can_run():
    with pytest.raises(ConfigurationError, match="a batch of 127 cannot be divided into 2 micro-batches"):
        default_micro_batches(Layout(1, 2, 2), "1f1b", 127, "cpu")


def test_which_stages_defer_their_convolutions():
    assert not defers_convolutions(0, 2, 4)  # nothing waits for the first stage's input gradient
    assert defers_convolutions(1, 2, 4)
    assert defers_convolutions(1, 2, 7)
    assert not defers_convolutions(1, 2, 8)  # many micro-batches
    assert not defers_convolutions(1, 2, 4, replicas=2)
    assert not defers_convolutions(1, 1, 4)


def test_passes_are_in_the_order_of_torchs_schedules():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        x = torch.empty(1, 1, device="meta")
        for schedule, kind, stages in (
            ("gpipe", ScheduleGPipe, 1),
            ("1f1b", Schedule1F1B, 1),
            ("interleaved", ScheduleInterleaved1F1B, 4),
        ):
            pipelined = [
                PipelineStage(torch.nn.Linear(1, 1), i, stages, torch.device("cpu"), input_args=(x,), output_args=(x,))
                for i in range(stages)
            ]
            seen: list[tuple[str, int, int]] = []
            for stage in pipelined:
                record_passes(stage, seen)
            one = pipelined if schedule == "interleaved" else pipelined[0]
            kind(one, 4, loss_fn=lambda y, _: y.sum(), scale_grads=False).step(torch.ones(4, 1), target=torch.ones(4))
            assert seen == rank_order(schedule, 0, 1, stages, 4)
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize(("schedule", "local"), [("eager-1f1b", 1), ("interleaved", 2), ("interleaved", 3)])
@pytest.mark.parametrize(("ranks", "micro_batches"), [(2, 1), (2, 8), (3, 4), (4, 8)])
def test_every_rank_has_the_order_of_torchs_schedule(schedule, local, ranks, micro_batches):
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
    try:
        x = torch.empty(1, 1, device="meta")
        stages = [
            PipelineStage(
                torch.nn.Linear(1, 1), i * ranks, ranks * local, torch.device("cpu"), input_args=(x,), output_args=(x,)
            )
            for i in range(local)
        ]
        order = ScheduleInterleaved1F1B(stages, micro_batches).pipeline_order
    finally:
        dist.destroy_process_group()
    names = {"FORWARD": "forward", "FULL_BACKWARD": "backward"}
    for rank, actions in order.items():
        expected = [(names[a.computation_type.name], a.stage_index, a.microbatch_index) for a in actions if a]
        assert rank_order(schedule, rank, ranks, ranks * local, micro_batches) == expected


def record_passes(stage: PipelineStage, seen: list[tuple[str, int, int]]) -> None:
    for kind in ("forward", "backward"):
        run = getattr(stage, f"{kind}_one_chunk")

        def recorded(micro_batch, *arguments, run=run, kind=kind, **options):
            seen.append((kind, stage.stage_index, micro_batch))
            return run(micro_batch, *arguments, **options)

        setattr(stage, f"{kind}_one_chunk", recorded)

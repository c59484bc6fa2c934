"""The simulated step against what can be worked out by hand."""

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from fastalex.parallel.costs import BlockCost, Link, seconds_at
from fastalex.parallel.simulate import Plan, Span, bubble_fractions, fewest_seconds, orders, rank_order, simulate
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe, ScheduleInterleaved1F1B
from torch.testing._internal.distributed.fake_pg import FakeStore

from fastalex.parallel.partition import all_cuts

NAMES = tuple("abcdefgh")


def block(name: str, forward: float = 1.0, backward: float = 2.0, finish: float = 0.0) -> BlockCost:
    return BlockCost(name, ((1, forward),), ((1, backward),), finish, 1000, 4000)


def even(stages: int) -> tuple[tuple[str, ...], ...]:
    size = len(NAMES) // stages
    return tuple(NAMES[i : i + size] for i in range(0, len(NAMES), size))


def plan(stages: int, ranks: int, micro_batches: int, schedule: str, **more) -> Plan:
    return Plan(even(stages), ranks, micro_batches, micro_batches, schedule, **more)


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b", "eager-1f1b", "interleaved"])
@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("micro_batches", [4, 8])
def test_balanced_stages_wait_as_long_as_the_formula_says(schedule, ranks, micro_batches):
    local = 2 if schedule == "interleaved" else 1
    result = simulate(plan(ranks * local, ranks, micro_batches, schedule), [[block(name) for name in NAMES]])
    expected = (ranks - 1) / (local * micro_batches + ranks - 1)
    assert result.bubble == pytest.approx([expected] * ranks)
    assert result.seconds == pytest.approx(8 * 3 * micro_batches / ranks / (1 - expected))


def test_finishing_is_not_idle_but_counts_only_until_the_last_pass_ends():
    passes = [Span(0, ("forward", 0, 0, 0, 0), 0.0, 4.0), Span(1, ("backward", 0, 1, 0, 0), 0.0, 1.0)]
    assert bubble_fractions(passes, 2) == pytest.approx((0.0, 0.75))
    finished = [Span(1, ("finish", 0, 1, 0, 0), 2.0, 9.0), Span(0, ("finish", 0, 0, 0, 0), 5.0, 6.0)]
    assert bubble_fractions(passes + finished, 2) == pytest.approx((0.0, 0.25))
    waiting = [Span(1, ("reduce", 0, 1, 0, 0), 1.0, 2.0)]
    assert bubble_fractions(passes + finished + waiting, 2) == pytest.approx((0.0, 0.25))


def test_workers_share_cores():
    costs = [[block(name) for name in NAMES]]
    alone = simulate(plan(1, 1, 4, "gpipe"), costs).seconds
    assert simulate(plan(1, 1, 4, "gpipe", replicas=4, cores=2), costs).seconds == pytest.approx(2 * alone)
    assert simulate(plan(1, 1, 4, "gpipe", replicas=4, cores=8), costs).seconds == pytest.approx(alone)
    # The work of two stages fits into one core end to end, whatever their order.
    assert simulate(plan(2, 2, 4, "1f1b", cores=1), costs).seconds == pytest.approx(alone)


def test_one_replica_stands_for_all_that_have_devices_of_their_own():
    costs = [[block(name, finish=0.5) for name in NAMES]]
    apart, counted = (
        simulate(plan(2, 2, 4, "1f1b", replicas=3, cores=cores, reduce_link=Link(1.0, 8000.0)), costs)
        for cores in (float("inf"), 6.0)
    )
    assert apart.seconds == pytest.approx(counted.seconds)
    assert apart.bubble == pytest.approx(counted.bubble)
    assert len({span.worker for span in counted.spans}) == 3 * len({span.worker for span in apart.spans})


def test_links_reductions_and_updates_take_their_time():
    costs = [[block(name, finish=0.5) for name in NAMES]]
    # 2 stages, 1 micro-batch: 24 s of passes one after the other, 2 transfers of 1 + 1000 / 500 s, then one update of
    # 4 x 0.5 s; the last stage's falls into the first one's backward pass.
    crossing = simulate(plan(2, 2, 1, "gpipe", link=Link(1.0, 500.0)), costs).seconds
    assert crossing == pytest.approx(24 + 2 * 3 + 2)
    # 2 replicas: 8 x 4000 bytes cross the link 2 (2 - 1) / 2 times.
    reduced = simulate(plan(1, 1, 1, "gpipe", replicas=2, reduce_link=Link(1.0, 8000.0)), costs).seconds
    assert reduced == pytest.approx(24 + 1 + 4 + 4)


def test_a_weight_gradient_that_is_put_off_lets_the_first_stage_go_on():
    now = [block(name) for name in NAMES]
    later = [replace(cost, input_backward=((1, 1.0),), put_off=((1, 1.0),)) for cost in now]
    # 2 stages of 4 blocks, 1 micro-batch: forward 4 + 4, backward 8 + 8; put off, the last stage's backward takes 4,
    # and its other 4 fall into the first one's backward pass. The first stage has nobody to hasten for.
    assert simulate(plan(2, 2, 1, "gpipe"), [now]).seconds == pytest.approx(24)
    assert simulate(plan(2, 2, 1, "gpipe"), [later]).seconds == pytest.approx(20)
    # 4 stages of 2 blocks on as many workers: 8 forward, and back 3 times 2 and 4 in the first.
    assert simulate(plan(4, 4, 1, "gpipe"), [later]).seconds == pytest.approx(18)
    # Other replicas would wait for the gradients, and with many micro-batches it does not pay.
    for others in ({"replicas": 2}, {"micro_batches": 8}):
        layout = {"micro_batches": 1, "schedule": "gpipe"} | others
        assert simulate(plan(2, 2, **layout), [later]) == simulate(plan(2, 2, **layout), [now])
    assert later[0].end_seconds(1, 3, puts_off=True) == pytest.approx(3.0)
    assert later[0].end_seconds(1, 3, puts_off=False) == 0.0
    assert BlockCost.from_json(later[0].to_json()) == later[0]
    assert later[0].times(2).put_off == ((1, 2.0),)


def test_costs_saved_before_anything_was_put_off_are_read():
    values = block("a").to_json()
    del values["put_off"], values["input_backward"]
    assert BlockCost.from_json(values) == block("a")


def test_seconds_between_and_beyond_the_points():
    curve = ((2, 1.0), (4, 3.0))
    assert [seconds_at(curve, n) for n in (1, 2, 3, 4, 6)] == pytest.approx([0, 1, 2, 3, 4.5])
    assert seconds_at(((2, 1.0),), 4) == pytest.approx(2)


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


def test_passes_that_run_ahead_keep_busy_a_stage_that_puts_weight_gradients_off():
    """Both stages cost 6 seconds a micro-batch; of the later one's 2 + 4, 2 seconds wait for the end of the step."""
    late = replace(block("late", 2, 4), input_backward=((1, 2.0),), put_off=((1, 2.0),))
    costs = [[block("early", 2, 4), late]]
    seconds = [simulate(Plan((("early",), ("late",)), 2, 4, 4, s), costs).seconds for s in ("1f1b", "eager-1f1b")]
    assert seconds == pytest.approx([28, 24])


@st.composite
def zero_bubble(draw: st.DrawFn) -> tuple[Plan, list[list[BlockCost]]]:
    """Any cut, with any costs on every rank."""
    ranks, micro_batches = draw(st.integers(1, 3)), draw(st.integers(1, 5))
    cut = draw(st.sampled_from(list(all_cuts(NAMES, draw(st.integers(ranks, len(NAMES)))))))
    seconds = st.floats(0.01, 10.0)

    def cost(name: str) -> BlockCost:
        some = block(name, draw(seconds), draw(seconds), draw(seconds))
        if draw(st.booleans()):
            return replace(some, input_backward=((1, draw(seconds)),), put_off=((1, draw(seconds)),))
        return replace(some, product=draw(st.floats(0.0, 1.0)) * some.finish)

    costs = [[cost(name) for name in NAMES] for _ in range(ranks)]
    shared = {"replicas": draw(st.integers(1, 2)), "cores": draw(st.sampled_from([1.0, 2.0, float("inf")]))}
    return Plan(cut, ranks, micro_batches, micro_batches, "zero-bubble", link=Link(0.1, 1e4), **shared), costs


@given(zero_bubble())
def test_zero_bubble_makes_every_pass_once_and_in_an_order_that_comes_to_an_end(case):
    plan, costs = case
    found = orders(plan, costs)
    stages, every = len(plan.stages), list(range(plan.micro_batches))
    for rank, order in enumerate(found):
        assert {stage for _, stage, _ in order} == set(range(rank, stages, plan.ranks))
    for stage in range(stages):
        order = found[stage % plan.ranks]

        def of(*kinds: str, stage: int = stage, order: tuple = order) -> list[int]:
            return [m for kind, place, m in order if place == stage and kind in kinds]

        assert of("forward") == every
        assert of("input", "backward") == every
        assert of("weight") == of("input")  # apart, but in the same order
        for m in of("input"):
            assert order.index(("input", stage, m)) < order.index(("weight", stage, m))
    assert not any(kind == "input" and (stage == 0 or plan.replicas > 1) for order in found for kind, stage, _ in order)
    result = simulate(plan, costs, steps=2)  # which refuses what would wait for ever
    assert max(span.end for span in result.spans) >= 2 * fewest_seconds(plan, costs) - 1e-6
    assert simulate(plan, costs, 2, found) == result


def test_zero_bubble_waits_less_than_the_schedules_with_an_order_of_their_own():
    """Of eight blocks the first takes three times as long as the others, whose weight gradients are a third of it."""
    later = [replace(block(name), input_backward=((1, 1.0),), put_off=((1, 1.0),)) for name in NAMES[1:]]
    costs = [[block("a", 3.0, 6.0), *later]]

    def best(schedule: str, stages: int) -> float:
        return min(simulate(Plan(cut, 2, 2, 2, schedule), costs).seconds for cut in all_cuts(NAMES, stages))

    others = [best("gpipe", 2), best("1f1b", 2), best("eager-1f1b", 2), best("interleaved", 4)]
    assert min(others) == pytest.approx(35)
    assert best("zero-bubble", 3) == pytest.approx(32)  # 30 without any wait


def test_a_fully_connected_weight_gradient_fills_a_wait():
    costs = [[block("early"), replace(block("late", 1.0, 1.0, finish=2.0), product=2.0)]]
    plan = Plan((("early",), ("late",)), 2, 1, 1, "zero-bubble")
    assert orders(plan, costs)[1] == (("forward", 1, 0), ("input", 1, 0), ("weight", 1, 0))
    assert simulate(plan, costs).seconds == pytest.approx(1 + 1 + 1 + 2)
    # Where nobody is kept waiting, both gradients are made in one pass, which takes less time.
    costs[0][1] = replace(costs[0][1], input_backward=((1, 1.0),), put_off=((1, 4.0),))
    assert orders(plan, costs)[1] == (("forward", 1, 0), ("backward", 1, 0))


def record_passes(stage: PipelineStage, seen: list[tuple[str, int, int]]) -> None:
    for kind in ("forward", "backward"):
        run = getattr(stage, f"{kind}_one_chunk")

        def recorded(micro_batch, *arguments, run=run, kind=kind, **options):
            seen.append((kind, stage.stage_index, micro_batch))
            return run(micro_batch, *arguments, **options)

        setattr(stage, f"{kind}_one_chunk", recorded)

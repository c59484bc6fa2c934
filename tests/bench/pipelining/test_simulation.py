"""The simulated step against what can be worked out by hand."""

from dataclasses import replace

import pytest
from pipelining.block_costs import BlockCost, Link
from pipelining.simulation import Scenario, Span, bubble_fractions, simulate

NAMES = tuple("abcdefgh")


def block(name: str, forward: float = 1.0, backward: float = 2.0, finish: float = 0.0) -> BlockCost:
    return BlockCost(name, ((1, forward),), ((1, backward),), finish, 1000, 4000)


def even(stages: int) -> tuple[tuple[str, ...], ...]:
    size = len(NAMES) // stages
    return tuple(NAMES[i : i + size] for i in range(0, len(NAMES), size))


def scenario(stages: int, ranks: int, micro_batches: int, schedule: str, **more) -> Scenario:
    return Scenario(even(stages), ranks, micro_batches, micro_batches, schedule, **more)


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b", "eager-1f1b", "interleaved"])
@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("micro_batches", [4, 8])
def test_balanced_stages_are_idle_as_the_formula_says(schedule, ranks, micro_batches):
    local = 2 if schedule == "interleaved" else 1
    result = simulate(scenario(ranks * local, ranks, micro_batches, schedule), [[block(name) for name in NAMES]])
    expected = (ranks - 1) / (local * micro_batches + ranks - 1)
    assert result.bubble == pytest.approx([expected] * ranks)
    assert result.seconds == pytest.approx(8 * 3 * micro_batches / ranks / (1 - expected))


def test_finishing_is_busy_time_until_the_last_pass_ends():
    passes = [Span(0, ("forward", 0, 0, 0, 0), 0.0, 4.0), Span(1, ("backward", 0, 1, 0, 0), 0.0, 1.0)]
    assert bubble_fractions(passes, 2) == pytest.approx((0.0, 0.75))
    finished = [Span(1, ("finish", 0, 1, 0, 0), 2.0, 9.0), Span(0, ("finish", 0, 0, 0, 0), 5.0, 6.0)]
    assert bubble_fractions(passes + finished, 2) == pytest.approx((0.0, 0.25))
    waiting = [Span(1, ("reduce", 0, 1, 0, 0), 1.0, 2.0)]
    assert bubble_fractions(passes + finished + waiting, 2) == pytest.approx((0.0, 0.25))


def test_workers_share_cores():
    costs = [[block(name) for name in NAMES]]
    alone = simulate(scenario(1, 1, 4, "gpipe"), costs).seconds
    assert simulate(scenario(1, 1, 4, "gpipe", replicas=4, cores=2), costs).seconds == pytest.approx(2 * alone)
    assert simulate(scenario(1, 1, 4, "gpipe", replicas=4, cores=8), costs).seconds == pytest.approx(alone)
    # The work of two stages fits into one core end to end, whatever their order.
    assert simulate(scenario(2, 2, 4, "1f1b", cores=1), costs).seconds == pytest.approx(alone)


def test_one_of_several_replicas_with_their_own_devices_is_simulated():
    costs = [[block(name, finish=0.5) for name in NAMES]]
    apart, counted = (
        simulate(scenario(2, 2, 4, "1f1b", replicas=3, cores=cores, reduce_link=Link(1.0, 8000.0)), costs)
        for cores in (float("inf"), 6.0)
    )
    assert apart.seconds == pytest.approx(counted.seconds)
    assert apart.bubble == pytest.approx(counted.bubble)
    assert len({span.worker for span in counted.spans}) == 3 * len({span.worker for span in apart.spans})


def test_transfers_reductions_and_updates_take_time():
    costs = [[block(name, finish=0.5) for name in NAMES]]
    # 2 stages, 1 micro-batch: 24 s of passes one after the other, 2 transfers of 1 + 1000 / 500 s, then one update of
    # 4 x 0.5 s; the last stage's falls into the first one's backward pass.
    crossing = simulate(scenario(2, 2, 1, "gpipe", link=Link(1.0, 500.0)), costs).seconds
    assert crossing == pytest.approx(24 + 2 * 3 + 2)
    # 2 replicas: 8 x 4000 bytes cross the link 2 (2 - 1) / 2 times.
    reduced = simulate(scenario(1, 1, 1, "gpipe", replicas=2, reduce_link=Link(1.0, 8000.0)), costs).seconds
    assert reduced == pytest.approx(24 + 1 + 4 + 4)


def test_a_deferred_weight_gradient_lets_the_first_stage_continue():
    now = [block(name) for name in NAMES]
    later = [replace(cost, input_backward=((1, 1.0),), deferred=((1, 1.0),)) for cost in now]
    # 2 stages of 4 blocks, 1 micro-batch: forward 4 + 4, backward 8 + 8. Deferred, the last stage's backward takes 4,
    # and the other 4 overlap with the first stage's backward pass. The first stage defers nothing.
    assert simulate(scenario(2, 2, 1, "gpipe"), [now]).seconds == pytest.approx(24)
    assert simulate(scenario(2, 2, 1, "gpipe"), [later]).seconds == pytest.approx(20)
    # 4 stages of 2 blocks on as many workers: 8 forward, and back 3 times 2 and 4 in the first.
    assert simulate(scenario(4, 4, 1, "gpipe"), [later]).seconds == pytest.approx(18)
    # With replicas, and with many micro-batches, nothing is deferred.
    for others in ({"replicas": 2}, {"micro_batches": 8}):
        layout = {"micro_batches": 1, "schedule": "gpipe"} | others
        assert simulate(scenario(2, 2, **layout), [later]) == simulate(scenario(2, 2, **layout), [now])


def test_eager_passes_keep_a_stage_with_deferred_gradients_busy():
    """Both stages cost 6 seconds per micro-batch; 2 of the later one's 2 + 4 are deferred to the end of the step."""
    late = replace(block("late", 2, 4), input_backward=((1, 2.0),), deferred=((1, 2.0),))
    costs = [[block("early", 2, 4), late]]
    seconds = [
        simulate(Scenario((("early",), ("late",)), 2, 4, 4, schedule), costs).seconds
        for schedule in ("1f1b", "eager-1f1b")
    ]
    assert seconds == pytest.approx([28, 24])

"""Costs of blocks: interpolation, deferred gradients, JSON."""

from dataclasses import replace

import pytest
from pipelining.block_costs import BlockCost, seconds_at, slowest_stage


def block(name: str, seconds: float = 1.0) -> BlockCost:
    return BlockCost(name, ((1, seconds),), ((1, 2 * seconds),), 0.5, 1000, 4000)


def test_seconds_between_and_beyond_the_points():
    curve = ((2, 1.0), (4, 3.0))
    assert [seconds_at(curve, n) for n in (1, 2, 3, 4, 6)] == pytest.approx([0, 1, 2, 3, 4.5])
    assert seconds_at(((2, 1.0),), 4) == pytest.approx(2)


def test_deferred_gradients_move_to_the_end_of_the_step():
    cost = replace(block("conv"), input_backward=((1, 1.2),), deferred=((1, 0.9),))
    assert cost.backward_seconds(2, deferred=False) == pytest.approx(4.0)
    assert cost.backward_seconds(2, deferred=True) == pytest.approx(2.4)
    assert cost.end_seconds(2, 3, deferred=False) == pytest.approx(0.5)
    assert cost.end_seconds(2, 3, deferred=True) == pytest.approx(0.5 + 3 * 1.8)
    # Without measurements of deferred gradients there is no difference.
    assert block("fc").backward_seconds(2, deferred=True) == pytest.approx(4.0)
    assert block("fc").end_seconds(2, 3, deferred=True) == pytest.approx(0.5)


def test_costs_are_scaled_and_saved():
    cost = replace(block("conv"), input_backward=((1, 1.2),), deferred=((1, 0.9),))
    assert BlockCost.from_json(cost.to_json()) == cost
    assert cost.scaled(2) == BlockCost("conv", ((1, 2.0),), ((1, 4.0),), 1.0, 1000, 4000, ((1, 2.4),), ((1, 1.8),))


def test_the_slowest_stage_counts():
    costs = [block("a", 1.0), block("b", 2.0), block("c", 3.0)]
    # 2 micro-batches of 1 image: 6 x seconds + 0.5 per block.
    assert slowest_stage((("a",), ("b", "c")), costs, 1, 2) == pytest.approx(6 * 5 + 1)
    assert slowest_stage((("a", "b"), ("c",)), costs, 1, 2) == pytest.approx(6 * 3 + 1)

"""Where the network is cut into stages."""

import pytest

from fastalex.errors import ConfigurationError
from fastalex.network.footprint import training_macs
from fastalex.network.variation import build_architecture
from fastalex.parallel.partition import all_splits, balanced, check_stages, format_split, parse_split, partition


def test_two_devices_are_cut_after_pool2_with_the_known_shares():
    architecture = build_architecture("krizhevsky")
    assert partition(architecture, 2) == (("conv1", "conv2"), ("conv3", "conv4", "conv5", "fc6", "fc7", "fc8"))
    costs = training_macs(architecture)
    share = (costs["conv1"] + costs["conv2"]) / sum(costs.values())
    assert share == pytest.approx(0.427, abs=0.001)


@pytest.mark.parametrize("stages", range(1, 9))
def test_stages_are_consecutive_and_whole(stages):
    architecture = build_architecture("krizhevsky")
    parts = partition(architecture, stages)
    assert len(parts) == stages
    assert tuple(name for part in parts for name in part) == architecture.block_names
    assert all(parts)


def test_no_cut_is_better():
    architecture = build_architecture("owt")
    costs = list(training_macs(architecture).values())
    best = max(sum(training_macs(architecture)[name] for name in part) for part in partition(architecture, 3))
    every = [
        max(sum(costs[:a]), sum(costs[a:b]), sum(costs[b:]))
        for a in range(1, len(costs))
        for b in range(a + 1, len(costs))
    ]
    assert best == min(every)


def test_costs_of_any_unit_are_balanced():
    costs = {"a": 3.0, "b": 1.0, "c": 1.0, "d": 1.0}
    assert balanced(tuple(costs), 2, costs) == (("a",), ("b", "c", "d"))
    assert balanced(tuple(costs), 3, costs) == (("a",), ("b",), ("c", "d"))
    assert balanced(tuple(costs), 2, {**costs, "a": 0.5}) == (("a", "b"), ("c", "d"))


def test_more_stages_than_blocks():
    architecture = build_architecture("krizhevsky")
    with pytest.raises(
        ConfigurationError, match=r"9 stages need .* got 8 .* choose stages from 1, 2, 3, 4, 5, 6, 7, 8$"
    ):
        partition(architecture, 9)
    with pytest.raises(ConfigurationError, match=r"choose stages from 1, 3$"):
        check_stages(architecture.block_names, 9, lambda stages: 9 % stages == 0)


def test_splits_by_name():
    names = build_architecture("krizhevsky").block_names
    for stages in range(2, 9):
        for split in all_splits(names, stages):
            assert parse_split(format_split(split), names, stages) == split
    assert len(list(all_splits(names, 3))) == 21
    assert format_split((names,)) == ""


@pytest.mark.parametrize(
    ("text", "stages", "message"),
    [
        ("conv9", 2, r"split names 'conv9'; a stage can begin with conv2, .*fc8"),
        ("conv1", 2, "split names 'conv1'"),
        ("fc6,conv3", 3, "must follow the order of the blocks; write conv3,fc6"),
        ("conv3,conv3", 3, "must follow the order of the blocks; write conv3"),
        ("conv3", 1, "makes 2 stages, but the layout has 1; leave it out"),
        ("conv3,fc6", 2, "makes 3 stages, but the layout has 2; name the first block of each of the 1 later"),
    ],
)
def test_splits_that_are_none(text, stages, message):
    with pytest.raises(ConfigurationError, match=message):
        parse_split(text, build_architecture("krizhevsky").block_names, stages)

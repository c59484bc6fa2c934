"""The cut for equal work."""

import pytest

from fastalex.architecture import build_architecture
from fastalex.errors import ConfigurationError
from fastalex.partition import partition, training_macs


def test_two_devices_are_cut_after_pool2_with_the_known_shares():
    architecture = build_architecture("krizhevsky")
    assert partition(architecture, 2) == [("conv1", "conv2"), ("conv3", "conv4", "conv5", "fc6", "fc7", "fc8")]
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


def test_more_devices_than_blocks():
    with pytest.raises(ConfigurationError, match=r"9 devices for 8 blocks .* name at most 8 devices"):
        partition(build_architecture("krizhevsky"), 9)

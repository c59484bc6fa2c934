"""The cut for equal work."""

import json
import math
from dataclasses import replace

import pytest
import torch

from fastalex.errors import ConfigurationError
from fastalex.network.architecture import block_shapes
from fastalex.network.footprint import training_macs
from fastalex.network.model import AlexNet
from fastalex.network.variation import build_architecture
from fastalex.parallel.costs import BlockCost, Link, measure_blocks
from fastalex.parallel.partition import all_cuts, choose, format_split, parse_split, partition
from fastalex.parallel.simulate import Plan, simulate


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


def test_more_stages_than_blocks():
    with pytest.raises(
        ConfigurationError, match=r"9 stages for 8 blocks .* choose --stages from 1, 2, 3, 4, 5, 6, 7, 8"
    ):
        partition(build_architecture("krizhevsky"), 9)


def test_cuts_by_name():
    architecture = build_architecture("krizhevsky")
    assert parse_split(architecture, "auto", 1) == (architecture.block_names,)
    for stages in range(2, 9):
        for cut in all_cuts(architecture.block_names, stages):
            assert parse_split(architecture, format_split(cut), stages) == cut
    assert len(list(all_cuts(architecture.block_names, 3))) == 21
    for split, stages, message in (
        ("conv9", 2, r"--split names 'conv9'; a stage can begin with conv2, .*fc8, or choose auto or analytic"),
        ("conv1", 2, "--split names 'conv1'"),
        ("fc6,conv3", 3, "not in the order of the blocks; write conv3,fc6"),
        ("conv3", 1, "makes 2 stages, --devices and --stages make 1; leave it out"),
        ("conv3,fc6", 2, "makes 3 stages, --devices and --stages make 2; name the first block of each of the 1 later"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            parse_split(architecture, split, stages)


def test_measured_costs_are_chosen_for_time_and_not_for_arithmetic():
    names = ("a", "b", "c", "d")

    def costs(seconds: list[float], fixed: float = 0.0) -> list[list[BlockCost]]:
        curves = [((1, fixed + s), (8, fixed + 8 * s)) for s in seconds]
        sizes = (10**6, 10**3, 10**3, 0)
        return [[BlockCost(name, c, c, 0.0, size, 1) for name, c, size in zip(names, curves, sizes, strict=True)]]

    def best(costs: list[list[BlockCost]], link: Link = Link()) -> tuple[str, int]:  # noqa: B008
        plan = Plan((), 2, 16, 1, "1f1b", link=link)
        plan, _ = choose(plan, costs, list(all_cuts(names, 2)), [2, 4, 8, 16])
        return format_split(plan.stages), plan.micro_batches

    assert best(costs([3.0, 1.0, 1.0, 1.0])) == ("b", 16)  # even halves, and the more micro-batches the better
    assert best(costs([1.0, 1.0, 1.0, 1.0])) == ("c", 16)
    assert best(costs([1.0, 1.0, 1.0, 1.0], fixed=10.0))[1] == 2  # where every micro-batch costs much, few
    assert best(costs([3.0, 1.0, 1.0, 1.0]), Link(0.0, 1e5))[0] == "c"  # what a sends takes longer than b


def test_what_cannot_be_faster_is_not_simulated(monkeypatch):
    names = tuple("abcdef")
    costs = [
        [BlockCost(n, c, c, 0.5, 1, 1) for n, s in zip(names, (5, 3, 1, 2, 1, 4), strict=True) for c in [((1, s),)]]
    ]
    plan, cuts, counts = Plan((), 2, 8, 1, "zero-bubble"), list(all_cuts(names, 3)), [1, 2, 4]
    every = [replace(plan, stages=cut, micro_batches=count) for cut in cuts for count in counts]
    fastest = min(simulate(one, costs).seconds for one in every)
    simulated = []
    monkeypatch.setattr("fastalex.partition.simulate", lambda *given: simulated.append(given) or simulate(*given))
    assert choose(plan, costs, cuts, counts)[1].seconds == fastest
    assert 0 < len(simulated) < len(every)


@pytest.mark.parametrize("put_off", [False, True])
def test_costs_are_measured_and_leave_the_network_alone(put_off):
    model = AlexNet("krizhevsky", 5, seed=1, width=1 / 16, lrn=False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    costs = measure_blocks(model, torch.device("cpu"), 4, [1, 2], put_off=put_off)
    assert [cost.name for cost in costs] == list(model.architecture.block_names)
    for cost, shape in zip(costs, block_shapes(model.architecture), strict=True):
        assert all(seconds > 0 for _, seconds in (*cost.forward, *cost.backward))
        assert cost.finish > 0
        for curve in (cost.input_backward, cost.put_off):
            assert [images for images, _ in curve] == ([1, 2] if put_off and shape.name[:4] == "conv" else [])
            assert all(seconds > 0 for _, seconds in curve)
        assert (cost.output_bytes, cost.parameter_bytes) == (4 * math.prod(shape.output), 4 * shape.parameters)
        assert BlockCost.from_json(json.loads(json.dumps(cost.to_json()))) == cost
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(getattr(block, "put_off", None) is None for block in model.blocks())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())

"""Measured costs of blocks."""

import json
import math
from dataclasses import replace

import pytest
import torch
from pipelining.block_costs import BlockCost
from pipelining.block_timing import measure_blocks, measure_costs, shared_cores

from fastalex.network.architecture import block_shapes
from fastalex.network.model import AlexNet
from fastalex.parallel.layout import Layout
from fastalex.parallel.world import World

CPU = torch.device("cpu")


def tiny() -> AlexNet:
    return AlexNet("krizhevsky", 5, seed=1, width=1 / 16, lrn=False)


@pytest.mark.parametrize("convolutions", [False, True])
def test_costs_are_measured_and_weights_stay_as_they_are(convolutions):
    model = tiny()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    costs = measure_blocks(model, CPU, 4, [1, 2], convolutions)
    assert [cost.name for cost in costs] == list(model.architecture.block_names)
    for cost, shape in zip(costs, block_shapes(model.architecture), strict=True):
        assert all(seconds > 0 for _, seconds in (*cost.forward, *cost.backward))
        assert cost.finish > 0
        for curve in (cost.input_backward, cost.deferred):
            assert [images for images, _ in curve] == ([1, 2] if convolutions and shape.name[:4] == "conv" else [])
            assert all(seconds > 0 for _, seconds in curve)
        assert (cost.output_bytes, cost.parameter_bytes) == (4 * math.prod(shape.output), 4 * shape.parameters)
        assert BlockCost.from_json(json.loads(json.dumps(cost.to_json()))) == cost
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_costs_of_every_rank_are_scaled_to_a_worker_with_its_own_cores(monkeypatch):
    measured = [BlockCost("a", ((1, 4.0),), ((1, 8.0),), 2.0, 10, 20)]
    monkeypatch.setattr("pipelining.block_timing.measure_blocks", lambda *_: measured)
    monkeypatch.setattr("pipelining.block_timing.shared_cores", lambda _: 2.0)
    world = World(0, 4, CPU, layout=Layout(2, 2, 2))
    world.gather_objects = lambda value: [value, [{**value[0], "finish": 6.0}], value, value]
    # 4 workers share 2 cores, so each measured twice the time that it takes on its own.
    own = measured[0].scaled(0.5)
    assert measure_costs(world, tiny(), 4, [1]) == [[own], [replace(own, finish=3.0)]]


def test_workers_share_the_cores_of_a_machine_but_not_gpus():
    assert shared_cores(torch.device("cuda")) == math.inf
    assert 0 < shared_cores(CPU) < math.inf

"""The split that measured block times balance."""

import time

import pytest
import torch

from fastalex.network.model import AlexNet
from fastalex.parallel import block_times
from fastalex.parallel.block_times import balance_split, time_blocks
from fastalex.parallel.layout import Layout, ParallelPlan
from fastalex.parallel.partition import partition
from fastalex.parallel.world import World

HERE = World(0, 1, torch.device("cpu"))


@pytest.fixture
def model() -> AlexNet:
    return AlexNet("krizhevsky", 5, seed=1, width=1 / 16, lrn=False)


def test_blocks_are_timed_and_the_network_is_left_alone(model):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.conv1.weight.grad = torch.ones_like(model.conv1.weight)
    seconds = time_blocks(HERE, model, rows=2, micro_batches=2)
    assert tuple(seconds) == model.architecture.block_names
    assert all(value > 0 for value in seconds.values())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert (model.conv1.weight.grad == 1).all()
    assert all(parameter.grad is None for name, parameter in model.named_parameters() if name != "conv1.weight")


def test_the_slowest_stage_is_balanced(model, monkeypatch):
    plan = ParallelPlan((HERE.device,), 1, Layout(1, 1, 2), partition(model.architecture, 2), "interleaved", 2)
    slow = model.fc8.forward

    def forward(*args, **kwargs):
        time.sleep(0.5)  # longer than all other blocks together
        return slow(*args, **kwargs)

    monkeypatch.setattr(block_times, "REPEATS", 1)
    monkeypatch.setattr(model.fc8, "forward", forward)
    *others, last = model.architecture.block_names
    assert balance_split(HERE, model, plan, batch_size=4) == (tuple(others), (last,))

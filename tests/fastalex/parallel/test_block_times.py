"""The split that measured block times balance."""

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


def test_a_block_costs_its_median_step_after_the_warm_up_on_the_slowest_device(model, monkeypatch):
    names = model.architecture.block_names
    plan = ParallelPlan((HERE.device,), 1, Layout(1, 1, 2), partition(model.architecture, 2), "interleaved", 2)
    steps = iter([100.0, 3.0, 1.0, 50.0])  # compiling, and another program
    rows: list[tuple[int, int]] = []

    def time_step(stages, images, micro_batches, device):
        rows.append((len(images), micro_batches))
        second = next(steps)
        return {name: second * (1 + names.index(name)) for name in stages}

    monkeypatch.setattr(block_times, "_time_step", time_step)

    class TwoDevices(World):
        """The other one computes the first block more slowly."""

        def gather_objects(self, value):
            assert value == {name: 3.0 * (1 + index) for index, name in enumerate(names)}
            return [value, value | {names[0]: 1000.0}]

        def barrier(self):
            rows.append((0, 0))  # all devices compute at the same time

    here = TwoDevices(0, 1, HERE.device)
    assert balance_split(here, model, plan, batch_size=12) == ((names[0],), names[1:])
    assert rows == [(0, 0), (6, 2)] * 4


def test_the_slowest_stage_is_balanced_by_all_that_its_blocks_do(model, monkeypatch):
    """On a clock that ticks whenever it is read, and once more for each of a hundred things that fc8 does."""
    now = [0]

    def tick(device):
        now[0] += 1
        return float(now[0])

    forward = model.fc8.forward

    def slow(*args, **kwargs):
        now[0] += 100
        return forward(*args, **kwargs)

    monkeypatch.setattr(block_times, "_now", tick)
    monkeypatch.setattr(model.fc8, "forward", slow)
    *others, last = model.architecture.block_names
    seconds = time_blocks(HERE, model, rows=1, micro_batches=3)
    passes = 3 + 3 + 1  # forward and backward of each micro-batch, and the deferred gradients
    assert seconds == dict.fromkeys(others, passes) | {last: passes + 3 * 100}
    plan = ParallelPlan((HERE.device,), 1, Layout(1, 1, 2), partition(model.architecture, 2), "interleaved", 2)
    assert balance_split(HERE, model, plan, batch_size=4) == (tuple(others), (last,))

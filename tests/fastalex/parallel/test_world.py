"""Ranks, groups and collective operations; what several workers do is tested in test_launch.py."""

import signal

import pytest
import torch

from fastalex.errors import ConfigurationError
from fastalex.parallel.layout import Layout
from fastalex.parallel.world import World

CPU = torch.device("cpu")


def test_ranks_in_a_layout():
    world = World(6, 8, CPU, layout=Layout(replicas=2, ranks=4, stages=4))
    assert (world.replica, world.pipeline_rank, world.is_first) == (1, 2, False)
    world = World(5, 6, CPU, layout=Layout(replicas=3, ranks=2, stages=2))
    assert (world.replica, world.pipeline_rank, world.is_first) == (2, 1, False)
    assert World(0, 6, CPU).is_first


def test_a_layout_for_another_number_of_workers_is_refused():
    with pytest.raises(ConfigurationError, match="2 replicas of 2 devices need 4 workers, got 3"):
        World(0, 3, CPU).arrange(Layout(2, 2, 2))


def test_groups_of_an_earlier_layout_are_forgotten():
    world = World(0, 2, CPU, _groups=("replicas", "stages"))
    world.arrange(Layout(1, 2, 2))
    assert world.replica_group is None
    assert world.pipeline_group is None


def test_alone():
    world = World(0, 1, CPU)
    assert world.from_first(lambda: 3) == 3
    assert world.gather_objects("a") == ["a"]
    with pytest.raises(ZeroDivisionError):
        world.from_first(lambda: 1 // 0)
    tensors = {"a": torch.arange(6.0).view(2, 3).t()}
    gathered = world.gather(tensors)
    assert torch.equal(gathered["a"], tensors["a"])
    assert gathered["a"].is_contiguous()
    assert world.sum(torch.ones(2)).tolist() == world.minimum(torch.ones(2)).tolist() == [1.0, 1.0]
    assert not world.stop_requested()
    world.signal_number = signal.SIGTERM
    assert world.stop_requested()


def test_a_signal_during_the_exchange_is_not_lost(monkeypatch):
    world, arriving = World(0, 2, CPU), [signal.SIGUSR1]

    def all_reduce(number, operation):
        assert operation == torch.distributed.ReduceOp.MAX
        while arriving:
            world.signal_number = arriving.pop()  # as the handler does

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    assert not world.stop_requested()
    assert world.stop_requested()
    assert world.signal_number == signal.SIGUSR1


def test_two_workers_agree(monkeypatch):
    """Sum, minimum, and the signal that the other one has received."""
    world, others = World(0, 2, CPU), torch.tensor([3.0, -5.0])
    combine = {torch.distributed.ReduceOp.SUM: torch.add, torch.distributed.ReduceOp.MIN: torch.minimum}

    def all_reduce(values, operation=torch.distributed.ReduceOp.SUM):
        values.copy_(combine[operation](values, others))

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    assert world.sum(torch.ones(2)).tolist() == [4.0, -4.0]
    assert world.minimum(torch.ones(2)).tolist() == [1.0, -5.0]
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda number, _: number.fill_(signal.SIGTERM))
    assert world.stop_requested()
    assert world.signal_number == signal.SIGTERM

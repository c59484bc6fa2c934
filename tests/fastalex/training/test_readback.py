"""Delayed readback: order, delay and tags."""

import pytest
import torch

from fastalex.training.readback import DelayedReadback


@pytest.mark.parametrize("delay", [0, 1, 3])
def test_delayed_readback_keeps_everything_in_order(delay):
    reader: DelayedReadback[int] = DelayedReadback(delay)
    values, seen = torch.zeros(2), []
    for number in range(7):
        values += 1
        reader.put(values, number)
        seen += reader.take()
        assert len(seen) == max(0, number + 1 - delay)
    seen += reader.take(everything=True)
    assert [tag for _, tag in seen] == list(range(7))
    assert [vector.tolist() for vector, _ in seen] == [[number + 1.0] * 2 for number in range(7)]
    assert reader.take(everything=True) == []

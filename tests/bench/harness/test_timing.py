"""Timing on a GPU."""

from types import SimpleNamespace

import pytest
import torch
from harness.timing import DeviceClock


def test_a_repeated_timing_prepares_its_work_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Backward frees the graph, so work prepared for one attempt cannot be timed again."""
    late = iter([True, True, False])
    event = SimpleNamespace(
        record=lambda: None, query=lambda: next(late), synchronize=lambda: None, elapsed_time=lambda _: 1.5
    )
    delays: list[int] = []
    monkeypatch.setattr(torch.cuda, "Event", lambda **_: event)
    monkeypatch.setattr(torch.cuda, "_sleep", delays.append)
    x = torch.ones(3, requires_grad=True)
    clock = DeviceClock()
    assert clock.time(lambda: x.exp().sum(), lambda y: y.backward()) == 1.5
    assert delays == [delays[0], 2 * delays[0], 4 * delays[0]]

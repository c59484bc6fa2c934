"""Poison what the kernels leave unwritten: memory that `kernels` asks for uninitialised arrives full of NaN."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
import torch

# Elements for which poison would take a CPU's memory; :func:`comparing.uninitialised` says why they may be so many.
LARGE = 2**30


def _poisoned(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def make_poisoned(*args, **kwargs) -> torch.Tensor:
        made = make(*args, **kwargs)
        by_kernels = sys._getframe(1).f_globals.get("__name__", "").startswith("kernels")
        if by_kernels and (made.is_cuda or made.numel() < LARGE):
            made.fill_(float("nan") if made.is_floating_point() else 253)
        return made

    return make_poisoned


@pytest.fixture
def no_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """For expanded tensors, which take no memory before they are copied."""
    monkeypatch.setattr(torch.Tensor, "contiguous", lambda *_, **__: pytest.fail("a copy was made"))


@pytest.fixture(autouse=True)
def poison_uninitialised_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        monkeypatch.setattr(owner, name, _poisoned(getattr(owner, name)))

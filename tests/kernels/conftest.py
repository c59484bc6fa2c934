"""Shared fixtures. Uninitialised memory that `kernels` allocates is filled with NaN, which shows unwritten results."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
import torch

# Tensors of this many elements are not filled, because that would allocate their memory (`comparing.uninitialised`).
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
    """Fails if an expanded tensor, which takes no memory, is copied."""
    monkeypatch.setattr(torch.Tensor, "contiguous", lambda *_, **__: pytest.fail("a copy was made"))


@pytest.fixture(autouse=True)
def poison_uninitialised_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        monkeypatch.setattr(owner, name, _poisoned(getattr(owner, name)))


@pytest.fixture
def without_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    """fp32 convolutions on a GPU use all bits of their factors, so that the tolerance of fp32 applies."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)

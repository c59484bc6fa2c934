"""Shared fixtures. What `kernels` allocates is filled with NaN, to show unwritten results, and has a guarded end."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from comparing import DEVICE, GUARD, guarded_bytes
from interpreter import strict_and_fast

# What tests share with benchmarks; at the end, so that scripts shadow no package.
sys.path.append(str(Path(__file__).parents[2] / "bench"))

# Tensors of this many elements are not filled, because that would allocate their memory (`comparing.uninitialised`).
LARGE = 2**30
# Tensors of more bytes have no guard, because it is kept until the end of the test.
MAX_GUARDED_BYTES = 2**22


def _poisoned(make: Callable[..., torch.Tensor], guards: list[torch.Tensor]) -> Callable[..., torch.Tensor]:
    def make_poisoned(*args, **kwargs) -> torch.Tensor:
        made = make(*args, **kwargs)
        by_kernels = sys._getframe(1).f_globals.get("__name__", "").startswith("kernels")
        if by_kernels and (made.is_cuda or made.numel() < LARGE):
            made.fill_(float("nan") if made.is_floating_point() else 253)
            if type(made) is torch.Tensor and made.device.type == "cpu" and 0 < made.nbytes <= MAX_GUARDED_BYTES:
                guards.append(_guard(made))
        return made

    return make_poisoned


def _guard(made: torch.Tensor) -> torch.Tensor:
    """Bytes behind the end of a tensor, which has all of its storage."""
    storage, end = made.untyped_storage(), made.untyped_storage().nbytes()
    storage.resize_(end + GUARD)
    guarded_bytes[storage.data_ptr()] = GUARD
    return torch.tensor([], dtype=torch.uint8).set_(storage, end, (GUARD,)).fill_(255)


@pytest.fixture
def no_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if an expanded tensor, which takes no memory, is copied."""
    monkeypatch.setattr(torch.Tensor, "contiguous", lambda *_, **__: pytest.fail("a copy was made"))


@pytest.fixture(autouse=True)
def fresh_large_tensors() -> None:
    """Large tensors get pages of their own from the system, which take memory only once they are written.

    A training run of an earlier test has let the allocator keep freed memory, which would then be cleared and used
    again: tests of offsets beyond 32 bits would take 20 GB.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(-4, 65536)  # M_MMAP_MAX in glibc's malloc.h, and its default


@pytest.fixture(autouse=True)
def poison_uninitialised_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    guards: list[torch.Tensor] = []
    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        monkeypatch.setattr(owner, name, _poisoned(getattr(owner, name), guards))
    yield
    guarded_bytes.clear()
    assert all(guard.eq(255).all() for guard in guards), "a kernel wrote behind the end of a tensor"


@pytest.fixture(scope="session", autouse=True)
def strict_interpreter() -> Iterator[None]:
    if DEVICE == "cpu":
        with strict_and_fast():
            yield
    else:
        yield


@pytest.fixture
def threads() -> Iterator[None]:
    """The test sets the number of PyTorch's threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def without_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    """fp32 convolutions on a GPU use all bits of their factors, so that the tolerance of fp32 applies."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)

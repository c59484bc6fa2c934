"""Delayed device-to-host readback that never blocks the training loop."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

Tag = TypeVar("Tag")


@dataclass
class _PendingCopy(Generic[Tag]):
    host: Tensor
    copied: torch.cuda.Event | None  # None on a CPU: the copy is complete
    tag: Tag


class DelayedReadback(Generic[Tag]):
    """A queue of small vectors that are copied to the host asynchronously and handed out a few calls later.

    By the time a vector is handed out, its copy has completed long ago, so the host does not wait for the device.

    Args:
        delay: a vector is handed out after this many later ones have been put. With 0 it is handed out at once, which
            waits for the copy.
    """

    def __init__(self, delay: int) -> None:
        self.delay = delay
        self._pending: deque[_PendingCopy[Tag]] = deque()

    def put(self, values: Tensor, tag: Tag) -> None:
        """Start copying a vector to the host. The caller may overwrite ``values`` afterwards."""
        if values.is_cuda:
            host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            host.copy_(values, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record()
            self._pending.append(_PendingCopy(host, copied, tag))
        else:
            self._pending.append(_PendingCopy(values.clone(), None, tag))

    def take(self, *, everything: bool = False) -> list[tuple[Tensor, Tag]]:
        """Return the vectors that are due with their tags, oldest first; with ``everything``, all of them."""
        due = []
        while self._pending and (everything or len(self._pending) > self.delay):
            copy = self._pending.popleft()
            if copy.copied is not None:
                copy.copied.synchronize()
            due.append((copy.host, copy.tag))
        return due

"""TODO."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

Tag = TypeVar("Tag")


@dataclass
class _Entry(Generic[Tag]):
    values: Tensor
    event: torch.cuda.Event | None
    tag: Tag


class DelayedReadback(Generic[Tag]):
    """Brings small vectors from the device to the host, in order, some calls late, so that nobody waits for them.

    Args:
        delay: a vector is handed out when so many later ones have been put; by then its copy is long done. 0 waits for
            it at once.
    """

    def __init__(self, delay: int) -> None:
        self.delay = delay
        self._entries: deque[_Entry[Tag]] = deque()

    def put(self, values: Tensor, tag: Tag) -> None:
        """Take a vector; what becomes of the tensor afterwards does not matter."""
        if values.is_cuda:
            host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            host.copy_(values, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
            self._entries.append(_Entry(host, event, tag))
        else:
            self._entries.append(_Entry(values.clone(), None, tag))

    def take(self, *, everything: bool = False) -> list[tuple[Tensor, Tag]]:
        """The vectors that are due, oldest first; with ``everything`` all that are left."""
        due = []
        while self._entries and (everything or len(self._entries) > self.delay):
            entry = self._entries.popleft()
            if entry.event is not None:
                entry.event.synchronize()
            due.append((entry.values, entry.tag))
        return due

"""Memory-mapped files that stay within the limit of open files."""

import contextlib
import functools
import mmap
import os
import resource
import sys

import numpy as np
from numpy.typing import NDArray

from dataloading.errors import unreadable


class MappedFiles:
    """Maps files into memory on demand and keeps the most recently used ones mapped.

    A mapping keeps its file open. At most half of the files that the process may open are mapped at once; the rest is
    left to everything else in the process.

    Args:
        count: how many files there are in all. The process's soft limit of open files is raised for them if possible.

    Attributes:
        all_fit: whether all files can be mapped at once.
    """

    def __init__(self, count: int) -> None:
        capacity = _raise_open_file_limit(count)
        self.all_fit = count <= capacity
        self._mapped = functools.lru_cache(capacity)(_map)

    def bytes_of(self, path: str) -> NDArray[np.uint8]:
        """Return the content of a file, read-only: uint8, shape (length,). Raises `DatasetError` if it is unreadable.

        The array stays valid after other files are mapped, but then keeps its own file open.
        """
        return self._mapped(path)


def _raise_open_file_limit(count: int) -> int:
    """Return how many of `count` files may be mapped at once, after raising the limit of open files if necessary."""
    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft, hard = (sys.maxsize if limit == resource.RLIM_INFINITY else limit for limit in (allowed, most))
    target = min(2 * count + 1024, hard)
    if soft < target:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (target, most))
            soft = target
    return max(1, soft // 2)


def _map(path: str) -> NDArray[np.uint8]:
    try:
        with open(path, "rb") as file:
            return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), dtype=np.uint8)
    except (OSError, ValueError) as error:
        raise unreadable(os.fspath(path), error) from None

"""Files that are read in small pieces, within the limit of open files.

Files are read, not mapped into memory: where a disk fails or a file is cut off, reading raises an error that names the
file, but touching a mapped page kills the process (SIGBUS).
"""

import contextlib
import functools
import os
import resource
import sys

import numpy as np
from numpy.typing import NDArray

from dataloading.errors import HOW_TO_REPAIR, DatasetError, unreadable


class OpenFiles:
    """Opens files on demand and keeps the most recently used ones open. Threads may share it.

    At most half of the files that the process may open are open at once; the rest is left to everything else in the
    process.

    Args:
        count: how many files there are in all. The process's soft limit of open files is raised for them if possible.
    """

    def __init__(self, count: int) -> None:
        self._opened = functools.lru_cache(_raise_open_file_limit(count))(_open)

    def read(self, path: str, offset: int, length: int) -> NDArray[np.uint8]:
        """Return `length` bytes of a file from `offset` on: uint8, read-only.

        Raises:
            DatasetError: the file cannot be read, or ends earlier.
        """
        data, done = np.empty(length, dtype=np.uint8), 0
        try:
            file = self._opened(path)
            while done < length and (count := os.preadv(file.descriptor, [data.data[done:]], offset + done)):
                done += count
        except OSError as error:
            raise unreadable(path, error) from None
        if done < length:
            raise DatasetError(
                f"{path} has been cut off: it ends at byte {offset + done:,}, before byte {offset + length:,}; "
                f"{HOW_TO_REPAIR}"
            )
        data.flags.writeable = False
        return data


class _OpenFile:
    """A descriptor that is closed with the last reference, so also where a thread still reads from it."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __del__(self) -> None:
        os.close(self.descriptor)


def _open(path: str) -> _OpenFile:
    return _OpenFile(os.open(path, os.O_RDONLY))


def _raise_open_file_limit(count: int) -> int:
    """Return how many of `count` files may be open at once, after raising the limit of open files if necessary."""
    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft, hard = (sys.maxsize if limit == resource.RLIM_INFINITY else limit for limit in (allowed, most))
    target = min(2 * count + 1024, hard)
    if soft < target:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (target, most))
            soft = target
    return max(1, soft // 2)

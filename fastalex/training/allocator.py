"""A setting of the C library's allocator for training on a CPU."""

from __future__ import annotations

import ctypes

# From glibc's malloc.h.
_M_TRIM_THRESHOLD = -1


_M_MMAP_MAX = -4


def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees, and hand it out again.

    By default glibc takes blocks of some size from the kernel and gives them back at once. Each activation and gradient
    of each step is then made of fresh pages, which the kernel clears one by one: hundreds of thousands of page faults
    a step. Kept memory makes the process somewhat larger, by what fragments.

    Returns:
        Whether the C library took the setting; one that is not glibc has none.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))

"""The size and dtype of the buffers that the operators compute in."""

from __future__ import annotations

import torch
from torch import Tensor

# 512 KiB of fp32 per thread: a handful of buffers fit in the caches, and the cost of starting an operation is small
# beside its work. Chunks small enough for a core's own cache were slower, because they start more operations.
ELEMENTS_PER_THREAD = 131072
# On a GPU every operation on every chunk is a launch, so chunks are large and only bound the memory used.
_ELEMENTS_ON_GPU = 2**24


def chunk_elements(x: Tensor) -> int:
    """The number of elements of `x` to process at a time."""
    return _ELEMENTS_ON_GPU if x.is_cuda else ELEMENTS_PER_THREAD * torch.get_num_threads()


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype to compute in: fp64 for fp64, fp32 for all others."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32

"""The two memory layouts that the operators know: NCHW and channels_last, both without gaps."""

from __future__ import annotations

import torch
from torch import Tensor


def is_channels_last(x: Tensor) -> bool:
    """Whether the channels lie next to each other; where both layouts fit, the answer is no."""
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def memory_format(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format


def dense(x: Tensor) -> Tensor:
    """`x` itself if it has one of the two layouts, else a copy in NCHW."""
    return x if is_channels_last(x) else x.contiguous()


def dense_as(x: Tensor, channels_last: bool) -> Tensor:
    """`x` in the layout asked for: itself, where it is so already."""
    return x.contiguous(memory_format=memory_format(channels_last))


def empty_as(x: Tensor, shape: tuple[int, ...] | None = None, dtype: torch.dtype | None = None) -> Tensor:
    """An uninitialised tensor in x's layout, of x's shape and dtype unless others are given."""
    return torch.empty(
        tuple(x.shape) if shape is None else shape,
        dtype=dtype or x.dtype,
        device=x.device,
        memory_format=memory_format(is_channels_last(x)),
    )

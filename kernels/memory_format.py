"""The two memory layouts that the operators know: NCHW and channels_last, both without gaps."""

from __future__ import annotations

import torch
from torch import Tensor


def is_channels_last(x: Tensor) -> bool:
    """Whether the channels lie next to each other, with or without gaps; where both layouts fit, the answer is no.

    Of `x` and `dense(x)` it says the same, so that a fake operator foretells the layout of the result.
    """
    _, channels, height, width = x.shape
    return channels > 1 and height * width > 1 and x.stride(1) == 1


def memory_format(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format


def dense(x: Tensor) -> Tensor:
    """`x` itself if it has one of the two layouts, else a copy, in channels_last if it is part of such a tensor."""
    return dense_as(x, is_channels_last(x))


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

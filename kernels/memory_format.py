"""The two dense memory formats that the operators support: NCHW (contiguous) and channels_last."""

from __future__ import annotations

import torch
from torch import Tensor


def is_channels_last(x: Tensor) -> bool:
    """Whether neighbouring channels are neighbours in memory, with or without gaps between pixels.

    If both formats fit, the answer is False. It is the same for `x` and `dense(x)`, so a fake operator can predict the
    format of the result.
    """
    _, channels, height, width = x.shape
    return channels > 1 and height * width > 1 and x.stride(1) == 1


def memory_format(channels_last: bool) -> torch.memory_format:
    """PyTorch's name of the format."""
    return torch.channels_last if channels_last else torch.contiguous_format


def is_dense(x: Tensor) -> bool:
    """Whether x's elements fill one range of memory without gaps, in either format."""
    return x.is_contiguous() or (x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last))


def dense(x: Tensor) -> Tensor:
    """`x` itself if it is dense, else a dense copy: in channels_last if `is_channels_last(x)`, else in NCHW."""
    return dense_as(x, is_channels_last(x))


def dense_as(x: Tensor, channels_last: bool) -> Tensor:
    """`x` in the given format: `x` itself if it already has it, else a copy."""
    return x.contiguous(memory_format=memory_format(channels_last))


def empty_as(x: Tensor, shape: tuple[int, ...] | None = None, dtype: torch.dtype | None = None) -> Tensor:
    """An uninitialised dense tensor in x's format, of x's shape and dtype unless others are given."""
    return torch.empty(
        tuple(x.shape) if shape is None else shape,
        dtype=dtype or x.dtype,
        device=x.device,
        memory_format=memory_format(is_channels_last(x)),
    )

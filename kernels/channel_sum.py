"""Sums over images and pixels, one per channel: the gradient of a bias, with the ReLU's backward pass on the way.

    grad_z = grad_y where y > 0, else 0             sum[c] = sum over n, i, j of grad_z[n, c, i, j]

Both for channels_last tensors, which a kernel reads as a matrix of rows (pixels) x channels. Each program sums some of
the rows; its result is one part of each channel's sum. A second kernel adds up the parts in a fixed order, so the
result is the same each time. The weight gradient of the convolution uses the second kernel too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels import launch_settings
from kernels.dispatch import tl, triton
from kernels.memory_format import is_channels_last
from kernels.vector_lanes import upcast, zero_accumulator


@triton.jit(do_not_specialize=["rows", "steps"])
def bias_relu_bwd_kernel(
    grad_ptr, y_ptr, grad_z_ptr, part_ptr, rows, steps, CHANNELS: tl.constexpr, RELU: tl.constexpr,
    SUM: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    """`steps * BLOCK_ROWS` rows of `BLOCK_CHANNELS` channels: with RELU their grad_z, with SUM one part of the sums."""
    CHANNEL_BLOCKS: tl.constexpr = (CHANNELS + BLOCK_CHANNELS - 1) // BLOCK_CHANNELS
    channel = tl.program_id(0) % CHANNEL_BLOCKS * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)[None, :]
    part = (tl.program_id(0) // CHANNEL_BLOCKS).to(tl.int64)
    total = zero_accumulator(grad_ptr, BLOCK_ROWS, BLOCK_CHANNELS)
    for step in range(steps):
        row = (part * steps + step) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)[:, None]
        offset = row * CHANNELS + channel
        mask = (row < rows) & (channel < CHANNELS)
        grad = tl.load(grad_ptr + offset, mask=mask, other=0.0)
        if RELU:
            y = tl.load(y_ptr + offset, mask=mask, other=0.0)
            grad = tl.where(y <= 0.0, 0.0, grad)
            tl.store(grad_z_ptr + offset, grad, mask=mask)
        if SUM:
            total += upcast(grad)
    if SUM:
        sums = tl.sum(total, axis=0)[None, :]
        tl.store(part_ptr + part * CHANNELS + channel, sums, mask=channel < CHANNELS)


@triton.jit(do_not_specialize=["parts"])
def sum_parts_kernel(
    part_ptr, total_ptr, parts, length, BLOCK_PARTS: tl.constexpr, BLOCK_SIZE: tl.constexpr
):  # fmt: skip
    """total[i] = sum over p of part[p, i], for `BLOCK_SIZE` of `length` sums, `BLOCK_PARTS` parts at a time."""
    index = tl.program_id(0) * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
    total = tl.zeros([BLOCK_SIZE], part_ptr.dtype.element_ty)
    for start in range(0, parts, BLOCK_PARTS):
        part = start + tl.arange(0, BLOCK_PARTS)
        mask = (part < parts)[:, None] & (index < length)[None, :]
        values = tl.load(part_ptr + part.to(tl.int64)[:, None] * length + index[None, :], mask=mask, other=0.0)
        total += tl.sum(values, axis=0)
    tl.store(total_ptr + index, total, mask=index < length)


# Tile of `bias_relu_bwd_kernel`, two loads of 16 bytes per thread, and the largest number of parts per sum.
_BLOCK_ROWS, _BLOCK_CHANNELS, _MAX_PARTS = 32, 64, 256
# Parts and sums that a program of `sum_parts_kernel` adds up at a time, if there are many sums ...
_BLOCK_PARTS, _BLOCK_SIZE = 16, 64
# ... and if there are so few that smaller blocks are needed for enough programs.
_FEW_SUMS, _BLOCK_PARTS_OF_FEW, _BLOCK_SIZE_OF_FEW = 8192, 128, 16


def bias_gradient(grad: Tensor, bias: Tensor | None, needed: bool) -> Tensor:
    """The gradient of a bias from the one of x + bias, N x C x H x W; empty if it is not needed."""
    if bias is None or not needed:
        return torch.empty(0, dtype=grad.dtype if bias is None else bias.dtype, device=grad.device)
    if is_channels_last(grad) and grad.numel():
        return channel_sum(grad, bias.dtype)
    # PyTorch, too, sums in a fixed order.
    accumulator = torch.float64 if grad.dtype == torch.float64 else torch.float32
    return grad.sum((0, 2, 3), dtype=accumulator).to(bias.dtype)


def channel_sum(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Sum of each channel over images and pixels, accumulated in fp32 (fp64 for fp64) in a fixed order.

    Args:
        x: N x C x H x W, dense and channels_last.
        dtype: of the result, a vector of C values.
    """
    return bias_relu_backward(x, None, True, dtype)[1]


def bias_relu_backward(
    grad: Tensor, y: Tensor | None, needs_bias: bool, bias_dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The gradients of z and of the bias, for y = relu(z) with z = x + bias.

    Args:
        grad: gradient of y, dense and channels_last.
        y: the same; None without a ReLU, when the gradient of z is `grad` itself.
        needs_bias: False leaves the gradient of the bias empty.
    """
    batch, channels, height, width = grad.shape
    rows = batch * height * width
    grad_z = grad if y is None else torch.empty_like(grad)
    grad_bias = torch.empty(channels if needs_bias else 0, dtype=bias_dtype, device=grad.device)
    steps = triton.cdiv(triton.cdiv(rows, _BLOCK_ROWS), _MAX_PARTS)
    count = triton.cdiv(rows, _BLOCK_ROWS * steps)
    parts = empty_parts(count, grad_bias.numel(), grad)
    with launch_settings.on_device_of(grad):
        bias_relu_bwd_kernel[(count * triton.cdiv(channels, _BLOCK_CHANNELS),)](
            grad,
            grad if y is None else y,
            grad_z,
            parts,
            rows,
            steps,
            CHANNELS=channels,
            RELU=y is not None,
            SUM=needs_bias,
            BLOCK_ROWS=_BLOCK_ROWS,
            BLOCK_CHANNELS=_BLOCK_CHANNELS,
            **launch_settings.OPTIONS,
        )
    if needs_bias:
        sum_parts(parts, grad_bias)
    return grad_z, grad_bias


def empty_parts(count: int, length: int, like: Tensor) -> Tensor:
    """Uninitialised memory for `count` parts of `length` sums of values such as those of `like`."""
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    return torch.empty((count, length), dtype=dtype, device=like.device)


def sum_parts(parts: Tensor, total: Tensor) -> None:
    """Write the sum over the first dimension of `parts` to `total`, in a fixed order."""
    count, length = parts.shape
    few = length <= _FEW_SUMS
    block_parts, block_size = (_BLOCK_PARTS_OF_FEW, _BLOCK_SIZE_OF_FEW) if few else (_BLOCK_PARTS, _BLOCK_SIZE)
    with launch_settings.on_device_of(parts):
        sum_parts_kernel[(triton.cdiv(length, block_size),)](
            parts, total, count, length, BLOCK_PARTS=block_parts, BLOCK_SIZE=block_size, **launch_settings.OPTIONS
        )

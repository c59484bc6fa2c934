"""Normalisation by the responses of neighbours in the map of the same channel.

    s[h, w] = k + alpha / n^2 * sum of x[i, j]^2 over i = h - n // 2 ... h + (n - 1) // 2 and j likewise around w
    y[h, w] = x[h, w] * s[h, w]^-beta
    t[h, w] = grad_y[h, w] * x[h, w] * s[h, w]^(-beta - 1)
    grad_x[h, w] = grad_y[h, w] * s[h, w]^-beta - 2 alpha beta / n^2 * x[h, w] * sum of t[i, j]
                   over i = h - (n - 1) // 2 ... h + n // 2 and j likewise around w

Source: the response normalisation layer (same map) of cuda-convnet, which the 2012 network has in its second layer.

A program walks down strips of the maps. It sums one row of each window anew, whose values neighbours read too, from the
first-level cache, and keeps the sums of the rows before: a pixel is read once for each column of a window, not for each
of its pixels. No sum is ever taken off again: that would cancel, and would carry one NaN down the map. Backward is two
kernels, because `t` of a window would need `s` of windows around each of its pixels; `t` waits in memory between them.
Both compute `s` again, so that `x` alone is kept.
"""

# A tuple that grows changes its type at each step.
# mypy: disable-error-code="assignment"

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import arguments, dispatch, launch, native, reference
from kernels.autograd import no_double_backward
from kernels.lrn import inverse, inverse_power
from kernels.memory_format import dense, empty_as, is_channels_last
from kernels.vector_lanes import locate, wide


@triton.jit
def tile_offset(
    vector, pixel, PIXELS: tl.constexpr, CHANNELS: tl.constexpr, VECTOR: tl.constexpr, CHANNELS_LAST: tl.constexpr
):
    """Where in its image each element of an [ITEMS, VECTOR] tile lies."""
    channel = (vector * VECTOR)[:, None] + tl.arange(0, VECTOR)[None, :]
    if CHANNELS_LAST:
        return pixel[:, None] * CHANNELS + channel
    else:
        return channel * PIXELS + pixel[:, None]


@triton.jit
def row_sum(
    image_ptr, vector, row, column, mask, BEFORE: tl.constexpr, SIZE: tl.constexpr, SQUARED: tl.constexpr,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, CHANNELS: tl.constexpr, VECTOR: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
):  # fmt: skip
    """The sum of values, or of their squares, over one row of each item's window; outside of the map there are zeros.

    A window begins `BEFORE` columns before its item.
    """
    here = tile_offset(vector, row * WIDTH + column, HEIGHT * WIDTH, CHANNELS, VECTOR, CHANNELS_LAST)
    STRIDE: tl.constexpr = CHANNELS if CHANNELS_LAST else 1
    in_row = mask & (row >= 0) & (row < HEIGHT)
    total = tl.zeros(here.shape, tl.float64 if image_ptr.dtype.element_ty == tl.float64 else tl.float32)
    for j in tl.static_range(SIZE):
        inside = in_row & (column + j >= BEFORE) & (column + j < WIDTH + BEFORE)
        value = wide(tl.load(image_ptr + here + (j - BEFORE) * STRIDE, mask=inside[:, None], other=0))
        total += value * value if SQUARED else value
    return total


@triton.jit
def no_rows(ptr, SIZE: tl.constexpr, ITEMS: tl.constexpr, VECTOR: tl.constexpr):
    """Sums of `SIZE` rows that are still to come: zeros."""
    rows = ()
    for _ in tl.static_range(SIZE):
        rows += (tl.zeros([ITEMS, VECTOR], tl.float64 if ptr.dtype.element_ty == tl.float64 else tl.float32),)
    return rows


@triton.jit
def moved_down(rows, row, SIZE: tl.constexpr):
    """The rows of windows one further down, of which `row` is the last."""
    moved = ()
    for index in tl.static_range(1, SIZE):
        moved += (rows[index],)
    moved += (row,)
    return moved


@triton.jit
def sum_of(rows, SIZE: tl.constexpr):
    total = rows[0]
    for index in tl.static_range(1, SIZE):
        total += rows[index]
    return total


@triton.jit
def same_map_fwd_kernel(
    x_ptr, y_ptr, SIZE: tl.constexpr, ALPHA: tl.constexpr, BETA: tl.constexpr, K: tl.constexpr, HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr, CHANNELS: tl.constexpr, STRIPS: tl.constexpr, ROWS: tl.constexpr, ITEMS: tl.constexpr,
    VECTOR: tl.constexpr, CHANNELS_LAST: tl.constexpr,
):  # fmt: skip
    """y from x, both N x CHANNELS x HEIGHT x WIDTH in one layout."""
    image, vector, place, mask = locate(CHANNELS // VECTOR, STRIPS * WIDTH, ITEMS, CHANNELS_LAST)
    first, column = place // WIDTH * ROWS, place % WIDTH
    start = image * (CHANNELS * HEIGHT * WIDTH)
    squares = no_rows(x_ptr, SIZE, ITEMS, VECTOR)
    # A strip's first windows are complete after SIZE rows.
    for step in range(1 - SIZE, ROWS):
        row = first + step
        last = row_sum(
            x_ptr + start, vector, row + (SIZE - 1) // 2, column, mask, SIZE // 2, SIZE, True, HEIGHT, WIDTH, CHANNELS,
            VECTOR, CHANNELS_LAST,
        )  # fmt: skip
        squares = moved_down(squares, last, SIZE)
        scale = sum_of(squares, SIZE) * (ALPHA / (SIZE * SIZE)) + K
        exists = (mask & (step >= 0) & (row < HEIGHT))[:, None]
        offset = tile_offset(vector, row * WIDTH + column, HEIGHT * WIDTH, CHANNELS, VECTOR, CHANNELS_LAST)
        x = wide(tl.load(x_ptr + start + offset, mask=exists, other=0))
        tl.store(y_ptr + start + offset, x * inverse_power(scale, BETA), mask=exists)


@triton.jit
def same_map_spread_kernel(
    grad_ptr, x_ptr, spread_ptr, SIZE: tl.constexpr, ALPHA: tl.constexpr, BETA: tl.constexpr, K: tl.constexpr,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, CHANNELS: tl.constexpr, STRIPS: tl.constexpr, ROWS: tl.constexpr,
    ITEMS: tl.constexpr, VECTOR: tl.constexpr, CHANNELS_LAST: tl.constexpr, GRAD_CHANNELS_LAST: tl.constexpr,
):  # fmt: skip
    """t, in x's layout, from grad_y, in its own, and x."""
    image, vector, place, mask = locate(CHANNELS // VECTOR, STRIPS * WIDTH, ITEMS, CHANNELS_LAST)
    first, column = place // WIDTH * ROWS, place % WIDTH
    start = image * (CHANNELS * HEIGHT * WIDTH)
    squares = no_rows(x_ptr, SIZE, ITEMS, VECTOR)
    for step in range(1 - SIZE, ROWS):
        row = first + step
        last = row_sum(
            x_ptr + start, vector, row + (SIZE - 1) // 2, column, mask, SIZE // 2, SIZE, True, HEIGHT, WIDTH, CHANNELS,
            VECTOR, CHANNELS_LAST,
        )  # fmt: skip
        squares = moved_down(squares, last, SIZE)
        scale = sum_of(squares, SIZE) * (ALPHA / (SIZE * SIZE)) + K
        exists = (mask & (step >= 0) & (row < HEIGHT))[:, None]
        offset = tile_offset(vector, row * WIDTH + column, HEIGHT * WIDTH, CHANNELS, VECTOR, CHANNELS_LAST)
        grad_offset = tile_offset(vector, row * WIDTH + column, HEIGHT * WIDTH, CHANNELS, VECTOR, GRAD_CHANNELS_LAST)
        x = wide(tl.load(x_ptr + start + offset, mask=exists, other=0))
        grad = wide(tl.load(grad_ptr + start + grad_offset, mask=exists, other=0))
        spread = grad * inverse_power(scale, BETA) * x * inverse(scale, BETA)
        tl.store(spread_ptr + start + offset, spread, mask=exists)


@triton.jit
def same_map_bwd_kernel(
    grad_ptr, spread_ptr, x_ptr, grad_x_ptr, SIZE: tl.constexpr, ALPHA: tl.constexpr, BETA: tl.constexpr,
    K: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, CHANNELS: tl.constexpr, STRIPS: tl.constexpr,
    ROWS: tl.constexpr, ITEMS: tl.constexpr, VECTOR: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    GRAD_CHANNELS_LAST: tl.constexpr,
):  # fmt: skip
    """grad_x from grad_y, in its own layout, and t and x, in one."""
    image, vector, place, mask = locate(CHANNELS // VECTOR, STRIPS * WIDTH, ITEMS, CHANNELS_LAST)
    first, column = place // WIDTH * ROWS, place % WIDTH
    start = image * (CHANNELS * HEIGHT * WIDTH)
    squares = no_rows(x_ptr, SIZE, ITEMS, VECTOR)
    spread = no_rows(x_ptr, SIZE, ITEMS, VECTOR)
    for step in range(1 - SIZE, ROWS):
        row = first + step
        last = row_sum(
            x_ptr + start, vector, row + (SIZE - 1) // 2, column, mask, SIZE // 2, SIZE, True, HEIGHT, WIDTH, CHANNELS,
            VECTOR, CHANNELS_LAST,
        )  # fmt: skip
        squares = moved_down(squares, last, SIZE)
        # The windows that hold a pixel lie around it the other way round.
        last = row_sum(
            spread_ptr + start, vector, row + SIZE // 2, column, mask, (SIZE - 1) // 2, SIZE, False, HEIGHT, WIDTH,
            CHANNELS, VECTOR, CHANNELS_LAST,
        )  # fmt: skip
        spread = moved_down(spread, last, SIZE)
        scale = sum_of(squares, SIZE) * (ALPHA / (SIZE * SIZE)) + K
        exists = (mask & (step >= 0) & (row < HEIGHT))[:, None]
        offset = tile_offset(vector, row * WIDTH + column, HEIGHT * WIDTH, CHANNELS, VECTOR, CHANNELS_LAST)
        grad_offset = tile_offset(vector, row * WIDTH + column, HEIGHT * WIDTH, CHANNELS, VECTOR, GRAD_CHANNELS_LAST)
        x = wide(tl.load(x_ptr + start + offset, mask=exists, other=0))
        grad = wide(tl.load(grad_ptr + start + grad_offset, mask=exists, other=0))
        indirect = (2.0 * ALPHA * BETA / (SIZE * SIZE)) * x * sum_of(spread, SIZE)
        tl.store(grad_x_ptr + start + offset, grad * inverse_power(scale, BETA) - indirect, mask=exists)


# Rows that a program walks down at most; sums of rows that a thread has registers for.
_ROWS, _SUMS = 32, 64


def _options(x: Tensor, size: int) -> tuple[tuple[int], dict[str, Any]]:
    """Grid and settings of a launch that walks down all maps of x."""
    batch, channels, height, width = x.shape
    # In NCHW, neighbouring items are neighbouring pixels, and windows begin at any of them: no load could be wider.
    vector = launch.vector_width(channels, x.element_size()) if is_channels_last(x) else 1
    vector = min(vector, max(1, _SUMS // triton.next_power_of_2(size)))
    strips = triton.cdiv(height, _ROWS)
    constants = {
        "SIZE": size,
        "HEIGHT": height,
        "WIDTH": width,
        "CHANNELS": channels,
        "STRIPS": strips,
        "ROWS": triton.cdiv(height, strips),
        "ITEMS": launch.ITEMS,
        "VECTOR": vector,
        "CHANNELS_LAST": is_channels_last(x),
        **launch.OPTIONS,
    }
    return (batch * launch.blocks(channels // vector * strips * width),), constants


@torch.library.custom_op("fastalex::same_map_forward", mutates_args=())
def _forward(x: Tensor, size: int, alpha: float, beta: float, k: float) -> Tensor:
    launch.check_image(x)
    x = dense(x)
    y = empty_as(x)
    if x.numel() == 0:
        return y
    grid, options = _options(x, size)
    with launch.on(x):
        same_map_fwd_kernel[grid](x, y, ALPHA=alpha, BETA=beta, K=k, **options)
    return y


@_forward.register_fake
def _(x: Tensor, size: int, alpha: float, beta: float, k: float) -> Tensor:
    return empty_as(x)


@torch.library.custom_op("fastalex::same_map_backward", mutates_args=())
def _backward(grad: Tensor, x: Tensor, size: int, alpha: float, beta: float, k: float) -> Tensor:
    x, grad = dense(x), dense(grad)
    grad_x = empty_as(x)
    if x.numel() == 0:
        return grad_x
    # fp16 has too small a range for products of gradients and responses; bf16 loses fewer bits than its results do.
    spread = empty_as(x, dtype=torch.float32 if x.dtype == torch.float16 else x.dtype)
    grid, options = _options(x, size)
    options |= {"ALPHA": alpha, "BETA": beta, "K": k, "GRAD_CHANNELS_LAST": is_channels_last(grad)}
    with launch.on(x):
        same_map_spread_kernel[grid](grad, x, spread, **options)
        same_map_bwd_kernel[grid](grad, spread, x, grad_x, **options)
    return grad_x


@_backward.register_fake
def _(grad: Tensor, x: Tensor, size: int, alpha: float, beta: float, k: float) -> Tensor:
    return empty_as(x)


class _SameMapNorm(torch.autograd.Function):
    """Keeps x."""

    @staticmethod
    def forward(ctx, x, *options):
        ctx.save_for_backward(x)
        ctx.options = options
        return _forward(x, *options)

    @staticmethod
    @no_double_backward("same_map_norm")
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return _backward(grad, x, *ctx.options), *([None] * len(ctx.options))


def same_map_norm(x: Tensor, size: int = 5, alpha: float = 1e-3, beta: float = 0.75, k: float = 1.0) -> Tensor:
    """Divide each response by a power of the summed squares of its neighbours in the same channel's map.

        y[n, c, h, w] = x[n, c, h, w] / (k + alpha / size^2 * sum_ij x[n, c, i, j]^2)^beta

    with i from h - size // 2 to h + (size - 1) // 2, j likewise, zero outside; the divisor is size^2 at the edges too.

    Differentiable once: there is no double backward, and no transform of `torch.func` (grad, jvp, vmap) takes it. Under
    `kernels.using("reference")` there are both.

    Args:
        x: N x C x H x W; float32, float16, bfloat16 or float64. Half precision is computed in fp32.
        size: side of the window, at least 1.
        alpha: at least 0; divided by `size` squared.
        beta: above 0.
        k: above 0.

    Returns:
        A tensor of x's shape, dtype and memory format. Backward keeps `x` alone.

    Raises:
        TypeError, ValueError: an argument is not as described; raised before anything is computed.

    Source: the response normalisation layer (same map) of cuda-convnet, which the 2012 network has in its second layer.
    """
    arguments.check_tensor("x", x, 4, "N x C x H x W")
    arguments.check_normalisation(size, alpha, beta, k)
    chosen = dispatch.implementation_for(x)
    if chosen == "triton":
        return _SameMapNorm.apply(x, size, float(alpha), float(beta), float(k))
    plain = reference if chosen == "reference" else native
    return plain.same_map_norm(x, size, alpha, beta, k)

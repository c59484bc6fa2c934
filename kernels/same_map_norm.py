"""Response normalisation within a map: over a square of neighbouring pixels in the same channel.

    s[h, w] = k + alpha / n^2 * sum of x[i, j]^2 over i = h - n // 2 ... h + (n - 1) // 2 and j likewise around w
    y[h, w] = x[h, w] * s[h, w]^-beta
    t[h, w] = grad_y[h, w] * x[h, w] * s[h, w]^(-beta - 1)
    grad_x[h, w] = grad_y[h, w] * s[h, w]^-beta - 2 alpha beta / n^2 * x[h, w] * sum of t[i, j]
                   over i = h - (n - 1) // 2 ... h + n // 2 and j likewise around w

Source: the response normalisation layer (same map) of cuda-convnet, which the second layer of the 2012 network uses.

A program walks down a strip of each map. In each step it sums one row of each window, mostly from the L1 cache, and
holds the sums of the previous rows in registers. So a pixel is read once per column of a window, not once per pixel. No
sum is ever subtracted, which would lose precision by cancellation and carry one NaN down the map.

Sums over a window are unrolled. Windows of more than 16 rows would take long to compile, so PyTorch's additions compute
them (`kernels/native/normalisation.py`).

Backward is two kernels: `t` at one pixel needs `s` there, which is a sum over a window itself, so `t` is written to
memory in between. Both kernels recompute `s`, so backward saves only `x`.
"""

# A tuple that grows in a loop changes its type in each iteration.
# mypy: disable-error-code="assignment"

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kernels import arguments, dispatch, launch_settings, native, reference, tuned
from kernels.autograd import no_double_backward, operator
from kernels.dispatch import tl, triton
from kernels.lrn import inverse, inverse_power
from kernels.memory_format import dense, empty_as, is_channels_last
from kernels.vector_lanes import element_offset, locate, upcast, zero_accumulator


@triton.jit
def row_sum(
    image_ptr, vector, row, column, mask, BEFORE: tl.constexpr, SIZE: tl.constexpr, SQUARED: tl.constexpr,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, CHANNELS: tl.constexpr, VECTOR: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
):  # fmt: skip
    """Sum of values, or of their squares, over one row of each item's window. Values outside the map are zero.

    A window begins `BEFORE` columns before its item.
    """
    centre = element_offset(vector, row * WIDTH + column, HEIGHT * WIDTH, CHANNELS, VECTOR, CHANNELS_LAST)
    STRIDE: tl.constexpr = CHANNELS if CHANNELS_LAST else 1
    in_row = mask & (row >= 0) & (row < HEIGHT)
    total = tl.zeros(centre.shape, tl.float64 if image_ptr.dtype.element_ty == tl.float64 else tl.float32)
    for j in tl.static_range(SIZE):
        inside = in_row & (column + j >= BEFORE) & (column + j < WIDTH + BEFORE)
        value = upcast(tl.load(image_ptr + centre + (j - BEFORE) * STRIDE, mask=inside[:, None], other=0))
        total += value * value if SQUARED else value
    return total


@triton.jit
def zero_rows(ptr, SIZE: tl.constexpr, ITEMS: tl.constexpr, VECTOR: tl.constexpr):
    """Initial sums of the `SIZE` rows of a window: zeros."""
    rows = ()
    for _ in tl.static_range(SIZE):
        rows += (zero_accumulator(ptr, ITEMS, VECTOR),)
    return rows


@triton.jit
def push_row(rows, row, SIZE: tl.constexpr):
    """The row sums of the window one row further down: without the first of `rows`, with `row` at the end."""
    pushed = ()
    for index in tl.static_range(1, SIZE):
        pushed += (rows[index],)
    pushed += (row,)
    return pushed


@triton.jit
def window_total(rows, SIZE: tl.constexpr):
    """Sum over a window, from its row sums."""
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
    """y from x, both N x CHANNELS x HEIGHT x WIDTH in the same layout. A strip has ROWS rows."""
    # An item is one column of a strip.
    image, vector, strip_column, mask = locate(CHANNELS // VECTOR, STRIPS * WIDTH, ITEMS, CHANNELS_LAST)
    first, column = strip_column // WIDTH * ROWS, strip_column % WIDTH
    start = image * (CHANNELS * HEIGHT * WIDTH)
    squares = zero_rows(x_ptr, SIZE, ITEMS, VECTOR)
    # Walk down the strip. Its first windows are complete after SIZE rows.
    for step in range(1 - SIZE, ROWS):
        row = first + step
        last = row_sum(
            x_ptr + start, vector, row + (SIZE - 1) // 2, column, mask, SIZE // 2, SIZE, True, HEIGHT, WIDTH, CHANNELS,
            VECTOR, CHANNELS_LAST,
        )  # fmt: skip
        squares = push_row(squares, last, SIZE)
        scale = window_total(squares, SIZE) * (ALPHA / (SIZE * SIZE)) + K
        exists = (mask & (step >= 0) & (row < HEIGHT))[:, None]
        offset = element_offset(vector, row * WIDTH + column, HEIGHT * WIDTH, CHANNELS, VECTOR, CHANNELS_LAST)
        x = upcast(tl.load(x_ptr + start + offset, mask=exists, other=0))
        tl.store(y_ptr + start + offset, x * inverse_power(scale, BETA), mask=exists)


@triton.jit
def same_map_spread_kernel(
    grad_ptr, x_ptr, spread_ptr, SIZE: tl.constexpr, ALPHA: tl.constexpr, BETA: tl.constexpr, K: tl.constexpr,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, CHANNELS: tl.constexpr, STRIPS: tl.constexpr, ROWS: tl.constexpr,
    ITEMS: tl.constexpr, VECTOR: tl.constexpr, CHANNELS_LAST: tl.constexpr, GRAD_CHANNELS_LAST: tl.constexpr,
):  # fmt: skip
    """t in x's layout, from x and from grad_y in a layout of its own."""
    # An item is one column of a strip.
    image, vector, strip_column, mask = locate(CHANNELS // VECTOR, STRIPS * WIDTH, ITEMS, CHANNELS_LAST)
    first, column = strip_column // WIDTH * ROWS, strip_column % WIDTH
    start = image * (CHANNELS * HEIGHT * WIDTH)
    squares = zero_rows(x_ptr, SIZE, ITEMS, VECTOR)
    # Walk down the strip, as in forward.
    for step in range(1 - SIZE, ROWS):
        row = first + step
        last = row_sum(
            x_ptr + start, vector, row + (SIZE - 1) // 2, column, mask, SIZE // 2, SIZE, True, HEIGHT, WIDTH, CHANNELS,
            VECTOR, CHANNELS_LAST,
        )  # fmt: skip
        squares = push_row(squares, last, SIZE)
        scale = window_total(squares, SIZE) * (ALPHA / (SIZE * SIZE)) + K
        exists = (mask & (step >= 0) & (row < HEIGHT))[:, None]
        offset = element_offset(vector, row * WIDTH + column, HEIGHT * WIDTH, CHANNELS, VECTOR, CHANNELS_LAST)
        grad_offset = element_offset(vector, row * WIDTH + column, HEIGHT * WIDTH, CHANNELS, VECTOR, GRAD_CHANNELS_LAST)
        x = upcast(tl.load(x_ptr + start + offset, mask=exists, other=0))
        grad = upcast(tl.load(grad_ptr + start + grad_offset, mask=exists, other=0))
        spread = grad * inverse_power(scale, BETA) * x * inverse(scale, BETA)
        tl.store(spread_ptr + start + offset, spread, mask=exists)


@triton.jit
def same_map_bwd_kernel(
    grad_ptr, spread_ptr, x_ptr, grad_x_ptr, SIZE: tl.constexpr, ALPHA: tl.constexpr, BETA: tl.constexpr,
    K: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, CHANNELS: tl.constexpr, STRIPS: tl.constexpr,
    ROWS: tl.constexpr, ITEMS: tl.constexpr, VECTOR: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    GRAD_CHANNELS_LAST: tl.constexpr,
):  # fmt: skip
    """grad_x in x's layout, from t and x in that layout and from grad_y in a layout of its own."""
    # An item is one column of a strip.
    image, vector, strip_column, mask = locate(CHANNELS // VECTOR, STRIPS * WIDTH, ITEMS, CHANNELS_LAST)
    first, column = strip_column // WIDTH * ROWS, strip_column % WIDTH
    start = image * (CHANNELS * HEIGHT * WIDTH)
    squares = zero_rows(x_ptr, SIZE, ITEMS, VECTOR)
    spread = zero_rows(x_ptr, SIZE, ITEMS, VECTOR)
    # Walk down the strip, with the row sums of x^2 and of t.
    for step in range(1 - SIZE, ROWS):
        row = first + step
        last = row_sum(
            x_ptr + start, vector, row + (SIZE - 1) // 2, column, mask, SIZE // 2, SIZE, True, HEIGHT, WIDTH, CHANNELS,
            VECTOR, CHANNELS_LAST,
        )  # fmt: skip
        squares = push_row(squares, last, SIZE)
        # The windows that contain a pixel form the mirrored window around it.
        last = row_sum(
            spread_ptr + start, vector, row + SIZE // 2, column, mask, (SIZE - 1) // 2, SIZE, False, HEIGHT, WIDTH,
            CHANNELS, VECTOR, CHANNELS_LAST,
        )  # fmt: skip
        spread = push_row(spread, last, SIZE)
        scale = window_total(squares, SIZE) * (ALPHA / (SIZE * SIZE)) + K
        exists = (mask & (step >= 0) & (row < HEIGHT))[:, None]
        offset = element_offset(vector, row * WIDTH + column, HEIGHT * WIDTH, CHANNELS, VECTOR, CHANNELS_LAST)
        grad_offset = element_offset(vector, row * WIDTH + column, HEIGHT * WIDTH, CHANNELS, VECTOR, GRAD_CHANNELS_LAST)
        x = upcast(tl.load(x_ptr + start + offset, mask=exists, other=0))
        grad = upcast(tl.load(grad_ptr + start + grad_offset, mask=exists, other=0))
        indirect = (2.0 * ALPHA * BETA / (SIZE * SIZE)) * x * window_total(spread, SIZE)
        tl.store(grad_x_ptr + start + offset, grad * inverse_power(scale, BETA) - indirect, mask=exists)


# Largest number of rows in a strip, and of row sums that a thread has registers for.
_MAX_ROWS, _MAX_SUMS = 32, 64


def _options(kernel: str, x: Tensor, size: int) -> tuple[tuple[int], dict[str, Any]]:
    """Grid, constants and options of a kernel's launch over all maps of x."""
    batch, channels, height, width = x.shape
    # In NCHW, neighbouring items are neighbouring pixels and windows begin at any of them, so loads cannot be wider.
    vector = launch_settings.vector_width(channels, x.element_size()) if is_channels_last(x) else 1
    vector = min(vector, max(1, _MAX_SUMS // triton.next_power_of_2(size)))
    strips = triton.cdiv(height, _MAX_ROWS)
    constants = {
        "SIZE": size,
        "HEIGHT": height,
        "WIDTH": width,
        "CHANNELS": channels,
        "STRIPS": strips,
        "ROWS": triton.cdiv(height, strips),
        "VECTOR": vector,
        "CHANNELS_LAST": is_channels_last(x),
    }
    launch = tuned.launch_of(kernel, x)
    return (batch * launch.programs(channels // vector * strips * width),), launch.options | constants


@operator("fastalex::same_map_forward")
def _forward(x: Tensor, size: int, alpha: float, beta: float, k: float) -> Tensor:
    arguments.check_image(x)
    x = dense(x)
    y = empty_as(x)
    if x.numel() == 0:
        return y
    grid, options = _options("same_map_fwd_kernel", x, size)
    with launch_settings.on_device_of(x):
        same_map_fwd_kernel[grid](x, y, ALPHA=alpha, BETA=beta, K=k, **options)
    return y


@_forward.register_fake
def _(x: Tensor, size: int, alpha: float, beta: float, k: float) -> Tensor:
    return empty_as(x)


@operator("fastalex::same_map_backward")
def _backward(grad: Tensor, x: Tensor, size: int, alpha: float, beta: float, k: float) -> Tensor:
    x, grad = dense(x), dense(grad)
    grad_x = empty_as(x)
    if x.numel() == 0:
        return grad_x
    # The range of fp16 is too small for products of gradients and responses. Rounding to bf16 costs less precision than
    # rounding the result does.
    spread = empty_as(x, dtype=torch.float32 if x.dtype == torch.float16 else x.dtype)
    numbers = {"ALPHA": alpha, "BETA": beta, "K": k, "GRAD_CHANNELS_LAST": is_channels_last(grad)}
    with launch_settings.on_device_of(x):
        grid, options = _options("same_map_spread_kernel", x, size)
        same_map_spread_kernel[grid](grad, x, spread, **options, **numbers)
        grid, options = _options("same_map_bwd_kernel", x, size)
        same_map_bwd_kernel[grid](grad, spread, x, grad_x, **options, **numbers)
    return grad_x


@_backward.register_fake
def _(grad: Tensor, x: Tensor, size: int, alpha: float, beta: float, k: float) -> Tensor:
    return empty_as(x)


class _SameMapNorm(torch.autograd.Function):
    """Saves x."""

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
    """Divide each response by a power of the sum of squares over the neighbouring pixels of its channel.

        y[n, c, h, w] = x[n, c, h, w] / (k + alpha / size^2 * sum_ij x[n, c, i, j]^2)^beta

    with i from h - size // 2 to h + (size - 1) // 2, j likewise, and zeros outside the map. The divisor is size^2 also
    at the edges.

    Differentiable once: there is no double backward, and no transform of `torch.func` (grad, jvp, vmap) works. Under
    `kernels.using("reference")` both work.

    Args:
        x: N x C x H x W; float32, float16, bfloat16 or float64. Half precision is computed in fp32.
        size: side of the window, at least 1; may exceed H and W. Above 16, PyTorch's operators compute the sums.
        alpha: at least 0; divided by `size` squared.
        beta: above 0.
        k: above 0.

    Returns:
        A tensor of x's shape, dtype and memory format. Backward saves only `x`.

    Raises:
        TypeError, ValueError: an argument is not as described; raised before any computation.

    Source: the response normalisation layer (same map) of cuda-convnet; the second layer of the 2012 network has one.
    """
    arguments.check_tensor("x", x, 4, "N x C x H x W")
    arguments.check_normalisation(size, alpha, beta, k)
    size, alpha = arguments.clamp_window(max(x.shape[2:]), size, alpha, 2)
    chosen = dispatch.implementation_for(x)
    if chosen == "triton" and size <= arguments.MAX_UNROLLED_WINDOW:
        return _SameMapNorm.apply(x, size, float(alpha), float(beta), float(k))
    plain = reference if chosen == "reference" else native
    return plain.same_map_norm(x, size, alpha, beta, k)

"""Normalisation by the responses of neighbours in the map of the same channel.

    s[h, w] = k + alpha / n^2 * sum of x[i, j]^2 over i = h - n // 2 ... h + (n - 1) // 2 and j likewise around w
    y[h, w] = x[h, w] * s[h, w]^-beta
    t[h, w] = grad_y[h, w] * x[h, w] * s[h, w]^(-beta - 1)
    grad_x[h, w] = grad_y[h, w] * s[h, w]^-beta - 2 alpha beta / n^2 * x[h, w] * sum of t[i, j]
                   over i = h - (n - 1) // 2 ... h + n // 2 and j likewise around w

Source: the response normalisation layer (same map) of cuda-convnet, which the 2012 network has in its second layer.

Neighbouring items read nearly the same windows, which therefore come from the first-level cache. Backward is two
kernels, because `t` of a window would need `s` of windows around each of its pixels; `t` waits in memory between them.
Backward computes `s` again and keeps `x` alone.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels import arguments, dispatch, launch, native, reference
from kernels.layout import dense, empty_as, is_channels_last
from kernels.lrn import inverse_power
from kernels.tiles import locate, wide


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
def window_sum(
    image_ptr, vector, pixel, mask, BEFORE: tl.constexpr, SIZE: tl.constexpr, SQUARED: tl.constexpr,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, CHANNELS: tl.constexpr, VECTOR: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
):  # fmt: skip
    """The sum of values, or of their squares, over each item's window; outside of the map there are zeros.

    A window begins `BEFORE` rows and columns before its item.
    """
    row, column = pixel // WIDTH, pixel % WIDTH
    here = tile_offset(vector, pixel, HEIGHT * WIDTH, CHANNELS, VECTOR, CHANNELS_LAST)
    STRIDE: tl.constexpr = CHANNELS if CHANNELS_LAST else 1
    total = tl.zeros(here.shape, tl.float64 if image_ptr.dtype.element_ty == tl.float64 else tl.float32)
    # Not unrolled, so that a wide window makes no long program.
    for i in range(SIZE):
        in_rows = mask & (row + i >= BEFORE) & (row + i < HEIGHT + BEFORE)
        for j in tl.static_range(SIZE):
            inside = in_rows & (column + j >= BEFORE) & (column + j < WIDTH + BEFORE)
            offset = here + ((i - BEFORE) * WIDTH + (j - BEFORE)) * STRIDE
            value = wide(tl.load(image_ptr + offset, mask=inside[:, None], other=0))
            total += value * value if SQUARED else value
    return total


@triton.jit
def same_map_fwd_kernel(
    x_ptr, y_ptr, SIZE: tl.constexpr, ALPHA: tl.constexpr, BETA: tl.constexpr, K: tl.constexpr, HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr, CHANNELS: tl.constexpr, ITEMS: tl.constexpr, VECTOR: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
):  # fmt: skip
    """y from x, both N x CHANNELS x HEIGHT x WIDTH in one layout."""
    image, vector, pixel, mask = locate(CHANNELS // VECTOR, HEIGHT * WIDTH, ITEMS, CHANNELS_LAST)
    start = image * (CHANNELS * HEIGHT * WIDTH)
    squares = window_sum(
        x_ptr + start, vector, pixel, mask, SIZE // 2, SIZE, True, HEIGHT, WIDTH, CHANNELS, VECTOR, CHANNELS_LAST
    )
    scale = squares * (ALPHA / (SIZE * SIZE)) + K
    offset = tile_offset(vector, pixel, HEIGHT * WIDTH, CHANNELS, VECTOR, CHANNELS_LAST)
    x = wide(tl.load(x_ptr + start + offset, mask=mask[:, None], other=0))
    tl.store(y_ptr + start + offset, x * inverse_power(scale, BETA), mask=mask[:, None])


@triton.jit
def same_map_spread_kernel(
    grad_ptr, x_ptr, spread_ptr, direct_ptr, SIZE: tl.constexpr, ALPHA: tl.constexpr, BETA: tl.constexpr,
    K: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, CHANNELS: tl.constexpr, ITEMS: tl.constexpr,
    VECTOR: tl.constexpr, CHANNELS_LAST: tl.constexpr, GRAD_CHANNELS_LAST: tl.constexpr,
):  # fmt: skip
    """t, and the part of grad_x that comes from the same pixel, in x's layout, from grad_y, in its own, and x."""
    image, vector, pixel, mask = locate(CHANNELS // VECTOR, HEIGHT * WIDTH, ITEMS, CHANNELS_LAST)
    start = image * (CHANNELS * HEIGHT * WIDTH)
    squares = window_sum(
        x_ptr + start, vector, pixel, mask, SIZE // 2, SIZE, True, HEIGHT, WIDTH, CHANNELS, VECTOR, CHANNELS_LAST
    )
    scale = squares * (ALPHA / (SIZE * SIZE)) + K
    offset = tile_offset(vector, pixel, HEIGHT * WIDTH, CHANNELS, VECTOR, CHANNELS_LAST)
    grad_offset = tile_offset(vector, pixel, HEIGHT * WIDTH, CHANNELS, VECTOR, GRAD_CHANNELS_LAST)
    x = wide(tl.load(x_ptr + start + offset, mask=mask[:, None], other=0))
    grad = wide(tl.load(grad_ptr + start + grad_offset, mask=mask[:, None], other=0))
    direct = grad * inverse_power(scale, BETA)
    tl.store(spread_ptr + start + offset, direct * x / scale, mask=mask[:, None])
    tl.store(direct_ptr + start + offset, direct, mask=mask[:, None])


@triton.jit
def same_map_bwd_kernel(
    direct_ptr, spread_ptr, x_ptr, grad_x_ptr, SIZE: tl.constexpr, ALPHA: tl.constexpr, BETA: tl.constexpr,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, CHANNELS: tl.constexpr, ITEMS: tl.constexpr, VECTOR: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
):  # fmt: skip
    """grad_x from what `same_map_spread_kernel` wrote, and x, all in one layout."""
    image, vector, pixel, mask = locate(CHANNELS // VECTOR, HEIGHT * WIDTH, ITEMS, CHANNELS_LAST)
    start = image * (CHANNELS * HEIGHT * WIDTH)
    spread = window_sum(
        spread_ptr + start, vector, pixel, mask, (SIZE - 1) // 2, SIZE, False, HEIGHT, WIDTH, CHANNELS, VECTOR,
        CHANNELS_LAST,
    )  # fmt: skip
    offset = tile_offset(vector, pixel, HEIGHT * WIDTH, CHANNELS, VECTOR, CHANNELS_LAST)
    x = wide(tl.load(x_ptr + start + offset, mask=mask[:, None], other=0))
    direct = tl.load(direct_ptr + start + offset, mask=mask[:, None], other=0)
    grad_x = direct - (2.0 * ALPHA * BETA / (SIZE * SIZE)) * x * spread
    tl.store(grad_x_ptr + start + offset, grad_x, mask=mask[:, None])


def _vector(x: Tensor) -> int:
    # In NCHW, neighbouring items are neighbouring pixels, and windows begin at any of them: no load could be wider.
    return launch.vector_width(x.shape[1], x.element_size()) if is_channels_last(x) else 1


@torch.library.custom_op("fastalex::same_map_forward", mutates_args=())
def _forward(x: Tensor, size: int, alpha: float, beta: float, k: float) -> Tensor:
    launch.check_image(x)
    x = dense(x)
    y = empty_as(x)
    if x.numel() == 0:
        return y
    batch, channels, height, width = x.shape
    vector = _vector(x)
    with launch.on(x):
        same_map_fwd_kernel[(batch * launch.blocks(channels // vector * height * width),)](
            x,
            y,
            SIZE=size,
            ALPHA=alpha,
            BETA=beta,
            K=k,
            HEIGHT=height,
            WIDTH=width,
            CHANNELS=channels,
            ITEMS=launch.ITEMS,
            VECTOR=vector,
            CHANNELS_LAST=is_channels_last(x),
            **launch.OPTIONS,
        )
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
    work = torch.float64 if x.dtype == torch.float64 else torch.float32
    spread, direct = empty_as(x, dtype=work), empty_as(x, dtype=work)
    batch, channels, height, width = x.shape
    vector = _vector(x)
    grid = (batch * launch.blocks(channels // vector * height * width),)
    with launch.on(x):
        same_map_spread_kernel[grid](
            grad,
            x,
            spread,
            direct,
            SIZE=size,
            ALPHA=alpha,
            BETA=beta,
            K=k,
            HEIGHT=height,
            WIDTH=width,
            CHANNELS=channels,
            ITEMS=launch.ITEMS,
            VECTOR=vector,
            CHANNELS_LAST=is_channels_last(x),
            GRAD_CHANNELS_LAST=is_channels_last(grad),
            **launch.OPTIONS,
        )
        same_map_bwd_kernel[grid](
            direct,
            spread,
            x,
            grad_x,
            SIZE=size,
            ALPHA=alpha,
            BETA=beta,
            HEIGHT=height,
            WIDTH=width,
            CHANNELS=channels,
            ITEMS=launch.ITEMS,
            VECTOR=vector,
            CHANNELS_LAST=is_channels_last(x),
            **launch.OPTIONS,
        )
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
    @once_differentiable
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

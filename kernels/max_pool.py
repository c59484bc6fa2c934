"""Max-pooling with windows that may overlap.

    y[i, j] = max of x[i * stride - padding + a, j * stride - padding + b] over a and b in 0 ... kernel_size - 1
    grad_x[h, w] = sum of grad_y[i, j] over the windows whose maximum lies at (h, w)

Source: section 3.4 of Krizhevsky, Sutskever and Hinton (2012), which pools 3 x 3 windows two apart.

Forward stores the argmax of each window, its maximum's position `a * kernel_size + b` in the window, in one byte.
Backward gathers: each input position reads the few windows that contain it, so there are no atomic additions and the
result is the same each time. The argmax of windows larger than 16 x 16 does not fit a byte; then x is saved instead,
and backward searches for the maxima again.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels import arguments, dispatch, launch_settings, native, reference
from kernels.autograd import no_double_backward, operator
from kernels.dispatch import tl, triton
from kernels.memory_format import dense, empty_as, is_channels_last
from kernels.vector_lanes import element_offset, locate, upcast, zero_accumulator

_MAX_BYTE_WINDOW = 256


@triton.jit
def max_pool_fwd_kernel(
    x_ptr, y_ptr, argmax_ptr, KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr, HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr, OUT_HEIGHT: tl.constexpr, OUT_WIDTH: tl.constexpr, CHANNELS: tl.constexpr,
    ITEMS: tl.constexpr, VECTOR: tl.constexpr, CHANNELS_LAST: tl.constexpr,
):  # fmt: skip
    """y and argmax, N x CHANNELS x OUT_HEIGHT x OUT_WIDTH, from x, N x CHANNELS x HEIGHT x WIDTH."""
    OUT_PIXELS: tl.constexpr = OUT_HEIGHT * OUT_WIDTH
    # An item is one pixel of y; its window starts at (top, left).
    image, vector, pixel, mask = locate(CHANNELS // VECTOR, OUT_PIXELS, ITEMS, CHANNELS_LAST)
    x_start = x_ptr + image * (CHANNELS * HEIGHT * WIDTH)
    top = pixel // OUT_WIDTH * STRIDE - PADDING
    left = pixel % OUT_WIDTH * STRIDE - PADDING
    if x_ptr.dtype.element_ty == tl.float64:
        best = tl.full([ITEMS, VECTOR], float("-inf"), tl.float64)
    else:
        best = tl.full([ITEMS, VECTOR], float("-inf"), tl.float32)
    argmax = tl.full([ITEMS, VECTOR], -1, tl.int32)
    for a in tl.static_range(KERNEL):
        for b in tl.static_range(KERNEL):
            row, column = top + a, left + b
            inside = (mask & (row >= 0) & (row < HEIGHT) & (column >= 0) & (column < WIDTH))[:, None]
            offset = element_offset(vector, row * WIDTH + column, HEIGHT * WIDTH, CHANNELS, VECTOR, CHANNELS_LAST)
            value = upcast(tl.load(x_start + offset, mask=inside, other=0.0))
            # NaN wins. The first position is always taken, so that a window of -inf has a maximum too.
            better = inside & ((value > best) | (value != value) | (argmax < 0))
            best = tl.where(better, value, best)
            argmax = tl.where(better, a * KERNEL + b, argmax)
    start = image * (CHANNELS * OUT_PIXELS)
    offset = element_offset(vector, pixel, OUT_PIXELS, CHANNELS, VECTOR, CHANNELS_LAST)
    tl.store(y_ptr + start + offset, best, mask=mask[:, None])
    tl.store(argmax_ptr + start + offset, argmax.to(argmax_ptr.dtype.element_ty), mask=mask[:, None])


@triton.jit
def max_pool_bwd_kernel(
    grad_ptr, argmax_ptr, grad_x_ptr, KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, OUT_HEIGHT: tl.constexpr, OUT_WIDTH: tl.constexpr,
    CHANNELS: tl.constexpr, ITEMS: tl.constexpr, VECTOR: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    GRAD_CHANNELS_LAST: tl.constexpr,
):  # fmt: skip
    """grad_x in the layout of argmax, from argmax and from grad_y in a layout of its own."""
    OUT_PIXELS: tl.constexpr = OUT_HEIGHT * OUT_WIDTH
    WINDOWS: tl.constexpr = (KERNEL + STRIDE - 1) // STRIDE
    # An item is one pixel of x; its row and column include the padding.
    image, vector, pixel, mask = locate(CHANNELS // VECTOR, HEIGHT * WIDTH, ITEMS, CHANNELS_LAST)
    out_start = image * (CHANNELS * OUT_PIXELS)
    row = pixel // WIDTH + PADDING
    column = pixel % WIDTH + PADDING
    # Add up the gradients of the windows that contain the pixel and have their maximum there.
    total = zero_accumulator(grad_ptr, ITEMS, VECTOR)
    for rows_up in tl.static_range(WINDOWS):
        for columns_left in tl.static_range(WINDOWS):
            i, j = row // STRIDE - rows_up, column // STRIDE - columns_left
            a, b = row - i * STRIDE, column - j * STRIDE
            contains = (i >= 0) & (i < OUT_HEIGHT) & (a < KERNEL) & (j >= 0) & (j < OUT_WIDTH) & (b < KERNEL)
            inside = (mask & contains)[:, None]
            window = i * OUT_WIDTH + j
            argmax_offset = element_offset(vector, window, OUT_PIXELS, CHANNELS, VECTOR, CHANNELS_LAST)
            grad_offset = element_offset(vector, window, OUT_PIXELS, CHANNELS, VECTOR, GRAD_CHANNELS_LAST)
            argmax = tl.load(argmax_ptr + out_start + argmax_offset, mask=inside, other=0).to(tl.int32)
            grad = upcast(tl.load(grad_ptr + out_start + grad_offset, mask=inside, other=0.0))
            total += tl.where(inside & (argmax == (a * KERNEL + b)[:, None]), grad, 0.0)
    start = image * (CHANNELS * HEIGHT * WIDTH)
    offset = element_offset(vector, pixel, HEIGHT * WIDTH, CHANNELS, VECTOR, CHANNELS_LAST)
    tl.store(grad_x_ptr + start + offset, total, mask=mask[:, None])


def _vector(channels: int, itemsize: int, channels_last: bool) -> int:
    return launch_settings.vector_width(channels, itemsize) if channels_last else 1


def _argmax_dtype(kernel_size: int) -> torch.dtype:
    return torch.uint8 if kernel_size**2 <= _MAX_BYTE_WINDOW else torch.int32


def _out_size(x: Tensor, kernel_size: int, stride: int, padding: int, ceil_mode: bool) -> tuple[int, int]:
    height, width = (arguments.pooled_length(length, kernel_size, stride, padding, ceil_mode) for length in x.shape[2:])
    return height, width


@operator("fastalex::max_pool_forward")
def _forward(x: Tensor, kernel_size: int, stride: int, padding: int, ceil_mode: bool) -> tuple[Tensor, Tensor]:
    """The pooled tensor, and the argmax of each window in the smallest dtype that holds it."""
    batch, channels, height, width = x.shape
    out_height, out_width = _out_size(x, kernel_size, stride, padding, ceil_mode)
    arguments.check_image(x)
    # With padding there may be more windows than pixels.
    arguments.check_elements("the result", channels * out_height * out_width, " per image")
    x = dense(x)
    y = empty_as(x, (batch, channels, out_height, out_width))
    argmax = empty_as(x, (batch, channels, out_height, out_width), _argmax_dtype(kernel_size))
    if y.numel() == 0:
        return y, argmax
    channels_last = is_channels_last(x)
    vector = _vector(channels, x.element_size(), channels_last)
    with launch_settings.on_device_of(x):
        max_pool_fwd_kernel[(batch * launch_settings.programs(channels // vector * out_height * out_width),)](
            x,
            y,
            argmax,
            KERNEL=kernel_size,
            STRIDE=stride,
            PADDING=padding,
            HEIGHT=height,
            WIDTH=width,
            OUT_HEIGHT=out_height,
            OUT_WIDTH=out_width,
            CHANNELS=channels,
            ITEMS=launch_settings.ITEMS,
            VECTOR=vector,
            CHANNELS_LAST=channels_last,
            **launch_settings.OPTIONS,
        )
    return y, argmax


@_forward.register_fake
def _(x: Tensor, kernel_size: int, stride: int, padding: int, ceil_mode: bool) -> tuple[Tensor, Tensor]:
    shape = (x.shape[0], x.shape[1], *_out_size(x, kernel_size, stride, padding, ceil_mode))
    return empty_as(x, shape), empty_as(x, shape, _argmax_dtype(kernel_size))


@operator("fastalex::max_pool_backward")
def _backward(
    grad: Tensor, argmax: Tensor, kernel_size: int, stride: int, padding: int, height: int, width: int
) -> Tensor:
    """The gradient of x, `height` x `width`, in the layout of `argmax`."""
    grad = dense(grad)
    batch, channels, out_height, out_width = argmax.shape
    grad_x = empty_as(argmax, (batch, channels, height, width), grad.dtype)
    if grad_x.numel() == 0:
        return grad_x
    channels_last = is_channels_last(argmax)
    vector = _vector(channels, grad.element_size(), channels_last)
    with launch_settings.on_device_of(grad):
        max_pool_bwd_kernel[(batch * launch_settings.programs(channels // vector * height * width),)](
            grad,
            argmax,
            grad_x,
            KERNEL=kernel_size,
            STRIDE=stride,
            PADDING=padding,
            HEIGHT=height,
            WIDTH=width,
            OUT_HEIGHT=out_height,
            OUT_WIDTH=out_width,
            CHANNELS=channels,
            ITEMS=launch_settings.ITEMS,
            VECTOR=vector,
            CHANNELS_LAST=channels_last,
            GRAD_CHANNELS_LAST=is_channels_last(grad),
            **launch_settings.OPTIONS,
        )
    return grad_x


@_backward.register_fake
def _(grad: Tensor, argmax: Tensor, kernel_size: int, stride: int, padding: int, height: int, width: int) -> Tensor:
    return empty_as(argmax, (argmax.shape[0], argmax.shape[1], height, width), grad.dtype)


class _MaxPool(torch.autograd.Function):
    """Saves one byte per output element, or x if a byte is too small."""

    @staticmethod
    def forward(ctx, x, kernel_size, stride, padding, ceil_mode):
        y, argmax = _forward(x, kernel_size, stride, padding, ceil_mode)
        ctx.save_for_backward(argmax if argmax.dtype == torch.uint8 else x)
        ctx.options = (kernel_size, stride, padding, ceil_mode)
        ctx.size = tuple(x.shape[2:])
        return y

    @staticmethod
    @no_double_backward("max_pool2d")
    def backward(ctx, grad):
        (saved,) = ctx.saved_tensors
        argmax = saved if saved.dtype == torch.uint8 else _forward(saved, *ctx.options)[1]
        kernel_size, stride, padding, _ = ctx.options
        return _backward(grad, argmax, kernel_size, stride, padding, *ctx.size), None, None, None, None


def max_pool2d(
    x: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    ceil_mode: bool = False,
) -> Tensor:
    """`torch.nn.functional.max_pool2d`, with its arguments and defaults but without `return_indices`.

        y[n, c, i, j] = max of x[n, c, i * stride - padding + a * dilation, j * stride - padding + b * dilation]

    with a and b from 0 to kernel_size - 1, and without positions outside x.

    A NaN in a window wins. The gradient goes to the window's first maximum in reading order, or to its last NaN.

    The Triton kernels are differentiable once: there is no double backward, and no transform of `torch.func` (grad,
    jvp, vmap) works. The native implementation is PyTorch's own operator, which has a double backward. PyTorch's also
    computes windows that are not square, other pairs, and dilation.

    Args:
        x: N x C x H x W or C x H x W; float32, float16, bfloat16 or float64.
        kernel_size: side of the window, at least 1. This and the next three are an int or (vertical, horizontal).
        stride: distance between windows, at least 1; None means kernel_size.
        padding: on all sides, at most half of the window.
        dilation: distance between the elements of a window, at least 1.
        ceil_mode: also use windows that overhang at the right and bottom if they start inside.

    Returns:
        N x C x OH x OW (C x OH x OW) in x's dtype and memory format.

    Raises:
        TypeError, ValueError: an argument is not as described, or no window fits; raised before any computation.
    """
    if isinstance(x, Tensor) and x.dim() == 3:
        return max_pool2d(x.unsqueeze(0), kernel_size, stride, padding, dilation, ceil_mode).squeeze(0)
    arguments.check_tensor("x", x, 4, "N x C x H x W")
    kernel = arguments.pair("kernel_size", kernel_size, 1)
    strides = kernel if stride is None else arguments.pair("stride", stride, 1)
    paddings, dilations = arguments.pair("padding", padding, 0), arguments.pair("dilation", dilation, 1)
    arguments.check_pool(x, kernel, strides, paddings, dilations, ceil_mode)
    chosen = dispatch.implementation_for(x)
    is_square = all(vertical == horizontal for vertical, horizontal in (kernel, strides, paddings))
    if chosen == "triton" and is_square and dilations == (1, 1):
        return _MaxPool.apply(x, kernel[0], strides[0], paddings[0], ceil_mode)
    plain = reference if chosen == "reference" else native
    return plain.max_pool2d(x, kernel, strides, paddings, dilations, ceil_mode=ceil_mode)

"""Max-pooling with windows that may overlap.

    y[i, j] = max of x[i * stride - padding + a, j * stride - padding + b] over a and b in 0 ... kernel_size - 1
    grad_x[h, w] = sum of grad_y[i, j] over the windows whose maximum lies at (h, w)

Source: section 3.4 of Krizhevsky, Sutskever and Hinton (2012), which pools 3 x 3 windows two apart.

Forward notes where each maximum was found, `a * kernel_size + b`, in one byte. Backward gathers: each input position
looks at the few windows that hold it, so nothing is added atomically and the result is the same each time. Windows of
more than 16 x 16 do not fit a byte; then x is kept, and backward looks for the maxima again.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import arguments, dispatch, launch, native, reference
from kernels.autograd import no_double_backward
from kernels.memory_format import dense, empty_as, is_channels_last
from kernels.vector_lanes import locate, wide

_PLACES_IN_A_BYTE = 256


@triton.jit
def element_offset(vector, pixel, PIXELS: tl.constexpr, CHANNELS: tl.constexpr, VECTOR: tl.constexpr,
                   CHANNELS_LAST: tl.constexpr):  # fmt: skip
    """Offsets within an image of an [ITEMS, VECTOR] tile; `pixel` may be any tensor of [ITEMS]."""
    lane = tl.arange(0, VECTOR)[None, :]
    if CHANNELS_LAST:
        return (pixel * CHANNELS + vector * VECTOR)[:, None] + lane
    else:
        return (vector[:, None] * VECTOR + lane) * PIXELS + pixel[:, None]


@triton.jit
def max_pool_fwd_kernel(
    x_ptr, y_ptr, place_ptr, KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr, HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr, OUT_HEIGHT: tl.constexpr, OUT_WIDTH: tl.constexpr, CHANNELS: tl.constexpr,
    ITEMS: tl.constexpr, VECTOR: tl.constexpr, CHANNELS_LAST: tl.constexpr, WRITE_PLACES: tl.constexpr,
):  # fmt: skip
    """y, and where each maximum was found, from x: N x CHANNELS x HEIGHT x WIDTH to N x CHANNELS x OUT_... ."""
    OUT_PIXELS: tl.constexpr = OUT_HEIGHT * OUT_WIDTH
    image, vector, pixel, mask = locate(CHANNELS // VECTOR, OUT_PIXELS, ITEMS, CHANNELS_LAST)
    x_start = x_ptr + image * (CHANNELS * HEIGHT * WIDTH)
    top = pixel // OUT_WIDTH * STRIDE - PADDING
    left = pixel % OUT_WIDTH * STRIDE - PADDING
    if x_ptr.dtype.element_ty == tl.float64:
        best = tl.full([ITEMS, VECTOR], float("-inf"), tl.float64)
    else:
        best = tl.full([ITEMS, VECTOR], float("-inf"), tl.float32)
    place = tl.full([ITEMS, VECTOR], -1, tl.int32)
    for a in tl.static_range(KERNEL):
        for b in tl.static_range(KERNEL):
            row, column = top + a, left + b
            inside = (mask & (row >= 0) & (row < HEIGHT) & (column >= 0) & (column < WIDTH))[:, None]
            offset = element_offset(vector, row * WIDTH + column, HEIGHT * WIDTH, CHANNELS, VECTOR, CHANNELS_LAST)
            value = wide(tl.load(x_start + offset, mask=inside, other=0.0))
            # The first position of a window is taken whatever it holds, so that a window of -inf has a maximum too.
            better = inside & ((value > best) | (value != value) | (place < 0))
            best = tl.where(better, value, best)
            place = tl.where(better, a * KERNEL + b, place)
    start = image * (CHANNELS * OUT_PIXELS)
    offset = element_offset(vector, pixel, OUT_PIXELS, CHANNELS, VECTOR, CHANNELS_LAST)
    tl.store(y_ptr + start + offset, best, mask=mask[:, None])
    if WRITE_PLACES:
        tl.store(place_ptr + start + offset, place.to(place_ptr.dtype.element_ty), mask=mask[:, None])


@triton.jit
def max_pool_bwd_kernel(
    grad_ptr, place_ptr, grad_x_ptr, KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, OUT_HEIGHT: tl.constexpr, OUT_WIDTH: tl.constexpr,
    CHANNELS: tl.constexpr, ITEMS: tl.constexpr, VECTOR: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    GRAD_CHANNELS_LAST: tl.constexpr,
):  # fmt: skip
    """grad_x, in the layout of the places, from grad_y, in its own layout, and the places of the maxima."""
    OUT_PIXELS: tl.constexpr = OUT_HEIGHT * OUT_WIDTH
    WINDOWS: tl.constexpr = (KERNEL + STRIDE - 1) // STRIDE
    image, vector, pixel, mask = locate(CHANNELS // VECTOR, HEIGHT * WIDTH, ITEMS, CHANNELS_LAST)
    out_start = image * (CHANNELS * OUT_PIXELS)
    row = pixel // WIDTH + PADDING
    column = pixel % WIDTH + PADDING
    if grad_ptr.dtype.element_ty == tl.float64:
        total = tl.zeros([ITEMS, VECTOR], tl.float64)
    else:
        total = tl.zeros([ITEMS, VECTOR], tl.float32)
    for up in tl.static_range(WINDOWS):
        for aside in tl.static_range(WINDOWS):
            i, j = row // STRIDE - up, column // STRIDE - aside
            a, b = row - i * STRIDE, column - j * STRIDE
            holds = (i >= 0) & (i < OUT_HEIGHT) & (a < KERNEL) & (j >= 0) & (j < OUT_WIDTH) & (b < KERNEL)
            inside = (mask & holds)[:, None]
            window = i * OUT_WIDTH + j
            place_offset = element_offset(vector, window, OUT_PIXELS, CHANNELS, VECTOR, CHANNELS_LAST)
            grad_offset = element_offset(vector, window, OUT_PIXELS, CHANNELS, VECTOR, GRAD_CHANNELS_LAST)
            place = tl.load(place_ptr + out_start + place_offset, mask=inside, other=0).to(tl.int32)
            grad = wide(tl.load(grad_ptr + out_start + grad_offset, mask=inside, other=0.0))
            total += tl.where(inside & (place == (a * KERNEL + b)[:, None]), grad, 0.0)
    start = image * (CHANNELS * HEIGHT * WIDTH)
    offset = element_offset(vector, pixel, HEIGHT * WIDTH, CHANNELS, VECTOR, CHANNELS_LAST)
    tl.store(grad_x_ptr + start + offset, total, mask=mask[:, None])


def _vector(channels: int, itemsize: int, channels_last: bool) -> int:
    return launch.vector_width(channels, itemsize) if channels_last else 1


def _place_dtype(kernel_size: int) -> torch.dtype:
    return torch.uint8 if kernel_size**2 <= _PLACES_IN_A_BYTE else torch.int32


def _out_size(x: Tensor, kernel_size: int, stride: int, padding: int, ceil_mode: bool) -> tuple[int, int]:
    height, width = (arguments.pooled_length(length, kernel_size, stride, padding, ceil_mode) for length in x.shape[2:])
    return height, width


@torch.library.custom_op("fastalex::max_pool_forward", mutates_args=())
def _forward(x: Tensor, kernel_size: int, stride: int, padding: int, ceil_mode: bool) -> tuple[Tensor, Tensor]:
    """The pooled tensor, and for each of its elements where the maximum was found."""
    batch, channels, height, width = x.shape
    out_height, out_width = _out_size(x, kernel_size, stride, padding, ceil_mode)
    launch.check_image(x)
    # With padding, there may be more windows than pixels.
    launch.check_elements("the result", channels * out_height * out_width, " per image")
    x = dense(x)
    y = empty_as(x, (batch, channels, out_height, out_width))
    places = empty_as(x, (batch, channels, out_height, out_width), _place_dtype(kernel_size))
    if y.numel() == 0:
        return y, places
    channels_last = is_channels_last(x)
    vector = _vector(channels, x.element_size(), channels_last)
    with launch.on(x):
        max_pool_fwd_kernel[(batch * launch.blocks(channels // vector * out_height * out_width),)](
            x,
            y,
            places,
            KERNEL=kernel_size,
            STRIDE=stride,
            PADDING=padding,
            HEIGHT=height,
            WIDTH=width,
            OUT_HEIGHT=out_height,
            OUT_WIDTH=out_width,
            CHANNELS=channels,
            ITEMS=launch.ITEMS,
            VECTOR=vector,
            CHANNELS_LAST=channels_last,
            WRITE_PLACES=True,
            **launch.OPTIONS,
        )
    return y, places


@_forward.register_fake
def _(x: Tensor, kernel_size: int, stride: int, padding: int, ceil_mode: bool) -> tuple[Tensor, Tensor]:
    shape = (x.shape[0], x.shape[1], *_out_size(x, kernel_size, stride, padding, ceil_mode))
    return empty_as(x, shape), empty_as(x, shape, _place_dtype(kernel_size))


@torch.library.custom_op("fastalex::max_pool_backward", mutates_args=())
def _backward(
    grad: Tensor, places: Tensor, kernel_size: int, stride: int, padding: int, height: int, width: int
) -> Tensor:
    """The gradient of x, `height` x `width`, in the layout of `places`."""
    grad = dense(grad)
    batch, channels, out_height, out_width = places.shape
    grad_x = empty_as(places, (batch, channels, height, width), grad.dtype)
    if grad_x.numel() == 0:
        return grad_x
    channels_last = is_channels_last(places)
    vector = _vector(channels, grad.element_size(), channels_last)
    with launch.on(grad):
        max_pool_bwd_kernel[(batch * launch.blocks(channels // vector * height * width),)](
            grad,
            places,
            grad_x,
            KERNEL=kernel_size,
            STRIDE=stride,
            PADDING=padding,
            HEIGHT=height,
            WIDTH=width,
            OUT_HEIGHT=out_height,
            OUT_WIDTH=out_width,
            CHANNELS=channels,
            ITEMS=launch.ITEMS,
            VECTOR=vector,
            CHANNELS_LAST=channels_last,
            GRAD_CHANNELS_LAST=is_channels_last(grad),
            **launch.OPTIONS,
        )
    return grad_x


@_backward.register_fake
def _(grad: Tensor, places: Tensor, kernel_size: int, stride: int, padding: int, height: int, width: int) -> Tensor:
    return empty_as(places, (places.shape[0], places.shape[1], height, width), grad.dtype)


class _MaxPool(torch.autograd.Function):
    """Keeps one byte per output element, or x where a byte is too small."""

    @staticmethod
    def forward(ctx, x, kernel_size, stride, padding, ceil_mode):
        y, places = _forward(x, kernel_size, stride, padding, ceil_mode)
        ctx.save_for_backward(places if places.dtype == torch.uint8 else x)
        ctx.options = (kernel_size, stride, padding, ceil_mode)
        ctx.size = tuple(x.shape[2:])
        return y

    @staticmethod
    @no_double_backward("max_pool2d")
    def backward(ctx, grad):
        (places,) = ctx.saved_tensors
        if places.dtype != torch.uint8:
            _, places = _forward(places, *ctx.options)
        kernel_size, stride, padding, _ = ctx.options
        return _backward(grad, places, kernel_size, stride, padding, *ctx.size), None, None, None, None


def max_pool2d(
    x: Tensor, kernel_size: int = 3, stride: int = 2, padding: int = 0, *, ceil_mode: bool = False
) -> Tensor:
    """The largest value of each window.

        y[n, c, i, j] = max of x[n, c, i * stride - padding + a, j * stride - padding + b], a and b from 0 to
        kernel_size - 1, positions outside x left out

    A NaN in a window wins. The gradient goes to the window's first maximum in reading order, or its last NaN.

    Triton's kernels are differentiable once: there is no double backward, and no transform of `torch.func` (grad, jvp,
    vmap) takes them. The native form is PyTorch's own operator and has both.

    Args:
        x: N x C x H x W; float32, float16, bfloat16 or float64.
        kernel_size: side of the window, at least 1.
        stride: distance between windows, at least 1.
        padding: at most half of kernel_size, on all sides.
        ceil_mode: also take windows that overhang right and bottom, as long as they start inside.

    Returns:
        N x C x OH x OW in x's dtype and memory format.

    Raises:
        TypeError, ValueError: an argument is not as described, or no window fits; raised before anything is computed.
    """
    arguments.check_tensor("x", x, 4, "N x C x H x W")
    arguments.check_pool(x, kernel_size, stride, padding, ceil_mode)
    chosen = dispatch.implementation_for(x)
    if chosen == "triton":
        return _MaxPool.apply(x, kernel_size, stride, padding, ceil_mode)
    plain = reference if chosen == "reference" else native
    return plain.max_pool2d(x, kernel_size, stride, padding, ceil_mode=ceil_mode)

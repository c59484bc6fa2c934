"""Max-pooling with windows that may overlap.

    y[i, j] = max of x[i * stride - padding + a, j * stride - padding + b] over a and b in 0 ... kernel_size - 1
    grad_x[h, w] = sum of grad_y[i, j] over the windows whose maximum lies at (h, w)

Source: section 3.4 of Krizhevsky, Sutskever and Hinton (2012), which pools 3 x 3 windows two apart.

Forward stores the argmax of each window, its maximum's position `a * kernel_size + b` in the window, in one byte.
Backward computes blocks of stride x stride pixels of x. It loads each window that touches a block once and adds its
gradient to the pixel of its maximum. All pixels of a block lie at known positions of these windows. There are no atomic
additions, so the result is the same each time. For large strides, a block is one pixel.

The argmax of windows larger than 16 x 16 does not fit a byte; then x is saved instead, and backward searches for the
maxima again.
"""

# A tuple that grows in a loop changes its type in each iteration.
# mypy: disable-error-code="assignment"

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels import arguments, dispatch, launch_settings, native, reference, tuned
from kernels.autograd import no_double_backward, operator
from kernels.dispatch import tl, triton
from kernels.memory_format import dense, empty_as, is_channels_last
from kernels.vector_lanes import element_offset, load_tile, locate, upcast, zero_accumulator

_MAX_BYTE_WINDOW = 256
# The kernels unroll their loops for windows of at most this side. The time to compile grows with the window's area.
_MAX_UNROLLED = 5
# Backward computes blocks of stride x stride pixels up to this stride. The totals of larger ones take many registers.
_MAX_BLOCK = 3


@triton.jit
def update_maximum(
    best, argmax, x_image_ptr, vector, row, column, position, mask, HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
    CHANNELS: tl.constexpr, VECTOR: tl.constexpr, CHANNELS_LAST: tl.constexpr,
):  # fmt: skip
    """Each item's maximum and argmax after its pixel (row, column) of x, which is at `position` of its window."""
    inside = (mask & (row >= 0) & (row < HEIGHT) & (column >= 0) & (column < WIDTH))[:, None]
    offset = element_offset(vector, row * WIDTH + column, HEIGHT * WIDTH, CHANNELS, VECTOR, CHANNELS_LAST)
    value = upcast(tl.load(x_image_ptr + offset, mask=inside, other=0.0))
    # NaN wins. The first position is always taken, so that a window of -inf has a maximum too.
    better = inside & ((value > best) | (value != value) | (argmax < 0))
    return tl.where(better, value, best), tl.where(better, position, argmax)


@triton.jit
def max_pool_fwd_kernel(
    x_ptr, y_ptr, argmax_ptr, KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr, HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr, OUT_HEIGHT: tl.constexpr, OUT_WIDTH: tl.constexpr, CHANNELS: tl.constexpr,
    ITEMS: tl.constexpr, VECTOR: tl.constexpr, CHANNELS_LAST: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """y and argmax, N x CHANNELS x OUT_HEIGHT x OUT_WIDTH, from x, N x CHANNELS x HEIGHT x WIDTH."""
    OUT_PIXELS: tl.constexpr = OUT_HEIGHT * OUT_WIDTH
    # An item is one pixel of y; its window starts at (top, left).
    image, vector, pixel, mask = locate(CHANNELS // VECTOR, OUT_PIXELS, ITEMS, CHANNELS_LAST)
    x_start = x_ptr + image * (CHANNELS * HEIGHT * WIDTH)
    top = pixel // OUT_WIDTH * STRIDE - PADDING
    left = pixel % OUT_WIDTH * STRIDE - PADDING
    best = zero_accumulator(x_ptr, ITEMS, VECTOR) + float("-inf")
    argmax = tl.full([ITEMS, VECTOR], -1, tl.int32)
    if UNROLL:
        for position in tl.static_range(KERNEL * KERNEL):
            best, argmax = update_maximum(
                best, argmax, x_start, vector, top + position // KERNEL, left + position % KERNEL, position, mask,
                HEIGHT, WIDTH, CHANNELS, VECTOR, CHANNELS_LAST,
            )  # fmt: skip
    else:
        for position in range(KERNEL * KERNEL):
            best, argmax = update_maximum(
                best, argmax, x_start, vector, top + position // KERNEL, left + position % KERNEL, position, mask,
                HEIGHT, WIDTH, CHANNELS, VECTOR, CHANNELS_LAST,
            )  # fmt: skip
    start = image * (CHANNELS * OUT_PIXELS)
    offset = element_offset(vector, pixel, OUT_PIXELS, CHANNELS, VECTOR, CHANNELS_LAST)
    tl.store(y_ptr + start + offset, best, mask=mask[:, None])
    tl.store(argmax_ptr + start + offset, argmax.to(argmax_ptr.dtype.element_ty), mask=mask[:, None])


@triton.jit
def nearest_window(block, BLOCK: tl.constexpr, STRIDE: tl.constexpr):
    """Along one side, the last window that starts at or before `block`, and the block's position in that window."""
    if BLOCK == STRIDE:
        # A window starts with each block. All positions are constants, which the compiler sees only like this.
        return block, tl.zeros_like(block)
    else:
        return block * BLOCK // STRIDE, block * BLOCK % STRIDE


@triton.jit
def position_in_window(a, b, KERNEL: tl.constexpr):
    """The position (a, b) of a window as its argmax counts it; -1 outside of the window."""
    return tl.where((a < KERNEL) & (b < KERNEL), a * KERNEL + b, -1)


@triton.jit
def add_window_gradient(
    totals, grad_image_ptr, argmax_image_ptr, vector, i, j, a, b, mask, KERNEL: tl.constexpr, OUT_HEIGHT: tl.constexpr,
    OUT_WIDTH: tl.constexpr, CHANNELS: tl.constexpr, ITEMS: tl.constexpr, VECTOR: tl.constexpr, BLOCK: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, GRAD_CHANNELS_LAST: tl.constexpr,
):  # fmt: skip
    """Add the gradient of each item's window (i, j) to the total of the pixel where the window has its maximum.

    `totals` has one tile per pixel of the item's block, which starts at position (a, b) of the window.
    """
    OUT_PIXELS: tl.constexpr = OUT_HEIGHT * OUT_WIDTH
    exists = mask & (i >= 0) & (i < OUT_HEIGHT) & (j >= 0) & (j < OUT_WIDTH)
    inside = exists & (a < KERNEL) & (b < KERNEL)
    window = i * OUT_WIDTH + j
    argmax = load_tile(argmax_image_ptr, vector, window, inside, OUT_PIXELS, CHANNELS, VECTOR, CHANNELS_LAST)
    grad = load_tile(grad_image_ptr, vector, window, inside, OUT_PIXELS, CHANNELS, VECTOR, GRAD_CHANNELS_LAST)
    next_totals = ()
    for pixel in tl.static_range(BLOCK * BLOCK):
        position = position_in_window(a + pixel // BLOCK, b + pixel % BLOCK, KERNEL)[:, None]
        next_totals += (totals[pixel] + tl.where(argmax == position, grad, 0.0),)
    return next_totals


@triton.jit
def block_gradient(
    grad_image_ptr, argmax_image_ptr, vector, block_row, block_column, mask, KERNEL: tl.constexpr, STRIDE: tl.constexpr,
    OUT_HEIGHT: tl.constexpr, OUT_WIDTH: tl.constexpr, CHANNELS: tl.constexpr, ITEMS: tl.constexpr,
    VECTOR: tl.constexpr, BLOCK: tl.constexpr, CHANNELS_LAST: tl.constexpr, GRAD_CHANNELS_LAST: tl.constexpr,
    UNROLL: tl.constexpr,
):  # fmt: skip
    """The gradients of each item's block of BLOCK x BLOCK pixels: one tile per pixel, in reading order.

    Loads each window that touches the block once, and adds its gradient to the pixel that it belongs to.
    """
    WINDOWS: tl.constexpr = (KERNEL + STRIDE - 1) // STRIDE
    i, a = nearest_window(block_row, BLOCK, STRIDE)
    j, b = nearest_window(block_column, BLOCK, STRIDE)
    totals = ()
    for _ in tl.static_range(BLOCK * BLOCK):
        totals += (zero_accumulator(grad_image_ptr, ITEMS, VECTOR),)
    if UNROLL:
        for window in tl.static_range(WINDOWS * WINDOWS):
            up, left = window // WINDOWS, window % WINDOWS
            totals = add_window_gradient(
                totals, grad_image_ptr, argmax_image_ptr, vector, i - up, j - left, a + up * STRIDE, b + left * STRIDE,
                mask, KERNEL, OUT_HEIGHT, OUT_WIDTH, CHANNELS, ITEMS, VECTOR, BLOCK, CHANNELS_LAST, GRAD_CHANNELS_LAST,
            )  # fmt: skip
    else:
        for window in range(WINDOWS * WINDOWS):
            up, left = window // WINDOWS, window % WINDOWS
            totals = add_window_gradient(
                totals, grad_image_ptr, argmax_image_ptr, vector, i - up, j - left, a + up * STRIDE, b + left * STRIDE,
                mask, KERNEL, OUT_HEIGHT, OUT_WIDTH, CHANNELS, ITEMS, VECTOR, BLOCK, CHANNELS_LAST, GRAD_CHANNELS_LAST,
            )  # fmt: skip
    return totals


@triton.jit
def max_pool_bwd_kernel(
    grad_ptr, argmax_ptr, grad_x_ptr, KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, OUT_HEIGHT: tl.constexpr, OUT_WIDTH: tl.constexpr,
    CHANNELS: tl.constexpr, ITEMS: tl.constexpr, VECTOR: tl.constexpr, BLOCK: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, GRAD_CHANNELS_LAST: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """grad_x in the layout of argmax, from argmax and from grad_y in a layout of its own."""
    # The blocks that contain pixels of x. Rows and columns of blocks count from the start of the padding.
    FIRST: tl.constexpr = PADDING // BLOCK
    DOWN: tl.constexpr = (PADDING + HEIGHT + BLOCK - 1) // BLOCK - FIRST
    ACROSS: tl.constexpr = (PADDING + WIDTH + BLOCK - 1) // BLOCK - FIRST
    # An item is a block of BLOCK x BLOCK pixels of x.
    image, vector, block, mask = locate(CHANNELS // VECTOR, DOWN * ACROSS, ITEMS, CHANNELS_LAST)
    block_row, block_column = FIRST + block // ACROSS, FIRST + block % ACROSS
    out_start = image * (CHANNELS * OUT_HEIGHT * OUT_WIDTH)
    grads = block_gradient(
        grad_ptr + out_start, argmax_ptr + out_start, vector, block_row, block_column, mask, KERNEL, STRIDE, OUT_HEIGHT,
        OUT_WIDTH, CHANNELS, ITEMS, VECTOR, BLOCK, CHANNELS_LAST, GRAD_CHANNELS_LAST, UNROLL,
    )  # fmt: skip
    start = image * (CHANNELS * HEIGHT * WIDTH)
    for pixel in tl.static_range(BLOCK * BLOCK):
        row = block_row * BLOCK + pixel // BLOCK - PADDING
        column = block_column * BLOCK + pixel % BLOCK - PADDING
        inside = mask & (row >= 0) & (row < HEIGHT) & (column >= 0) & (column < WIDTH)
        offset = element_offset(vector, row * WIDTH + column, HEIGHT * WIDTH, CHANNELS, VECTOR, CHANNELS_LAST)
        tl.store(grad_x_ptr + start + offset, grads[pixel], mask=inside[:, None])


def block_length(stride: int, largest: int = _MAX_BLOCK) -> int:
    """Side of the blocks of pixels that a backward kernel computes: the stride, or 1 if that is above `largest`."""
    return stride if stride <= largest else 1


def block_count(length: int, block: int, padding: int = 0) -> int:
    """Number of blocks of side `block` along a side of x that contain some of it, counted from the padding's start."""
    return triton.cdiv(padding + length, block) - padding // block


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
    launch = tuned.launch_of("max_pool_fwd_kernel", x)
    with launch_settings.on_device_of(x):
        max_pool_fwd_kernel[(batch * launch.programs(channels // vector * out_height * out_width),)](
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
            VECTOR=vector,
            CHANNELS_LAST=channels_last,
            UNROLL=kernel_size <= _MAX_UNROLLED,
            **launch.options,
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
    block = block_length(stride)
    blocks = block_count(height, block, padding) * block_count(width, block, padding)
    launch = tuned.launch_of("max_pool_bwd_kernel", grad_x)
    with launch_settings.on_device_of(grad):
        max_pool_bwd_kernel[(batch * launch.programs(channels // vector * blocks),)](
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
            VECTOR=vector,
            BLOCK=block,
            CHANNELS_LAST=channels_last,
            GRAD_CHANNELS_LAST=is_channels_last(grad),
            UNROLL=kernel_size <= _MAX_UNROLLED,
            **launch.options,
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

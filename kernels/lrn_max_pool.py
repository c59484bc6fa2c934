"""Bias, ReLU, local response normalisation and max-pooling after a convolution, in one pass over its raw output.

    relu="before": pool(norm(relu(x + bias)))         the paper and Caffe
    relu="after":  relu(pool(norm(x + bias)))         the first layer of the 2012 source

The formulas are those of `kernels.lrn` and `kernels.max_pool`.

Source: sections 3.1, 3.3 and 3.4 of Krizhevsky, Sutskever and Hinton (2012).

Forward reads the raw output from memory once and writes only the pooled result. Pixels that several windows contain are
normalised once per window, from cache, which costs less than writing them to memory. Backward saves the raw output and
the bias. It computes the argmax of each window again (one byte each), then gathers the gradient of each pixel and its
channel neighbours from the windows that contain them.
"""

# A tuple that grows in a loop changes its type in each iteration.
# mypy: disable-error-code="assignment, var-annotated"

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kernels import arguments, dispatch, launch_settings, native, reference
from kernels.autograd import no_double_backward, operator
from kernels.channel_sum import channel_sum
from kernels.dispatch import tl, triton
from kernels.lrn import halo, normalise_lanes, normalise_lanes_backward
from kernels.memory_format import dense, empty_as, is_channels_last
from kernels.vector_lanes import load_lanes, load_neighbours, locate, store_lanes

# Stored in place of the argmax of a window whose result the ReLU sets to 0.
_NO_MAXIMUM = tl.constexpr(255)
_MAX_WINDOW = 255


@triton.jit
def load_biased(
    image_ptr, bias_lanes, vector, pixel, mask, RELU_BEFORE: tl.constexpr, HAS_BIAS: tl.constexpr, HALO: tl.constexpr,
    GROUP_VECTORS: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr, ITEMS: tl.constexpr,
    VECTOR: tl.constexpr, CHANNELS_LAST: tl.constexpr,
):  # fmt: skip
    """Upcast lanes of x, with bias and ReLU, of each item and its channel neighbours; zero outside the group."""
    x_lanes = load_neighbours(
        image_ptr, vector, pixel, mask, HALO, GROUP_VECTORS, PIXELS, CHANNELS, ITEMS, VECTOR, CHANNELS_LAST
    )
    lanes = ()
    for lane in tl.static_range((2 * HALO + 1) * VECTOR):
        value = x_lanes[lane]
        if HAS_BIAS:
            value = value + bias_lanes[lane]
        if RELU_BEFORE:
            # This comparison keeps NaN.
            value = tl.where(value <= 0.0, 0.0, value)
        lanes += (value,)
    return lanes


@triton.jit
def load_bias(
    bias_ptr, vector, mask, HAS_BIAS: tl.constexpr, HALO: tl.constexpr, GROUP_VECTORS: tl.constexpr,
    CHANNELS: tl.constexpr, ITEMS: tl.constexpr, VECTOR: tl.constexpr, CHANNELS_LAST: tl.constexpr,
):  # fmt: skip
    """Upcast lanes of the bias of each item's channels and their neighbours; zero outside the group."""
    if HAS_BIAS:
        # Loaded the way x is. Vectors of 16 bytes would, in NCHW, put lanes into other threads than those that add them
        # to x; moving them through shared memory takes so many registers that some spill.
        return load_neighbours(
            bias_ptr, vector, vector * 0, mask, HALO, GROUP_VECTORS, 1, CHANNELS, ITEMS, VECTOR, CHANNELS_LAST
        )
    else:
        return ()


@triton.jit
def update_maximum(best, argmax, values, POSITION: tl.constexpr, VECTOR: tl.constexpr):
    """The maximum and its position, lane by lane, after `values` at `POSITION` of the window. A NaN wins."""
    next_best = ()
    next_argmax = ()
    for lane in tl.static_range(VECTOR):
        better = (values[lane] > best[lane]) | (values[lane] != values[lane])
        next_best += (tl.where(better, values[lane], best[lane]),)
        next_argmax += (tl.where(better, POSITION, argmax[lane]),)
    return next_best, next_argmax


@triton.jit
def lrn_pool_fwd_kernel(
    x_ptr, bias_ptr, out_ptr, SIZE: tl.constexpr, ALPHA: tl.constexpr, BETA: tl.constexpr, K: tl.constexpr,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, OUT_HEIGHT: tl.constexpr,
    OUT_WIDTH: tl.constexpr, CHANNELS: tl.constexpr, GROUP_CHANNELS: tl.constexpr, ITEMS: tl.constexpr,
    VECTOR: tl.constexpr, HALO: tl.constexpr, CHANNELS_LAST: tl.constexpr, HAS_BIAS: tl.constexpr,
    RELU_BEFORE: tl.constexpr, RELU_AFTER: tl.constexpr, WRITE_ARGMAX: tl.constexpr,
):  # fmt: skip
    """Pooled values from raw x; with WRITE_ARGMAX each maximum's position in its window, 255 where the ReLU is off."""
    OUT_PIXELS: tl.constexpr = OUT_HEIGHT * OUT_WIDTH
    PIXELS: tl.constexpr = HEIGHT * WIDTH
    GROUP_VECTORS: tl.constexpr = GROUP_CHANNELS // VECTOR
    # An item is one pixel of the result; its window starts at `corner`.
    image, vector, pixel, mask = locate(CHANNELS // VECTOR, OUT_PIXELS, ITEMS, CHANNELS_LAST)
    x_start = x_ptr + image * (CHANNELS * PIXELS)
    corner = pixel // OUT_WIDTH * STRIDE * WIDTH + pixel % OUT_WIDTH * STRIDE
    bias_lanes = load_bias(
        bias_ptr, vector, mask, HAS_BIAS, HALO, GROUP_VECTORS, CHANNELS, ITEMS, VECTOR, CHANNELS_LAST
    )
    # Normalise each pixel of the window and keep the maximum.
    best = ()
    argmax = ()
    for a in tl.static_range(KERNEL):
        for b in tl.static_range(KERNEL):
            x_lanes = load_biased(
                x_start, bias_lanes, vector, corner + a * WIDTH + b, mask, RELU_BEFORE, HAS_BIAS, HALO, GROUP_VECTORS,
                PIXELS, CHANNELS, ITEMS, VECTOR, CHANNELS_LAST,
            )  # fmt: skip
            values = normalise_lanes(x_lanes, HALO, VECTOR, SIZE, ALPHA, BETA, K)
            if a == 0 and b == 0:
                best = values
                for _ in tl.static_range(VECTOR):
                    argmax += (tl.zeros([ITEMS], tl.int32),)
            else:
                best, argmax = update_maximum(best, argmax, values, a * KERNEL + b, VECTOR)
    # Apply the ReLU and write what is asked for.
    results = ()
    for lane in tl.static_range(VECTOR):
        off = best[lane] <= 0.0
        if WRITE_ARGMAX:
            position = argmax[lane]
            if RELU_AFTER:
                position = tl.where(off, _NO_MAXIMUM, position)
            results += (position.to(tl.uint8),)
        else:
            value = best[lane]
            if RELU_AFTER:
                value = tl.where(off, 0.0, value)
            results += (value,)
    out_start = out_ptr + image * (CHANNELS * OUT_PIXELS)
    store_lanes(out_start, results, vector, pixel, mask, OUT_PIXELS, CHANNELS, ITEMS, VECTOR, CHANNELS_LAST)


@triton.jit
def add_window_gradient(
    totals, grad_image_ptr, argmax_image_ptr, vector, window, contains, position, GRAD_HALO: tl.constexpr,
    GROUP_VECTORS: tl.constexpr, OUT_PIXELS: tl.constexpr, CHANNELS: tl.constexpr, ITEMS: tl.constexpr,
    VECTOR: tl.constexpr, CHANNELS_LAST: tl.constexpr, GRAD_CHANNELS_LAST: tl.constexpr,
):  # fmt: skip
    """Add the gradient of each item's `window` to the lanes of `totals` whose maximum lies at the item.

    `contains` says whether that window exists and contains the item, `position` where in the window the item lies.
    """
    grad_lanes = load_neighbours(
        grad_image_ptr, vector, window, contains, GRAD_HALO, GROUP_VECTORS, OUT_PIXELS, CHANNELS, ITEMS, VECTOR,
        GRAD_CHANNELS_LAST,
    )  # fmt: skip
    next_totals = ()
    for neighbour in tl.static_range(2 * GRAD_HALO + 1):
        inside = (
            contains
            & (vector % GROUP_VECTORS + (neighbour - GRAD_HALO) >= 0)
            & (vector % GROUP_VECTORS + (neighbour - GRAD_HALO) < GROUP_VECTORS)
        )
        argmax = load_lanes(
            argmax_image_ptr, vector + (neighbour - GRAD_HALO), window, inside, OUT_PIXELS, CHANNELS, ITEMS, VECTOR,
            CHANNELS_LAST,
        )  # fmt: skip
        for lane in tl.static_range(VECTOR):
            is_maximum = inside & (argmax[lane].to(tl.int32) == position)
            gathered = tl.where(is_maximum, grad_lanes[neighbour * VECTOR + lane], 0.0)
            next_totals += (totals[neighbour * VECTOR + lane] + gathered,)
    return next_totals


@triton.jit
def lrn_pool_bwd_kernel(
    grad_ptr, argmax_ptr, x_ptr, bias_ptr, grad_x_ptr, SIZE: tl.constexpr, ALPHA: tl.constexpr, BETA: tl.constexpr,
    K: tl.constexpr, KERNEL: tl.constexpr, STRIDE: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
    OUT_HEIGHT: tl.constexpr, OUT_WIDTH: tl.constexpr, CHANNELS: tl.constexpr, GROUP_CHANNELS: tl.constexpr,
    ITEMS: tl.constexpr, VECTOR: tl.constexpr, HALO: tl.constexpr, GRAD_HALO: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, GRAD_CHANNELS_LAST: tl.constexpr, HAS_BIAS: tl.constexpr, RELU_BEFORE: tl.constexpr,
):  # fmt: skip
    """grad_x in x's layout, from raw x, the argmax and the pooled result's gradient in a layout of its own."""
    OUT_PIXELS: tl.constexpr = OUT_HEIGHT * OUT_WIDTH
    PIXELS: tl.constexpr = HEIGHT * WIDTH
    GROUP_VECTORS: tl.constexpr = GROUP_CHANNELS // VECTOR
    WINDOWS: tl.constexpr = (KERNEL + STRIDE - 1) // STRIDE
    # An item is one pixel of x.
    image, vector, pixel, mask = locate(CHANNELS // VECTOR, PIXELS, ITEMS, CHANNELS_LAST)
    start = image * (CHANNELS * PIXELS)
    out_start = image * (CHANNELS * OUT_PIXELS)
    bias_lanes = load_bias(
        bias_ptr, vector, mask, HAS_BIAS, HALO, GROUP_VECTORS, CHANNELS, ITEMS, VECTOR, CHANNELS_LAST
    )
    x_lanes = load_biased(
        x_ptr + start, bias_lanes, vector, pixel, mask, RELU_BEFORE, HAS_BIAS, HALO, GROUP_VECTORS, PIXELS, CHANNELS,
        ITEMS, VECTOR, CHANNELS_LAST,
    )  # fmt: skip
    # Gather the gradient of the normalised pixel and its channel neighbours from the windows that contain the pixel.
    row, column = pixel // WIDTH, pixel % WIDTH
    totals = ()
    for _ in tl.static_range((2 * GRAD_HALO + 1) * VECTOR):
        totals += (tl.zeros_like(x_lanes[0]),)
    for rows_up in tl.static_range(WINDOWS):
        for columns_left in tl.static_range(WINDOWS):
            i, j = row // STRIDE - rows_up, column // STRIDE - columns_left
            a, b = row - i * STRIDE, column - j * STRIDE
            contains = (i >= 0) & (i < OUT_HEIGHT) & (a < KERNEL) & (j >= 0) & (j < OUT_WIDTH) & (b < KERNEL) & mask
            totals = add_window_gradient(
                totals, grad_ptr + out_start, argmax_ptr + out_start, vector, i * OUT_WIDTH + j, contains,
                a * KERNEL + b, GRAD_HALO, GROUP_VECTORS, OUT_PIXELS, CHANNELS, ITEMS, VECTOR, CHANNELS_LAST,
                GRAD_CHANNELS_LAST,
            )  # fmt: skip
    # Back through the normalisation and the ReLU.
    lanes = normalise_lanes_backward(totals, x_lanes, GRAD_HALO, HALO, VECTOR, SIZE, ALPHA, BETA, K)
    grad_x_lanes = ()
    for lane in tl.static_range(VECTOR):
        value = lanes[lane]
        if RELU_BEFORE:
            value = tl.where(x_lanes[HALO * VECTOR + lane] <= 0.0, 0.0, value)
        grad_x_lanes += (value,)
    store_lanes(grad_x_ptr + start, grad_x_lanes, vector, pixel, mask, PIXELS, CHANNELS, ITEMS, VECTOR, CHANNELS_LAST)


def _empty_pooled(x: Tensor, kernel_size: int, stride: int, dtype: torch.dtype | None = None) -> Tensor:
    height, width = ((length - kernel_size) // stride + 1 for length in x.shape[2:])
    return empty_as(x, (x.shape[0], x.shape[1], height, width), dtype)


def _constants(
    x: Tensor, pooled: Tensor, bias: Tensor | None, size: int, alpha: float, beta: float, k: float, groups: int,
    kernel_size: int, stride: int, relu: str | None,
) -> dict[str, Any]:  # fmt: skip
    """The constants and launch options that both kernels have in common."""
    channels, height, width = x.shape[1:]
    return launch_settings.OPTIONS | {
        "SIZE": size, "ALPHA": alpha, "BETA": beta, "K": k, "KERNEL": kernel_size, "STRIDE": stride,
        "HEIGHT": height, "WIDTH": width, "OUT_HEIGHT": pooled.shape[2], "OUT_WIDTH": pooled.shape[3],
        "CHANNELS": channels, "GROUP_CHANNELS": channels // groups, "ITEMS": launch_settings.ITEMS,
        "VECTOR": launch_settings.vector_width(channels // groups, x.element_size()),
        "CHANNELS_LAST": is_channels_last(x), "HAS_BIAS": bias is not None, "RELU_BEFORE": relu == "before",
    }  # fmt: skip


def _run_forward(x: Tensor, bias: Tensor | None, out: Tensor, *options) -> None:
    """Fill `out` with the pooled values, or with the argmax of each window if its dtype is uint8."""
    if out.numel() == 0:
        return
    size, relu, constants = options[0], options[-1], _constants(x, out, bias, *options)
    vectors = out.shape[1] // constants["VECTOR"]
    with launch_settings.on_device_of(x):
        lrn_pool_fwd_kernel[(out.shape[0] * launch_settings.programs(vectors * out.shape[2] * out.shape[3]),)](
            x, x if bias is None else bias, out, HALO=halo(size // 2, constants["VECTOR"]), RELU_AFTER=relu == "after",
            WRITE_ARGMAX=out.dtype == torch.uint8, **constants,
        )  # fmt: skip


@operator("fastalex::lrn_pool_forward")
def _forward(
    x: Tensor, bias: Tensor | None, size: int, alpha: float, beta: float, k: float, groups: int, kernel_size: int,
    stride: int, relu: str | None,
) -> Tensor:  # fmt: skip
    arguments.check_image(x)
    x = dense(x)
    y = _empty_pooled(x, kernel_size, stride)
    _run_forward(x, _contiguous(bias), y, size, alpha, beta, k, groups, kernel_size, stride, relu)
    return y


@_forward.register_fake
def _(
    x: Tensor, bias: Tensor | None, size: int, alpha: float, beta: float, k: float, groups: int, kernel_size: int,
    stride: int, relu: str | None,
) -> Tensor:  # fmt: skip
    return _empty_pooled(x, kernel_size, stride)


@operator("fastalex::lrn_pool_backward")
def _backward(
    grad: Tensor, x: Tensor, bias: Tensor | None, size: int, alpha: float, beta: float, k: float, groups: int,
    kernel_size: int, stride: int, relu: str | None, needs_bias: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The gradients of x and of the bias; the latter is empty if it is not needed."""
    x, grad, bias = dense(x), dense(grad), _contiguous(bias)
    grad_x = empty_as(x)
    if x.numel() == 0:
        return grad_x, _bias_gradient(grad_x, bias, needs_bias)
    options = (size, alpha, beta, k, groups, kernel_size, stride, relu)
    argmax = _empty_pooled(x, kernel_size, stride, torch.uint8)
    _run_forward(x, bias, argmax, *options)
    batch, channels, height, width = x.shape
    constants = _constants(x, argmax, bias, *options)
    vector = constants["VECTOR"]
    with launch_settings.on_device_of(x):
        lrn_pool_bwd_kernel[(batch * launch_settings.programs(channels // vector * height * width),)](
            grad, argmax, x, x if bias is None else bias, grad_x, HALO=halo(size - 1, vector),
            GRAD_HALO=halo(size // 2, vector), GRAD_CHANNELS_LAST=is_channels_last(grad), **constants,
        )  # fmt: skip
    return grad_x, _bias_gradient(grad_x, bias, needs_bias)


@_backward.register_fake
def _(
    grad: Tensor, x: Tensor, bias: Tensor | None, size: int, alpha: float, beta: float, k: float, groups: int,
    kernel_size: int, stride: int, relu: str | None, needs_bias: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    dtype = x.dtype if bias is None else bias.dtype
    return empty_as(x), torch.empty(x.shape[1] if needs_bias else 0, dtype=dtype, device=x.device)


def _bias_gradient(grad_x: Tensor, bias: Tensor | None, needed: bool) -> Tensor:
    if bias is None or not needed:
        return torch.empty(0, dtype=grad_x.dtype if bias is None else bias.dtype, device=grad_x.device)
    if is_channels_last(grad_x) and grad_x.numel():
        return channel_sum(grad_x, bias.dtype)
    # PyTorch, too, sums in a fixed order.
    accumulator = torch.float64 if grad_x.dtype == torch.float64 else torch.float32
    return grad_x.sum((0, 2, 3), dtype=accumulator).to(bias.dtype)


def _contiguous(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.contiguous()


class _LrnMaxPool(torch.autograd.Function):
    """Saves the raw x and the bias."""

    @staticmethod
    def forward(ctx, x, bias, *options):
        ctx.save_for_backward(x, bias)
        ctx.options = options
        return _forward(x, bias, *options)

    @staticmethod
    @no_double_backward("lrn_max_pool2d")
    def backward(ctx, grad):
        x, bias = ctx.saved_tensors
        needs_bias = bias is not None and ctx.needs_input_grad[1]
        grad_x, grad_bias = _backward(grad, x, bias, *ctx.options, needs_bias)
        return grad_x, grad_bias if needs_bias else None, *([None] * len(ctx.options))


def lrn_max_pool2d(
    x: Tensor,
    size: int = 5,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 2.0,
    *,
    groups: int = 1,
    kernel_size: int = 3,
    stride: int = 2,
    bias: Tensor | None = None,
    relu: str | None = None,
) -> Tensor:
    """`max_pool2d(local_response_norm(x + bias))` with a ReLU before it, after it, or none.

    Differentiable once: there is no double backward, and no transform of `torch.func` (grad, jvp, vmap) works. Under
    `kernels.using("reference")` both work.

    Args:
        x: N x C x H x W; float32, float16, bfloat16 or float64. Half precision is computed in fp32.
        size, alpha, beta, k, groups: as in `local_response_norm`.
        kernel_size, stride: as in `max_pool2d`, without padding.
        bias: C values, added to x first; any floating dtype.
        relu: None, "before" the normalisation, or "after" the pooling.

    Returns:
        N x C x OH x OW in x's dtype and memory format.

    Raises:
        TypeError, ValueError: an argument is not as described, or no window fits; raised before any computation.
    """
    arguments.check_tensor("x", x, 4, "N x C x H x W")
    arguments.check_normalisation(size, alpha, beta, k)
    arguments.check_groups(x.shape[1], groups)
    arguments.check_int("kernel_size", kernel_size, 1)
    arguments.check_int("stride", stride, 1)
    arguments.check_pool(x, (kernel_size, kernel_size), (stride, stride))
    if bias is not None:
        arguments.check_vector("bias", bias, x.shape[1], x, "one per channel of x")
    if relu not in (None, "before", "after"):
        raise ValueError(f'relu must be None, "before" or "after", got {relu!r}')
    chosen = dispatch.implementation_for(x)
    # The argmax of a larger window does not fit a byte beside `_NO_MAXIMUM`. No network here has one.
    if chosen == "triton" and kernel_size**2 <= _MAX_WINDOW:
        return _LrnMaxPool.apply(x, bias, size, float(alpha), float(beta), float(k), groups, kernel_size, stride, relu)
    plain = reference if chosen == "reference" else native
    return plain.lrn_max_pool2d(
        x, size, alpha, beta, k, groups=groups, kernel_size=kernel_size, stride=stride, bias=bias, relu=relu
    )

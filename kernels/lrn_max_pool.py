"""Bias, ReLU, local response normalisation and max-pooling after a convolution, in one pass over its raw output.

    relu="before": pool(norm(relu(x + bias)))         the paper and Caffe
    relu="after":  relu(pool(norm(x + bias)))         the first layer of the 2012 source

The formulas are those of `kernels.lrn` and `kernels.max_pool`.

Source: sections 3.1, 3.3 and 3.4 of Krizhevsky, Sutskever and Hinton (2012).

Forward reads the raw output from memory and writes the pooled result; if gradients are needed, it also writes the
argmax of each window, in one byte. An item walks down a few windows below each other, so that a row that two of them
contain is normalised once. Columns that windows beside each other contain are normalised once per window, from cache.
Backward saves the raw output, the bias and the argmax. As in `kernels.max_pool`, it computes blocks of pixels and loads
each window that touches a block once. The scale of the normalisation is computed again.

Windows larger than any network's here would compile into too much code. The operators of `kernels.lrn` and
`kernels.max_pool` compute them, one after the other, and save more.
"""

# A tuple that grows in a loop changes its type in each iteration.
# mypy: disable-error-code="assignment, var-annotated"

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kernels import arguments, dispatch, launch_settings, native, reference, tuned
from kernels.autograd import no_double_backward, operator
from kernels.channel_sum import bias_gradient
from kernels.dispatch import tl, triton
from kernels.lrn import halo, local_response_norm, normalise_lanes, normalise_lanes_backward
from kernels.max_pool import block_count, block_gradient, block_length, max_pool2d
from kernels.memory_format import dense, empty_as, is_channels_last
from kernels.vector_lanes import load_bias, load_biased, locate, store_lanes, unpack, upcast

# Stored in place of the argmax of a window whose result the ReLU sets to 0: a position that no pixel has.
_NO_MAXIMUM = tl.constexpr(255)
# Largest pooling and normalisation windows of the fused kernels, which would take long to compile for larger ones.
_MAX_KERNEL, _MAX_SIZE = 4, 7
# Windows below each other in an item of the forward kernel.
_ROWS = 3
# Largest blocks of pixels in an item of the backward kernel, and windows that it loads without a loop.
_MAX_BLOCK, _MAX_WINDOWS = 2, 2
# Most channels in an item in NCHW, where each takes a load of its own and wider vectors only take more registers.
_MAX_NCHW_VECTOR = 4


@triton.jit
def update_maximum_lanes(best, argmax, values, positions, OFFSET: tl.constexpr, VECTOR: tl.constexpr):
    """Maximum and argmax, lane by lane, after `values`, which are at `positions` plus OFFSET. A NaN wins."""
    next_best = ()
    next_argmax = ()
    for lane in tl.static_range(VECTOR):
        better = (values[lane] > best[lane]) | (values[lane] != values[lane])
        next_best += (tl.where(better, values[lane], best[lane]),)
        next_argmax += (tl.where(better, positions[lane] + OFFSET, argmax[lane]),)
    return next_best, next_argmax


@triton.jit
def zero_lanes(x_ptr, ITEMS: tl.constexpr, VECTOR: tl.constexpr):
    """Zeros as lanes of a maximum, in the dtype that `x_ptr`'s is computed in, and as lanes of its position."""
    best = ()
    argmax = ()
    for _ in tl.static_range(VECTOR):
        best += (upcast(tl.zeros([ITEMS], x_ptr.dtype.element_ty)),)
        argmax += (tl.zeros([ITEMS], tl.int32),)
    return best, argmax


@triton.jit
def row_maximum(
    x_image_ptr, bias_lanes, vector, pixel, mask, SIZE: tl.constexpr, ALPHA: tl.constexpr, BETA: tl.constexpr,
    K: tl.constexpr, KERNEL: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr, GROUP_VECTORS: tl.constexpr,
    ITEMS: tl.constexpr, VECTOR: tl.constexpr, HALO: tl.constexpr, CHANNELS_LAST: tl.constexpr, HAS_BIAS: tl.constexpr,
    RELU_BEFORE: tl.constexpr,
):  # fmt: skip
    """The maximum of KERNEL normalised pixels of a row, the first of which is `pixel`, and its position among them."""
    best, zeros = zero_lanes(x_image_ptr, ITEMS, VECTOR)
    argmax = zeros
    for b in tl.static_range(KERNEL):
        x_lanes = load_biased(
            x_image_ptr, bias_lanes, vector, pixel + b, mask, RELU_BEFORE, HAS_BIAS, HALO, GROUP_VECTORS, PIXELS,
            CHANNELS, ITEMS, VECTOR, CHANNELS_LAST,
        )  # fmt: skip
        values = normalise_lanes(x_lanes, HALO, VECTOR, SIZE, ALPHA, BETA, K)
        if b == 0:
            best = values
        else:
            best, argmax = update_maximum_lanes(best, argmax, values, zeros, b, VECTOR)
    return best, argmax


@triton.jit
def store_maximum(
    y_image_ptr, argmax_image_ptr, rows, vector, out_pixel, mask, KERNEL: tl.constexpr, OUT_PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr, ITEMS: tl.constexpr, VECTOR: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    RELU_AFTER: tl.constexpr, WRITE_ARGMAX: tl.constexpr,
):  # fmt: skip
    """Store the maximum of the KERNEL `rows` of a window after the ReLU; with WRITE_ARGMAX also its position."""
    best, argmax = rows[0]
    for a in tl.static_range(1, KERNEL):
        best, argmax = update_maximum_lanes(best, argmax, rows[a][0], rows[a][1], a * KERNEL, VECTOR)
    y_lanes = ()
    positions = ()
    for lane in tl.static_range(VECTOR):
        value = best[lane]
        position = argmax[lane]
        if RELU_AFTER:
            position = tl.where(value <= 0.0, _NO_MAXIMUM, position)
            value = tl.where(value <= 0.0, 0.0, value)
        y_lanes += (value,)
        positions += (position.to(tl.uint8),)
    store_lanes(y_image_ptr, y_lanes, vector, out_pixel, mask, OUT_PIXELS, CHANNELS, ITEMS, VECTOR, CHANNELS_LAST)
    if WRITE_ARGMAX:
        store_lanes(
            argmax_image_ptr, positions, vector, out_pixel, mask, OUT_PIXELS, CHANNELS, ITEMS, VECTOR, CHANNELS_LAST
        )


@triton.jit
def lrn_pool_fwd_kernel(
    x_ptr, bias_ptr, y_ptr, argmax_ptr, SIZE: tl.constexpr, ALPHA: tl.constexpr, BETA: tl.constexpr, K: tl.constexpr,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, OUT_HEIGHT: tl.constexpr,
    OUT_WIDTH: tl.constexpr, CHANNELS: tl.constexpr, GROUP_CHANNELS: tl.constexpr, ITEMS: tl.constexpr,
    VECTOR: tl.constexpr, HALO: tl.constexpr, ROWS: tl.constexpr, CHANNELS_LAST: tl.constexpr, HAS_BIAS: tl.constexpr,
    RELU_BEFORE: tl.constexpr, RELU_AFTER: tl.constexpr, WRITE_ARGMAX: tl.constexpr,
):  # fmt: skip
    """y from raw x; with WRITE_ARGMAX also each maximum's position in its window, 255 where the ReLU after is off."""
    OUT_PIXELS: tl.constexpr = OUT_HEIGHT * OUT_WIDTH
    STRIPS: tl.constexpr = (OUT_HEIGHT + ROWS - 1) // ROWS
    GROUP_VECTORS: tl.constexpr = GROUP_CHANNELS // VECTOR
    # An item is a strip of ROWS windows below each other. A row of x that several of them contain is normalised once.
    image, vector, strip, mask = locate(CHANNELS // VECTOR, STRIPS * OUT_WIDTH, ITEMS, CHANNELS_LAST)
    x_start = x_ptr + image * (CHANNELS * HEIGHT * WIDTH)
    out_start = image * (CHANNELS * OUT_PIXELS)
    out_row, out_column = strip // OUT_WIDTH * ROWS, strip % OUT_WIDTH
    bias_lanes = load_bias(
        bias_ptr, vector, mask, HAS_BIAS, HALO, GROUP_VECTORS, CHANNELS, ITEMS, VECTOR, CHANNELS_LAST
    )
    # Walk down the rows of x and keep the last KERNEL - 1 maxima. Unrolled, this would take long to compile.
    kept = ()
    for _ in tl.static_range(KERNEL - 1):
        kept += (zero_lanes(x_ptr, ITEMS, VECTOR),)
    for row in range((ROWS - 1) * STRIDE + KERNEL):
        x_row = out_row * STRIDE + row
        newest = row_maximum(
            x_start, bias_lanes, vector, x_row * WIDTH + out_column * STRIDE, mask & (x_row < HEIGHT), SIZE, ALPHA,
            BETA, K, KERNEL, HEIGHT * WIDTH, CHANNELS, GROUP_VECTORS, ITEMS, VECTOR, HALO, CHANNELS_LAST, HAS_BIAS,
            RELU_BEFORE,
        )  # fmt: skip
        kept += (newest,)
        if (row >= KERNEL - 1) & ((row - (KERNEL - 1)) % STRIDE == 0):
            # This row is the last one of its window.
            window_row = out_row + (row - (KERNEL - 1)) // STRIDE
            store_maximum(
                y_ptr + out_start, argmax_ptr + out_start, kept, vector, window_row * OUT_WIDTH + out_column,
                mask & (window_row < OUT_HEIGHT), KERNEL, OUT_PIXELS, CHANNELS, ITEMS, VECTOR, CHANNELS_LAST,
                RELU_AFTER, WRITE_ARGMAX,
            )  # fmt: skip
        kept = kept[1:]


@triton.jit
def lrn_pool_bwd_kernel(
    grad_ptr, argmax_ptr, x_ptr, bias_ptr, grad_x_ptr, SIZE: tl.constexpr, ALPHA: tl.constexpr, BETA: tl.constexpr,
    K: tl.constexpr, KERNEL: tl.constexpr, STRIDE: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
    OUT_HEIGHT: tl.constexpr, OUT_WIDTH: tl.constexpr, CHANNELS: tl.constexpr, GROUP_CHANNELS: tl.constexpr,
    ITEMS: tl.constexpr, VECTOR: tl.constexpr, HALO: tl.constexpr, GRAD_HALO: tl.constexpr, BLOCK: tl.constexpr,
    UNROLL: tl.constexpr, CHANNELS_LAST: tl.constexpr, GRAD_CHANNELS_LAST: tl.constexpr, HAS_BIAS: tl.constexpr,
    RELU_BEFORE: tl.constexpr,
):  # fmt: skip
    """grad_x in x's layout, from raw x, the argmax and the pooled result's gradient in a layout of its own."""
    DOWN: tl.constexpr = (HEIGHT + BLOCK - 1) // BLOCK
    ACROSS: tl.constexpr = (WIDTH + BLOCK - 1) // BLOCK
    GROUP_VECTORS: tl.constexpr = GROUP_CHANNELS // VECTOR
    # An item is a block of BLOCK x BLOCK pixels of x.
    image, vector, block, mask = locate(CHANNELS // VECTOR, DOWN * ACROSS, ITEMS, CHANNELS_LAST)
    start = image * (CHANNELS * HEIGHT * WIDTH)
    out_start = image * (CHANNELS * OUT_HEIGHT * OUT_WIDTH)
    block_row, block_column = block // ACROSS, block % ACROSS
    # The gradients of the normalised pixels, and of their channel neighbours, which are 0 outside the group.
    grads = ()
    for neighbour in tl.static_range(-GRAD_HALO, GRAD_HALO + 1):
        vector_in_group = vector % GROUP_VECTORS + neighbour
        inside = mask & (vector_in_group >= 0) & (vector_in_group < GROUP_VECTORS)
        grads += (
            block_gradient(
                grad_ptr + out_start, argmax_ptr + out_start, vector + neighbour, block_row, block_column, inside,
                KERNEL, STRIDE, OUT_HEIGHT, OUT_WIDTH, CHANNELS, ITEMS, VECTOR, BLOCK, CHANNELS_LAST,
                GRAD_CHANNELS_LAST, UNROLL,
            ),
        )  # fmt: skip
    bias_lanes = load_bias(
        bias_ptr, vector, mask, HAS_BIAS, HALO, GROUP_VECTORS, CHANNELS, ITEMS, VECTOR, CHANNELS_LAST
    )
    # Back through the normalisation and the ReLU, pixel by pixel.
    for index in tl.static_range(BLOCK * BLOCK):
        row, column = block_row * BLOCK + index // BLOCK, block_column * BLOCK + index % BLOCK
        pixel = row * WIDTH + column
        exists = mask & (row < HEIGHT) & (column < WIDTH)
        grad_lanes = ()
        for neighbour in tl.static_range(2 * GRAD_HALO + 1):
            grad_lanes += unpack(grads[neighbour][index], ITEMS, VECTOR)
        x_lanes = load_biased(
            x_ptr + start, bias_lanes, vector, pixel, exists, RELU_BEFORE, HAS_BIAS, HALO, GROUP_VECTORS,
            HEIGHT * WIDTH, CHANNELS, ITEMS, VECTOR, CHANNELS_LAST,
        )  # fmt: skip
        lanes = normalise_lanes_backward(grad_lanes, x_lanes, GRAD_HALO, HALO, VECTOR, SIZE, ALPHA, BETA, K)
        grad_x_lanes = ()
        for lane in tl.static_range(VECTOR):
            value = lanes[lane]
            if RELU_BEFORE:
                value = tl.where(x_lanes[HALO * VECTOR + lane] <= 0.0, 0.0, value)
            grad_x_lanes += (value,)
        store_lanes(
            grad_x_ptr + start, grad_x_lanes, vector, pixel, exists, HEIGHT * WIDTH, CHANNELS, ITEMS, VECTOR,
            CHANNELS_LAST,
        )  # fmt: skip


def _empty_results(x: Tensor, kernel_size: int, stride: int, needs_argmax: bool) -> tuple[Tensor, Tensor]:
    height, width = ((length - kernel_size) // stride + 1 for length in x.shape[2:])
    shape = (x.shape[0], x.shape[1], height, width)
    return empty_as(x, shape), empty_as(x, shape if needs_argmax else (0, *shape[1:]), torch.uint8)


def _constants(
    x: Tensor, pooled: Tensor, bias: Tensor | None, size: int, alpha: float, beta: float, k: float, groups: int,
    kernel_size: int, stride: int, relu: str | None,
) -> dict[str, Any]:  # fmt: skip
    """The constants that both kernels have in common. `pooled` has the result's shape."""
    channels, height, width = x.shape[1:]
    vector = launch_settings.vector_width(channels // groups, x.element_size())
    if not is_channels_last(x):
        vector = min(vector, _MAX_NCHW_VECTOR)
    return {
        "SIZE": size, "ALPHA": alpha, "BETA": beta, "K": k, "KERNEL": kernel_size, "STRIDE": stride,
        "HEIGHT": height, "WIDTH": width, "OUT_HEIGHT": pooled.shape[2], "OUT_WIDTH": pooled.shape[3],
        "CHANNELS": channels, "GROUP_CHANNELS": channels // groups, "VECTOR": vector,
        "CHANNELS_LAST": is_channels_last(x), "HAS_BIAS": bias is not None,
        "RELU_BEFORE": relu == "before",
    }  # fmt: skip


@operator("fastalex::lrn_pool_forward")
def _forward(
    x: Tensor, bias: Tensor | None, size: int, alpha: float, beta: float, k: float, groups: int, kernel_size: int,
    stride: int, relu: str | None, needs_argmax: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The pooled tensor, and the argmax of each window; the latter is empty if it is not needed."""
    arguments.check_image(x)
    x, bias = dense(x), bias if bias is None else bias.contiguous()
    y, argmax = _empty_results(x, kernel_size, stride, needs_argmax)
    if y.numel() == 0:
        return y, argmax
    batch, channels, out_height, out_width = y.shape
    constants = _constants(x, y, bias, size, alpha, beta, k, groups, kernel_size, stride, relu)
    rows = min(_ROWS, out_height) if kernel_size > stride else 1
    items = channels // constants["VECTOR"] * triton.cdiv(out_height, rows) * out_width
    launch = tuned.launch_of("lrn_pool_fwd_kernel", x)
    with launch_settings.on_device_of(x):
        lrn_pool_fwd_kernel[(batch * launch.programs(items),)](
            x, x if bias is None else bias, y, argmax, HALO=halo(size // 2, constants["VECTOR"]), ROWS=rows,
            RELU_AFTER=relu == "after", WRITE_ARGMAX=needs_argmax, **constants, **launch.options,
        )  # fmt: skip
    return y, argmax


@_forward.register_fake
def _(x, bias, size, alpha, beta, k, groups, kernel_size, stride, relu, needs_argmax):
    return _empty_results(x, kernel_size, stride, needs_argmax)


@operator("fastalex::lrn_pool_backward")
def _backward(
    grad: Tensor, argmax: Tensor, x: Tensor, bias: Tensor | None, size: int, alpha: float, beta: float, k: float,
    groups: int, kernel_size: int, stride: int, relu: str | None, needs_bias: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The gradients of x and of the bias; the latter is empty if it is not needed."""
    x, grad, bias = dense(x), dense(grad), bias if bias is None else bias.contiguous()
    grad_x = empty_as(x)
    if x.numel() == 0:
        return grad_x, bias_gradient(grad_x, bias, needs_bias)
    batch, channels, height, width = x.shape
    constants = _constants(x, argmax, bias, size, alpha, beta, k, groups, kernel_size, stride, relu)
    vector, block = constants["VECTOR"], block_length(stride, _MAX_BLOCK)
    items = channels // vector * block_count(height, block) * block_count(width, block)
    launch = tuned.launch_of("lrn_pool_bwd_kernel", x)
    with launch_settings.on_device_of(x):
        lrn_pool_bwd_kernel[(batch * launch.programs(items),)](
            grad, argmax, x, x if bias is None else bias, grad_x, HALO=halo(size - 1, vector),
            GRAD_HALO=halo(size // 2, vector), BLOCK=block, UNROLL=kernel_size <= _MAX_WINDOWS * stride,
            GRAD_CHANNELS_LAST=is_channels_last(grad), **constants, **launch.options,
        )  # fmt: skip
    return grad_x, bias_gradient(grad_x, bias, needs_bias)


@_backward.register_fake
def _(grad, argmax, x, bias, size, alpha, beta, k, groups, kernel_size, stride, relu, needs_bias):
    dtype = x.dtype if bias is None else bias.dtype
    return empty_as(x), torch.empty(x.shape[1] if needs_bias else 0, dtype=dtype, device=x.device)


class _LrnMaxPool(torch.autograd.Function):
    """Saves the raw x, the bias, and one byte per pooled element."""

    @staticmethod
    def forward(ctx, x, bias, needs_grad, *options):
        y, argmax = _forward(x, bias, *options, needs_grad)
        ctx.save_for_backward(argmax, x, bias)
        ctx.options = options
        return y

    @staticmethod
    @no_double_backward("lrn_max_pool2d")
    def backward(ctx, grad):
        argmax, x, bias = ctx.saved_tensors
        needs_bias = bias is not None and ctx.needs_input_grad[1]
        grad_x, grad_bias = _backward(grad, argmax, x, bias, *ctx.options, needs_bias)
        return grad_x, grad_bias if needs_bias else None, None, *([None] * len(ctx.options))


def _by_separate_operators(
    x: Tensor, bias: Tensor | None, size: int, alpha: float, beta: float, k: float, groups: int, kernel_size: int,
    stride: int, relu: str | None,
) -> Tensor:  # fmt: skip
    """The same by one operator after the other, in fp64 for fp64 and in fp32 for other dtypes, as the fused kernels."""
    y = x.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
    if bias is not None:
        y = y + bias.to(y.dtype).view(-1, 1, 1)
    if relu == "before":
        y = y.relu()
    y = max_pool2d(local_response_norm(y, size, alpha, beta, k, groups=groups), kernel_size, stride)
    return (y.relu() if relu == "after" else y).to(x.dtype)


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
        bias: C values, added to x first; any floating dtype, rounded to that of the computation.
        relu: None, "before" the normalisation, or "after" the pooling.

    Returns:
        N x C x OH x OW in x's dtype and memory format. Backward saves x, the bias and a byte per element of the result.

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
    if chosen == "triton":
        options = (size, float(alpha), float(beta), float(k), groups, kernel_size, stride, relu)
        if kernel_size > _MAX_KERNEL or size > _MAX_SIZE:
            return _by_separate_operators(x, bias, *options)
        needs_grad = x.requires_grad or (bias is not None and bias.requires_grad)
        return _LrnMaxPool.apply(x, bias, needs_grad and torch.is_grad_enabled(), *options)
    plain = reference if chosen == "reference" else native
    return plain.lrn_max_pool2d(
        x, size, alpha, beta, k, groups=groups, kernel_size=kernel_size, stride=stride, bias=bias, relu=relu
    )

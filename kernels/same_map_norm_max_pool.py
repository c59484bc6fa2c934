"""Response normalisation within a map and max-pooling behind it, in one pass over the input.

    n = x * s^-beta          y[i, j] = max of n over the window (i, j)

The formulas are those of `kernels.same_map_norm` and `kernels.max_pool`.

Source: the second layer of the 2012 network, as its released source has it.

Forward reads x and writes the pooled result. An item walks down a column of pooling windows and holds, for each column
of x in them, the row sums of the squares. If gradients are needed, it also writes for each window the argmax, in one
byte, and the factor f = n / s of the maximum.

Backward is one kernel, because all but the maxima have no gradient. So t of `kernels.same_map_norm` is a sum of
grad_y[i, j] * f[i, j] over the windows with their maximum at the pixel, and needs neither x nor s around that pixel. An
item walks down a column of x. In each step it loads the windows of one row that reach its sums, and adds each to the
row sum of its maximum.
"""

# A tuple that grows in a loop changes its type in each iteration.
# mypy: disable-error-code="assignment, var-annotated"

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kernels import arguments, dispatch, launch_settings, native, reference, tuned
from kernels.autograd import no_double_backward, operator
from kernels.dispatch import tl, triton
from kernels.lrn import inverse, inverse_power
from kernels.max_pool import max_pool2d
from kernels.memory_format import dense, empty_as, is_channels_last
from kernels.same_map_norm import push_row, row_sum, same_map_norm, window_total, zero_rows
from kernels.vector_lanes import element_offset, load_tile, locate, zero_accumulator

# Largest windows of the fused kernels. Larger ones would take long to compile; the separate operators compute them.
_MAX_KERNEL, _MAX_STRIDE, _MAX_SIZE = 4, 3, 7
# Most pooling windows below each other in an item of either kernel. The more, the fewer rows are summed twice.
_MAX_ROWS = 16
# Largest number of row sums in an item of the forward kernel. With more, too few warps fit, and later registers spill.
_MAX_SUMS = 64


@triton.jit
def square_sums(
    x_image_ptr, vector, row, column, mask, SIZE: tl.constexpr, KERNEL: tl.constexpr, HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr, CHANNELS: tl.constexpr, VECTOR: tl.constexpr, CHANNELS_LAST: tl.constexpr,
):  # fmt: skip
    """Sums of squares over one row of the windows around KERNEL pixels, the first of which is in `column`."""
    values = ()
    for j in tl.static_range(KERNEL + SIZE - 1):
        place = column + j - SIZE // 2
        inside = mask & (row >= 0) & (row < HEIGHT) & (place >= 0) & (place < WIDTH)
        pixel = row * WIDTH + place
        values += (load_tile(x_image_ptr, vector, pixel, inside, HEIGHT * WIDTH, CHANNELS, VECTOR, CHANNELS_LAST),)
    sums = ()
    for b in tl.static_range(KERNEL):
        total = values[b] * values[b]
        for j in tl.static_range(1, SIZE):
            total += values[b + j] * values[b + j]
        sums += (total,)
    return sums


@triton.jit
def larger(maximum, value, scale, position):
    """A maximum with its scale and argmax, after another value with those. A NaN wins."""
    better = (value > maximum[0]) | (value != value)
    return (
        tl.where(better, value, maximum[0]),
        tl.where(better, scale, maximum[1]),
        tl.where(better, position, maximum[2]),
    )


@triton.jit
def row_maximum(
    x_image_ptr, squares, vector, row, column, mask, SIZE: tl.constexpr, ALPHA: tl.constexpr, BETA: tl.constexpr,
    K: tl.constexpr, KERNEL: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, CHANNELS: tl.constexpr,
    VECTOR: tl.constexpr, CHANNELS_LAST: tl.constexpr,
):  # fmt: skip
    """The maximum of KERNEL normalised pixels of a row, its scale, and its position among them."""
    maximum = ()
    for b in tl.static_range(KERNEL):
        pixel = row * WIDTH + column + b
        x = load_tile(x_image_ptr, vector, pixel, mask, HEIGHT * WIDTH, CHANNELS, VECTOR, CHANNELS_LAST)
        scale = window_total(squares[b], SIZE) * (ALPHA / (SIZE * SIZE)) + K
        value = x * inverse_power(scale, BETA)
        if b == 0:
            maximum = (value, scale, tl.zeros(value.shape, tl.int32))
        else:
            maximum = larger(maximum, value, scale, b)
    return maximum


@triton.jit
def window_maximum(rows, KERNEL: tl.constexpr):
    """The maximum of a window, its scale and argmax, from those of its rows."""
    best = rows[0]
    for a in tl.static_range(1, KERNEL):
        best = larger(best, rows[a][0], rows[a][1], rows[a][2] + a * KERNEL)
    return best


@triton.jit
def same_map_pool_fwd_kernel(
    x_ptr, y_ptr, argmax_ptr, factor_ptr, SIZE: tl.constexpr, ALPHA: tl.constexpr, BETA: tl.constexpr, K: tl.constexpr,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, OUT_HEIGHT: tl.constexpr,
    OUT_WIDTH: tl.constexpr, CHANNELS: tl.constexpr, STRIPS: tl.constexpr, ROWS: tl.constexpr, ITEMS: tl.constexpr,
    VECTOR: tl.constexpr, CHANNELS_LAST: tl.constexpr, FOR_BACKWARD: tl.constexpr,
):  # fmt: skip
    """y from x; with FOR_BACKWARD also each maximum's position in its window, and its factor."""
    OUT_PIXELS: tl.constexpr = OUT_HEIGHT * OUT_WIDTH
    # An item is a strip of ROWS pooling windows below each other.
    image, vector, strip, mask = locate(CHANNELS // VECTOR, STRIPS * OUT_WIDTH, ITEMS, CHANNELS_LAST)
    x_start = x_ptr + image * (CHANNELS * HEIGHT * WIDTH)
    out_start = image * (CHANNELS * OUT_PIXELS)
    out_row, out_column = strip // OUT_WIDTH * ROWS, strip % OUT_WIDTH
    # For each column of the pooling windows, the row sums of the last SIZE rows of squares.
    squares = ()
    for _ in tl.static_range(KERNEL):
        squares += (zero_rows(x_ptr, SIZE, ITEMS, VECTOR),)
    # The maxima of the rows of x that the next window below contains, too.
    kept = ()
    for _ in tl.static_range(KERNEL - STRIDE):
        zero = zero_accumulator(x_ptr, ITEMS, VECTOR)
        kept += ((zero, zero + 1.0, tl.zeros([ITEMS, VECTOR], tl.int32)),)
    # Walk down the windows. Before the first one, some only add squares; above the map there are none.
    BEFORE: tl.constexpr = SIZE - 1 if STRIPS > 1 else (SIZE - 1) // 2
    for step in range(-((BEFORE + KERNEL - 1) // STRIDE), ROWS):
        # The last STRIDE rows of the window.
        for a in tl.static_range(STRIDE):
            row = (out_row + step) * STRIDE + KERNEL - STRIDE + a
            last = square_sums(
                x_start, vector, row + (SIZE - 1) // 2, out_column * STRIDE, mask, SIZE, KERNEL, HEIGHT, WIDTH,
                CHANNELS, VECTOR, CHANNELS_LAST,
            )  # fmt: skip
            pushed = ()
            for b in tl.static_range(KERNEL):
                pushed += (push_row(squares[b], last[b], SIZE),)
            squares = pushed
            if a >= STRIDE - KERNEL:
                newest = row_maximum(
                    x_start, squares, vector, row, out_column * STRIDE, mask & (row >= 0) & (row < HEIGHT), SIZE,
                    ALPHA, BETA, K, KERNEL, HEIGHT, WIDTH, CHANNELS, VECTOR, CHANNELS_LAST,
                )  # fmt: skip
                kept += (newest,)
        best = window_maximum(kept, KERNEL)
        window_row = out_row + step
        exists = (mask & (step >= 0) & (window_row < OUT_HEIGHT))[:, None]
        window = window_row * OUT_WIDTH + out_column
        offset = out_start + element_offset(vector, window, OUT_PIXELS, CHANNELS, VECTOR, CHANNELS_LAST)
        tl.store(y_ptr + offset, best[0], mask=exists)
        if FOR_BACKWARD:
            tl.store(factor_ptr + offset, best[0] * inverse(best[1], BETA), mask=exists)
            tl.store(argmax_ptr + offset, best[2].to(tl.uint8), mask=exists)
        kept = kept[STRIDE:]


@triton.jit
def add_window(
    spreads, directs, grad_image_ptr, argmax_image_ptr, factor_image_ptr, vector, i, j, column, mask,
    BEFORE: tl.constexpr, AFTER: tl.constexpr, KERNEL: tl.constexpr, OUT_HEIGHT: tl.constexpr, OUT_WIDTH: tl.constexpr,
    CHANNELS: tl.constexpr, VECTOR: tl.constexpr, CHANNELS_LAST: tl.constexpr, GRAD_CHANNELS_LAST: tl.constexpr,
    CONTAINS: tl.constexpr,
):  # fmt: skip
    """Add window (i, j) to what it contributes to: row sums of t, and with CONTAINS gradients of normalised pixels.

    Both have one tile for each row of the window. `column` is the item's, counted from the left of the window.
    """
    PIXELS: tl.constexpr = OUT_HEIGHT * OUT_WIDTH
    exists = mask & (i >= 0) & (i < OUT_HEIGHT) & (j >= 0) & (j < OUT_WIDTH)
    window = i * OUT_WIDTH + j
    grad = load_tile(grad_image_ptr, vector, window, exists, PIXELS, CHANNELS, VECTOR, GRAD_CHANNELS_LAST)
    factor = load_tile(factor_image_ptr, vector, window, exists, PIXELS, CHANNELS, VECTOR, CHANNELS_LAST)
    argmax = load_tile(argmax_image_ptr, vector, window, exists, PIXELS, CHANNELS, VECTOR, CHANNELS_LAST)
    spread = grad * factor
    # The maximum's position as one bit, to test it against all positions of a row at once.
    place = 1 << argmax
    low = tl.minimum(tl.maximum(column - BEFORE, 0), KERNEL)
    high = tl.minimum(column + AFTER, KERNEL - 1)
    reached = tl.where(high >= low, (2 << high) - (1 << low), 0)
    contained = tl.where((column >= 0) & (column < KERNEL), 1 << tl.maximum(column, 0), 0)
    next_spreads = ()
    next_directs = ()
    for a in tl.static_range(KERNEL):
        in_row = (place & (reached << (a * KERNEL))[:, None]) != 0
        next_spreads += (tl.where(in_row, spreads[a] + spread, spreads[a]),)
        if CONTAINS:
            at_pixel = (place & (contained << (a * KERNEL))[:, None]) != 0
            next_directs += (tl.where(at_pixel, directs[a] + grad, directs[a]),)
        else:
            next_directs += (directs[a],)
    for a in tl.static_range(KERNEL, len(spreads)):
        next_spreads += (spreads[a],)
        next_directs += (directs[a],)
    return next_spreads, next_directs


@triton.jit
def same_map_pool_bwd_kernel(
    grad_ptr, argmax_ptr, factor_ptr, x_ptr, grad_x_ptr, SIZE: tl.constexpr, ALPHA: tl.constexpr, BETA: tl.constexpr,
    K: tl.constexpr, KERNEL: tl.constexpr, STRIDE: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
    OUT_HEIGHT: tl.constexpr, OUT_WIDTH: tl.constexpr, CHANNELS: tl.constexpr, STRIPS: tl.constexpr, ROWS: tl.constexpr,
    ITEMS: tl.constexpr, VECTOR: tl.constexpr, CHANNELS_LAST: tl.constexpr, GRAD_CHANNELS_LAST: tl.constexpr,
):  # fmt: skip
    """grad_x in x's layout, from x, the argmax, the factor, and grad_y in a layout of its own."""
    PIXELS: tl.constexpr = HEIGHT * WIDTH
    # t is summed over the mirrored window: from BEFORE rows or columns before a pixel to AFTER behind it.
    BEFORE: tl.constexpr = (SIZE - 1) // 2
    AFTER: tl.constexpr = SIZE // 2
    WINDOWS: tl.constexpr = (SIZE + KERNEL - 2) // STRIDE + 1
    UNFINISHED: tl.constexpr = KERNEL if KERNEL > STRIDE else STRIDE
    # An item is one column of a strip of ROWS * STRIDE rows.
    image, vector, strip_column, mask = locate(CHANNELS // VECTOR, STRIPS * WIDTH, ITEMS, CHANNELS_LAST)
    first, column = strip_column // WIDTH * ROWS, strip_column % WIDTH
    start = image * (CHANNELS * PIXELS)
    out_start = image * (CHANNELS * OUT_HEIGHT * OUT_WIDTH)
    # Row sums of the squares and of t, and the gradients of normalised pixels that wait for rows below.
    squares = zero_rows(x_ptr, SIZE, ITEMS, VECTOR)
    spread = zero_rows(x_ptr, SIZE, ITEMS, VECTOR)
    direct = zero_rows(x_ptr, AFTER + 1, ITEMS, VECTOR)
    # The last two of rows that windows further down may add to.
    next_spread = zero_rows(x_ptr, UNFINISHED, ITEMS, VECTOR)
    next_direct = zero_rows(x_ptr, UNFINISHED, ITEMS, VECTOR)
    # Walk down the rows of pooling windows, from the first one that the strip's first sums contain.
    LEAD: tl.constexpr = (BEFORE + KERNEL + STRIDE - 2) // STRIDE if STRIPS > 1 else 0
    for step in range(-LEAD, ROWS + (AFTER + STRIDE - 1) // STRIDE):
        i = first + step
        for index in tl.static_range(WINDOWS):
            j = (column + AFTER) // STRIDE - index
            next_spread, next_direct = add_window(
                next_spread, next_direct, grad_ptr + out_start, argmax_ptr + out_start, factor_ptr + out_start, vector,
                i, j, column - j * STRIDE, mask, BEFORE, AFTER, KERNEL, OUT_HEIGHT, OUT_WIDTH, CHANNELS, VECTOR,
                CHANNELS_LAST, GRAD_CHANNELS_LAST,
                (index >= AFTER // STRIDE) & (index <= (AFTER + KERNEL - 1) // STRIDE),
            )  # fmt: skip
        # Nothing further down adds to the first STRIDE rows of these windows.
        for a in tl.static_range(STRIDE):
            row = i * STRIDE + a - AFTER
            last = row_sum(
                x_ptr + start, vector, row + BEFORE, column, mask, SIZE // 2, SIZE, True, HEIGHT, WIDTH, CHANNELS,
                VECTOR, CHANNELS_LAST,
            )  # fmt: skip
            squares = push_row(squares, last, SIZE)
            spread = push_row(spread, next_spread[a], SIZE)
            direct = push_row(direct, next_direct[a], AFTER + 1)
            exists = mask & (row >= first * STRIDE) & (row < HEIGHT)
            pixel = row * WIDTH + column
            x = load_tile(x_ptr + start, vector, pixel, exists, PIXELS, CHANNELS, VECTOR, CHANNELS_LAST)
            scale = window_total(squares, SIZE) * (ALPHA / (SIZE * SIZE)) + K
            indirect = (2.0 * ALPHA * BETA / (SIZE * SIZE)) * x * window_total(spread, SIZE)
            offset = element_offset(vector, pixel, PIXELS, CHANNELS, VECTOR, CHANNELS_LAST)
            grad_x = direct[0] * inverse_power(scale, BETA) - indirect
            tl.store(grad_x_ptr + start + offset, grad_x, mask=exists[:, None])
        next_spread = next_spread[STRIDE:] + zero_rows(x_ptr, STRIDE, ITEMS, VECTOR)
        next_direct = next_direct[STRIDE:] + zero_rows(x_ptr, STRIDE, ITEMS, VECTOR)


def _empty_results(x: Tensor, kernel_size: int, stride: int, for_backward: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The pooled tensor, the argmax and the factor; without backward, the last two are empty."""
    height, width = ((length - kernel_size) // stride + 1 for length in x.shape[2:])
    shape = (x.shape[0], x.shape[1], height, width)
    kept = shape if for_backward else (0, *shape[1:])
    # The range of fp16 is too small for the factor.
    dtype = torch.float32 if x.dtype == torch.float16 else x.dtype
    return empty_as(x, shape), empty_as(x, kept, torch.uint8), empty_as(x, kept, dtype)


def _launch(
    kernel: str, x: Tensor, pooled: Tensor, rows: int, columns: int, size: int, alpha: float, beta: float, k: float,
    kernel_size: int, stride: int,
) -> tuple[tuple[int], dict[str, Any]]:  # fmt: skip
    """Grid, constants and options of a launch over `columns` columns of `rows` rows of windows in each map of x."""
    batch, channels, height, width = x.shape
    # In NCHW, neighbouring items are neighbouring pixels and windows begin at any of them, so loads cannot be wider.
    vector = launch_settings.vector_width(channels, x.element_size()) if is_channels_last(x) else 1
    vector = min(vector, _MAX_SUMS // triton.next_power_of_2(kernel_size * size))
    strips = triton.cdiv(rows, _MAX_ROWS)
    constants = {
        "SIZE": size, "ALPHA": alpha, "BETA": beta, "K": k, "KERNEL": kernel_size, "STRIDE": stride, "HEIGHT": height,
        "WIDTH": width, "OUT_HEIGHT": pooled.shape[2], "OUT_WIDTH": pooled.shape[3], "CHANNELS": channels,
        "STRIPS": strips, "ROWS": triton.cdiv(rows, strips), "VECTOR": vector,
        "CHANNELS_LAST": is_channels_last(x),
    }  # fmt: skip
    launch = tuned.launch_of(kernel, x)
    return (batch * launch.programs(channels // vector * strips * columns),), launch.options | constants


@operator("fastalex::same_map_pool_forward")
def _forward(
    x: Tensor, size: int, alpha: float, beta: float, k: float, kernel_size: int, stride: int, for_backward: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The pooled tensor, and what backward needs: the argmax of each window and the factor of its maximum."""
    arguments.check_image(x)
    x = dense(x)
    y, argmax, factor = _empty_results(x, kernel_size, stride, for_backward)
    if y.numel() == 0:
        return y, argmax, factor
    place = (y.shape[2], y.shape[3])
    grid, options = _launch("same_map_pool_fwd_kernel", x, y, *place, size, alpha, beta, k, kernel_size, stride)
    with launch_settings.on_device_of(x):
        same_map_pool_fwd_kernel[grid](x, y, argmax, factor, FOR_BACKWARD=for_backward, **options)
    return y, argmax, factor


@_forward.register_fake
def _(x, size, alpha, beta, k, kernel_size, stride, for_backward):
    return _empty_results(x, kernel_size, stride, for_backward)


@operator("fastalex::same_map_pool_backward")
def _backward(
    grad: Tensor, argmax: Tensor, factor: Tensor, x: Tensor, size: int, alpha: float, beta: float, k: float,
    kernel_size: int, stride: int,
) -> Tensor:  # fmt: skip
    x, grad = dense(x), dense(grad)
    grad_x = empty_as(x)
    if x.numel() == 0:
        return grad_x
    place = (triton.cdiv(x.shape[2], stride), x.shape[3])
    grid, options = _launch("same_map_pool_bwd_kernel", x, argmax, *place, size, alpha, beta, k, kernel_size, stride)
    options["GRAD_CHANNELS_LAST"] = is_channels_last(grad)
    with launch_settings.on_device_of(x):
        same_map_pool_bwd_kernel[grid](grad, argmax, factor, x, grad_x, **options)
    return grad_x


@_backward.register_fake
def _(grad, argmax, factor, x, size, alpha, beta, k, kernel_size, stride):
    return empty_as(x)


class _SameMapNormMaxPool(torch.autograd.Function):
    """Saves x, and for each window one byte and one number."""

    @staticmethod
    def forward(ctx, x, for_backward, *options):
        y, argmax, factor = _forward(x, *options, for_backward)
        ctx.save_for_backward(argmax, factor, x)
        ctx.options = options
        return y

    @staticmethod
    @no_double_backward("same_map_norm_max_pool2d")
    def backward(ctx, grad):
        argmax, factor, x = ctx.saved_tensors
        return _backward(grad, argmax, factor, x, *ctx.options), None, *([None] * len(ctx.options))


def same_map_norm_max_pool2d(
    x: Tensor,
    size: int = 5,
    alpha: float = 1e-3,
    beta: float = 0.75,
    k: float = 1.0,
    *,
    kernel_size: int = 3,
    stride: int = 2,
) -> Tensor:
    """`max_pool2d(same_map_norm(x))`.

    Differentiable once: there is no double backward, and no transform of `torch.func` (grad, jvp, vmap) works. Under
    `kernels.using("reference")` both work.

    Around a NaN in x, the Triton kernels leave some gradients finite that the definition makes NaN: 0 times NaN.

    Args:
        x: N x C x H x W; float32, float16, bfloat16 or float64. Half precision is computed in fp32.
        size, alpha, beta, k: as in `same_map_norm`.
        kernel_size, stride: as in `max_pool2d`, without padding.

    Returns:
        N x C x OH x OW in x's dtype and memory format. Backward saves x, and for each element of the result a byte and
        a number in x's dtype, in fp32 for fp16. On CPUs, and in windows above 4 x 4 pixels, strides above 3 or
        normalisation above 7 x 7, it is one operator after the other.

    Raises:
        TypeError, ValueError: an argument is not as described, or no window fits; raised before any computation.

    Source: the second layer of the 2012 network normalises like this before it pools.
    """
    arguments.check_tensor("x", x, 4, "N x C x H x W")
    arguments.check_normalisation(size, alpha, beta, k)
    arguments.check_int("kernel_size", kernel_size, 1)
    arguments.check_int("stride", stride, 1)
    arguments.check_pool(x, (kernel_size, kernel_size), (stride, stride))
    size, alpha = arguments.clamp_window(max(x.shape[2:]), size, alpha, 2)
    chosen = dispatch.implementation_for(x)
    if chosen != "triton":
        plain = reference if chosen == "reference" else native
        return plain.same_map_norm_max_pool2d(x, size, alpha, beta, k, kernel_size=kernel_size, stride=stride)
    if kernel_size > _MAX_KERNEL or stride > _MAX_STRIDE or size > _MAX_SIZE:
        # In fp32 for half precision, as the fused kernels.
        wide = x.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
        return max_pool2d(same_map_norm(wide, size, alpha, beta, k), kernel_size, stride).to(x.dtype)
    options = (size, float(alpha), float(beta), float(k), kernel_size, stride)
    return _SameMapNormMaxPool.apply(x, x.requires_grad and torch.is_grad_enabled(), *options)

"""The convolution's three matrix products as implicit GEMM: Triton kernels and their launches.

    z[n, o, i, j] = bias[o] + sum over c, a, b of weight[o, c, a, b] * x[n, c, i * stride - top + a, ...]

    grad_x[n, c, h, w]      = sum over o, a, b of weight[o, c, a, b] * grad_z[n, o, (h + top - a) / stride, ...]
    grad_weight[o, c, a, b] = sum over n, i, j of grad_z[n, o, i, j] * x[n, c, i * stride - top + a, ...]

(columns likewise; values outside x or z are 0). The operands exist only as tiles, which are gathered from channels_last
tensors, where the terms of a tap (a, b) are neighbours in memory:

    product            rows x columns                 terms that are summed
    forward            pixels of y x filters          (a, b, c), flattened
    data gradient      pixels of x x channels         (a, b, o), flattened; taps that meet a multiple of the stride
    weight gradient    filters x (a, b, c)            pixels of y, divided into splits

Terms are flattened because one step per tap would often fill only a part of a matrix instruction.

Pixels of x whose rows and columns are congruent modulo the stride meet the same taps. So a program of the data gradient
handles pixels of one such phase only, and visits no tap in vain. The splits of a weight gradient are summed by a second
kernel (`kernels.channel_sum`), in a fixed order.

The 3 channels of the first layer can be loaded only 2 bytes at a time in half precision. Space-to-depth turns squares
of stride x stride pixels into channels: 4 x 4 pixels of 3 channels make 48 channels, which are loaded 16 bytes at a
time, at the cost of 19 % more terms and of one more pass over the images in forward and in backward.

In all kernels, BLOCK_M x BLOCK_N is the tile of the result that a program computes, and BLOCK_K the number of terms per
step. The first axis of the grid counts tiles, the second counts groups.

Source: Chetlur et al., "cuDNN: Efficient Primitives for Deep Learning" (2014), for the implicit form of the product.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import launch_settings
from kernels.channel_sum import empty_parts, sum_parts
from kernels.dispatch import tl, triton
from kernels.launch_settings import Problem, Settings
from kernels.memory_format import dense_as
from kernels.vector_lanes import zero_accumulator

# A row so far above the image that no tap reaches back into it.
_FAR_ABOVE = tl.constexpr(-(2**30))
# Largest number of elements that a program of `space_to_depth_kernel` copies.
_MAX_COPY_BLOCK = 1024


@triton.jit
def locate_pixels(first, PIXELS: tl.constexpr, WIDTH: tl.constexpr, BLOCK_SIZE: tl.constexpr):
    """Image (64 bits), row and column of `BLOCK_SIZE` pixels in reading order, from pixel `first` (64 bits) on."""
    pixel = (first % PIXELS).to(tl.int32) + tl.arange(0, BLOCK_SIZE)
    return first // PIXELS + pixel // PIXELS, pixel % PIXELS // WIDTH, pixel % WIDTH


@triton.jit
def locate_terms(first, taps_per_row, DEPTH: tl.constexpr, BLOCK_SIZE: tl.constexpr):
    """Tap row, tap column and depth of `BLOCK_SIZE` terms from term `first` on, which is a multiple of BLOCK_SIZE."""
    if DEPTH % BLOCK_SIZE == 0:
        # All terms belong to one tap, which is computed once. Written without %, because Triton knows no divisor of a
        # remainder, and loads would become narrow.
        tap = tl.zeros([BLOCK_SIZE], tl.int32) + first // DEPTH
        depth = first - first // DEPTH * DEPTH + tl.arange(0, BLOCK_SIZE)
    else:
        term = first + tl.arange(0, BLOCK_SIZE)
        tap = term // DEPTH
        depth = term % DEPTH
    return tap // taps_per_row, tap % taps_per_row, depth


@triton.jit
def in_range(index, LENGTH: tl.constexpr):
    """0 <= index < LENGTH, in one comparison."""
    return index.to(tl.uint32) < LENGTH


@triton.jit
def space_to_depth_kernel(
    x_ptr, out_ptr, CHANNELS: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, OUT_HEIGHT: tl.constexpr,
    OUT_WIDTH: tl.constexpr, STRIDE: tl.constexpr, TOP: tl.constexpr, LEFT: tl.constexpr, GROUPS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):  # fmt: skip
    """out[n, i, j, (group, dy, dx, channel)] = x[n, i * STRIDE + dy - TOP, j * STRIDE + dx - LEFT, (group, channel)].

    A program copies BLOCK_SIZE elements of one row of x, padded with zeros.
    """
    DEPTH: tl.constexpr = CHANNELS // GROUPS
    SQUARE: tl.constexpr = STRIDE * STRIDE * DEPTH
    LENGTH: tl.constexpr = OUT_WIDTH * STRIDE * CHANNELS
    BLOCKS: tl.constexpr = (LENGTH + BLOCK_SIZE - 1) // BLOCK_SIZE
    # Which elements of which padded row.
    program = tl.program_id(0)
    element = program % BLOCKS * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
    row = program // BLOCKS % (OUT_HEIGHT * STRIDE)
    image = (program // (BLOCKS * OUT_HEIGHT * STRIDE)).to(tl.int64)
    # Load them from x; the padding is zero.
    h = row - TOP
    end = tl.where(in_range(h, HEIGHT), (LEFT + WIDTH) * CHANNELS, 0)  # a row above or below x has no elements
    inside = (element >= LEFT * CHANNELS) & (element < end)
    x_row = x_ptr + image * (HEIGHT * WIDTH * CHANNELS) + h * (WIDTH * CHANNELS)
    values = tl.load(x_row + (element - LEFT * CHANNELS), mask=inside, other=0.0)
    # Where they belong within a square of STRIDE x STRIDE pixels.
    in_square = element % (STRIDE * CHANNELS)
    if GROUPS > 1:
        channel = in_square % CHANNELS
        in_square = channel // DEPTH * SQUARE + in_square // CHANNELS * DEPTH + channel % DEPTH
    out_row = (
        out_ptr + image * (OUT_HEIGHT * OUT_WIDTH * SQUARE * GROUPS) + row // STRIDE * (OUT_WIDTH * SQUARE * GROUPS)
    )
    offset = element // (STRIDE * CHANNELS) * (SQUARE * GROUPS) + row % STRIDE * (STRIDE * DEPTH) + in_square
    tl.store(out_row + offset, values, mask=element < LENGTH)


@triton.jit(do_not_specialize=["batch"])
def conv_fwd_kernel(
    x_ptr, weight_ptr, bias_ptr, y_ptr, batch, CHANNELS: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
    FILTERS: tl.constexpr, KERNEL_HEIGHT: tl.constexpr, KERNEL_WIDTH: tl.constexpr, OUT_HEIGHT: tl.constexpr,
    OUT_WIDTH: tl.constexpr, STRIDE: tl.constexpr, TOP: tl.constexpr, LEFT: tl.constexpr, GROUPS: tl.constexpr,
    WEIGHT_TERMS: tl.constexpr, HAS_BIAS: tl.constexpr, RELU: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """BLOCK_M pixels of y for BLOCK_N filters of one group. A filter has WEIGHT_TERMS terms in memory."""
    DEPTH: tl.constexpr = CHANNELS // GROUPS
    TERMS: tl.constexpr = KERNEL_HEIGHT * KERNEL_WIDTH * DEPTH
    GROUP_FILTERS: tl.constexpr = FILTERS // GROUPS
    FILTER_TILES: tl.constexpr = (GROUP_FILTERS + BLOCK_N - 1) // BLOCK_N
    # The tile. Neighbouring programs read the same pixels, because x is much larger than the weights.
    first = (tl.program_id(0) // FILTER_TILES).to(tl.int64) * BLOCK_M
    filter_ = tl.program_id(0) % FILTER_TILES * BLOCK_N + tl.arange(0, BLOCK_N)
    group = tl.program_id(1)
    image, row, column = locate_pixels(first, OUT_HEIGHT * OUT_WIDTH, OUT_WIDTH, BLOCK_M)
    exists = image < batch
    # The corner of each pixel's window in x; pixels behind the last image get one far above it.
    top, left = row * STRIDE - TOP, column * STRIDE - LEFT
    x_rows = x_ptr + image * (HEIGHT * WIDTH * CHANNELS) + (top * WIDTH + left) * CHANNELS + group * DEPTH
    top = tl.where(exists, top, _FAR_ABOVE)
    weight_columns = weight_ptr + (group * GROUP_FILTERS + filter_) * WEIGHT_TERMS
    # The product, BLOCK_K terms at a time.
    total = zero_accumulator(x_ptr, BLOCK_M, BLOCK_N)
    for start in range(0, TERMS, BLOCK_K):
        a, b, channel = locate_terms(start, KERNEL_WIDTH, DEPTH, BLOCK_K)
        h, w = top[:, None] + a[None, :], left[:, None] + b[None, :]
        term = start + tl.arange(0, BLOCK_K)
        inside = in_range(h, HEIGHT) & in_range(w, WIDTH)
        inside_weight = (filter_ < GROUP_FILTERS)[None, :]
        if TERMS % BLOCK_K != 0:
            inside &= (term < TERMS)[None, :]
            inside_weight &= (term < WEIGHT_TERMS)[:, None]
        x = tl.load(x_rows[:, None] + ((a * WIDTH + b) * CHANNELS + channel)[None, :], mask=inside, other=0.0)
        weight = tl.load(weight_columns[None, :] + term[:, None], mask=inside_weight, other=0.0)
        total = tl.dot(x, weight, total, input_precision=PRECISION, out_dtype=total.dtype)
    # Bias and ReLU; the comparison keeps NaN.
    if HAS_BIAS:
        bias = tl.load(bias_ptr + group * GROUP_FILTERS + filter_, mask=filter_ < GROUP_FILTERS, other=0.0)
        total += bias.to(total.dtype)[None, :]
    if RELU:
        total = tl.where(total <= 0.0, 0.0, total)
    y_rows = y_ptr + (first + tl.arange(0, BLOCK_M)) * FILTERS + group * GROUP_FILTERS
    tl.store(y_rows[:, None] + filter_[None, :], total, mask=exists[:, None] & (filter_ < GROUP_FILTERS)[None, :])


@triton.jit(do_not_specialize=["batch"])
def conv_bwd_data_kernel(
    grad_ptr, weight_ptr, grad_x_ptr, batch, CHANNELS: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
    FILTERS: tl.constexpr, KERNEL_HEIGHT: tl.constexpr, KERNEL_WIDTH: tl.constexpr, OUT_HEIGHT: tl.constexpr,
    OUT_WIDTH: tl.constexpr, STRIDE: tl.constexpr, TOP: tl.constexpr, LEFT: tl.constexpr, GROUPS: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """grad_x of BLOCK_M pixels of one phase in BLOCK_N channels of one group, from the gradient of z."""
    GROUP_CHANNELS: tl.constexpr = CHANNELS // GROUPS
    DEPTH: tl.constexpr = FILTERS // GROUPS
    CHANNEL_TILES: tl.constexpr = (GROUP_CHANNELS + BLOCK_N - 1) // BLOCK_N
    PHASE_HEIGHT: tl.constexpr = (HEIGHT + STRIDE - 1) // STRIDE
    PHASE_WIDTH: tl.constexpr = (WIDTH + STRIDE - 1) // STRIDE
    # The tile, of which neighbouring programs read the same gradients.
    phase = tl.program_id(0) % (STRIDE * STRIDE)
    tile = tl.program_id(0) // (STRIDE * STRIDE)
    first = (tile // CHANNEL_TILES).to(tl.int64) * BLOCK_M
    channel = tile % CHANNEL_TILES * BLOCK_N + tl.arange(0, BLOCK_N)
    group = tl.program_id(1)
    image, row, column = locate_pixels(first, PHASE_HEIGHT * PHASE_WIDTH, PHASE_WIDTH, BLOCK_M)
    h, w = row * STRIDE + phase // STRIDE, column * STRIDE + phase % STRIDE
    exists = (image < batch) & (h < HEIGHT) & (w < WIDTH)
    # Tap a of row h reads row (h + TOP - a) / STRIDE of z: taps first_a, first_a + STRIDE, ... read rows last_i,
    # last_i - 1, ...
    first_a, first_b = (phase // STRIDE + TOP) % STRIDE, (phase % STRIDE + LEFT) % STRIDE
    last_i, last_j = row + (phase // STRIDE + TOP) // STRIDE, column + (phase % STRIDE + LEFT) // STRIDE
    taps_per_row = (KERNEL_WIDTH - first_b + STRIDE - 1) // STRIDE
    terms = (KERNEL_HEIGHT - first_a + STRIDE - 1) // STRIDE * taps_per_row * DEPTH
    grad_rows = grad_ptr + image * (OUT_HEIGHT * OUT_WIDTH * FILTERS) + (last_i * OUT_WIDTH + last_j) * FILTERS
    last_i = tl.where(exists, last_i, _FAR_ABOVE)
    # The product, BLOCK_K terms at a time.
    total = zero_accumulator(grad_ptr, BLOCK_M, BLOCK_N)
    for start in range(0, terms, BLOCK_K):
        tap_row, tap_column, filter_ = locate_terms(start, taps_per_row, DEPTH, BLOCK_K)
        filter_ += group * DEPTH
        i, j = last_i[:, None] - tap_row[None, :], last_j[:, None] - tap_column[None, :]
        inside = in_range(i, OUT_HEIGHT) & in_range(j, OUT_WIDTH)
        inside_weight = (channel < GROUP_CHANNELS)[None, :]
        if DEPTH % BLOCK_K != 0:
            counts = start + tl.arange(0, BLOCK_K) < terms
            inside &= counts[None, :]
            inside_weight &= counts[:, None]
        offset = filter_ - (tap_row * OUT_WIDTH + tap_column) * FILTERS
        grad = tl.load(grad_rows[:, None] + offset[None, :], mask=inside, other=0.0)
        tap = (first_a + tap_row * STRIDE) * KERNEL_WIDTH + first_b + tap_column * STRIDE
        weight_rows = weight_ptr + (filter_ * (KERNEL_HEIGHT * KERNEL_WIDTH) + tap) * GROUP_CHANNELS
        weight = tl.load(weight_rows[:, None] + channel[None, :], mask=inside_weight, other=0.0)
        total = tl.dot(grad, weight, total, input_precision=PRECISION, out_dtype=total.dtype)
    x_rows = grad_x_ptr + image * (HEIGHT * WIDTH * CHANNELS) + (h * WIDTH + w) * CHANNELS + group * GROUP_CHANNELS
    tl.store(x_rows[:, None] + channel[None, :], total, mask=exists[:, None] & (channel < GROUP_CHANNELS)[None, :])


@triton.jit(do_not_specialize=["batch", "steps"])
def conv_bwd_weight_kernel(
    grad_ptr, x_ptr, part_ptr, batch, steps, CHANNELS: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
    FILTERS: tl.constexpr, KERNEL_HEIGHT: tl.constexpr, KERNEL_WIDTH: tl.constexpr, OUT_HEIGHT: tl.constexpr,
    OUT_WIDTH: tl.constexpr, STRIDE: tl.constexpr, TOP: tl.constexpr, LEFT: tl.constexpr, GROUPS: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Sums over one split, `steps * BLOCK_K` pixels of z, for BLOCK_M filters of one group and BLOCK_N terms."""
    DEPTH: tl.constexpr = CHANNELS // GROUPS
    TERMS: tl.constexpr = KERNEL_HEIGHT * KERNEL_WIDTH * DEPTH
    GROUP_FILTERS: tl.constexpr = FILTERS // GROUPS
    FILTER_TILES: tl.constexpr = (GROUP_FILTERS + BLOCK_M - 1) // BLOCK_M
    TERM_TILES: tl.constexpr = (TERMS + BLOCK_N - 1) // BLOCK_N
    # The split and the tile. Neighbouring programs read the same pixels.
    split = (tl.program_id(0) // (FILTER_TILES * TERM_TILES)).to(tl.int64)
    tile = tl.program_id(0) % (FILTER_TILES * TERM_TILES)
    filter_ = tile // TERM_TILES * BLOCK_M + tl.arange(0, BLOCK_M)
    start = tile % TERM_TILES * BLOCK_N
    group = tl.program_id(1)
    term = start + tl.arange(0, BLOCK_N)
    a, b, channel = locate_terms(start, KERNEL_WIDTH, DEPTH, BLOCK_N)
    x_columns = x_ptr + ((a * WIDTH + b) * CHANNELS + channel + group * DEPTH)
    grad_columns = grad_ptr + group * GROUP_FILTERS + filter_
    # The product, BLOCK_K pixels at a time.
    total = zero_accumulator(x_ptr, BLOCK_M, BLOCK_N)
    for step in range(steps):
        first = (split * steps + step) * BLOCK_K
        image, row, column = locate_pixels(first, OUT_HEIGHT * OUT_WIDTH, OUT_WIDTH, BLOCK_K)
        exists = image < batch
        grad_rows = (first + tl.arange(0, BLOCK_K)) * FILTERS
        grad_mask = exists[:, None] & (filter_ < GROUP_FILTERS)[None, :]
        grad = tl.load(grad_columns[None, :] + grad_rows[:, None], mask=grad_mask, other=0.0)
        top, left = row * STRIDE - TOP, column * STRIDE - LEFT
        h, w = top[:, None] + a[None, :], left[:, None] + b[None, :]
        inside = exists[:, None] & in_range(h, HEIGHT) & in_range(w, WIDTH) & (term < TERMS)[None, :]
        x_rows = image * (HEIGHT * WIDTH * CHANNELS) + (top * WIDTH + left) * CHANNELS
        x = tl.load(x_columns[None, :] + x_rows[:, None], mask=inside, other=0.0)
        total = tl.dot(tl.trans(grad), x, total, input_precision=PRECISION, out_dtype=total.dtype)
    part_rows = part_ptr + split * (FILTERS * TERMS) + (group * GROUP_FILTERS + filter_) * TERMS
    mask = (filter_ < GROUP_FILTERS)[:, None] & (term < TERMS)[None, :]
    tl.store(part_rows[:, None] + term[None, :], total, mask=mask)


def run_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, problem: Problem, relu: bool, settings: Settings,
    squares: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """y of channels_last x and weight, in channels_last. `squares` is x after space-to-depth if that exists already."""
    if settings.rearranged:
        x = space_to_depth(x, problem) if squares is None else squares
        weight, problem = _weight_space_to_depth(weight, problem), problem.rearranged()
    y = empty_channels_last((problem.batch, problem.filters, problem.out_height, problem.out_width), x)
    rows, columns, terms = problem.product("forward")
    weight = weight.permute(0, 2, 3, 1).reshape(problem.filters, terms)
    missing = -terms % (16 // x.element_size())
    if missing:
        # Pad each filter with zeros, so that each begins at a multiple of 16 bytes and is loaded 16 bytes at a time.
        weight = F.pad(weight, (0, missing))
    tiles = triton.cdiv(rows, settings.block_m) * triton.cdiv(columns, settings.block_n)
    with launch_settings.on_device_of(x):
        conv_fwd_kernel[(tiles, problem.groups)](
            x, weight, x if bias is None else bias, y, problem.batch, WEIGHT_TERMS=weight.shape[1],
            HAS_BIAS=bias is not None, RELU=relu, **_constants(problem, settings),
        )  # fmt: skip
    return y


def run_backward_data(grad: Tensor, weight: Tensor, problem: Problem, settings: Settings) -> Tensor:
    """The gradient of x from channels_last grad_z and weight, in channels_last."""
    grad_x = empty_channels_last((problem.batch, problem.channels, problem.height, problem.width), grad)
    rows, columns, _ = problem.product("data_gradient")
    tiles = triton.cdiv(rows, settings.block_m) * triton.cdiv(columns, settings.block_n)
    with launch_settings.on_device_of(grad):
        conv_bwd_data_kernel[(tiles * problem.stride**2, problem.groups)](
            grad, weight, grad_x, problem.batch, **_constants(problem, settings)
        )
    return grad_x


def run_backward_weight(
    grad: Tensor, x: Tensor, problem: Problem, settings: Settings, squares: Tensor | None = None
) -> Tensor:
    """The gradient of the weight from channels_last grad_z and x, in channels_last. `squares` as in `run_forward`."""
    if settings.rearranged:
        x = space_to_depth(x, problem) if squares is None else squares
        settings = dataclasses.replace(settings, rearranged=False)
        return _weight_depth_to_space(run_backward_weight(grad, x, problem.rearranged(), settings), problem)
    shape = (problem.filters, problem.channels // problem.groups, *problem.kernel)
    grad_weight = empty_channels_last(shape, x)
    rows, columns, terms = problem.product("weight_gradient")
    tiles = triton.cdiv(rows, settings.block_m) * triton.cdiv(columns, settings.block_n)
    steps = triton.cdiv(triton.cdiv(terms, settings.block_k), settings.splits)
    parts = grad_weight if settings.splits == 1 else empty_parts(settings.splits, grad_weight.numel(), x)
    with launch_settings.on_device_of(x):
        conv_bwd_weight_kernel[(tiles * settings.splits, problem.groups)](
            grad, x, parts, problem.batch, steps, **_constants(problem, settings)
        )
    if settings.splits > 1:
        sum_parts(parts, grad_weight)
    return grad_weight


def _constants(problem: Problem, settings: Settings) -> dict[str, Any]:
    """The constants and launch options that the three products' kernels have in common."""
    return launch_settings.OPTIONS | {
        "CHANNELS": problem.channels, "HEIGHT": problem.height, "WIDTH": problem.width,
        "FILTERS": problem.filters, "KERNEL_HEIGHT": problem.kernel[0], "KERNEL_WIDTH": problem.kernel[1],
        "OUT_HEIGHT": problem.out_height, "OUT_WIDTH": problem.out_width, "STRIDE": problem.stride,
        "TOP": problem.padding[0], "LEFT": problem.padding[2], "GROUPS": problem.groups,
        "PRECISION": problem.precision, "BLOCK_M": settings.block_m, "BLOCK_N": settings.block_n,
        "BLOCK_K": settings.block_k, "num_warps": settings.num_warps, "num_stages": settings.num_stages,
    }  # fmt: skip


def empty_channels_last(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """An uninitialised channels_last tensor with the dtype and device of `like`."""
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def space_to_depth(x: Tensor, problem: Problem) -> Tensor:
    """The x of `problem.rearranged()`: N x groups * stride^2 * depth x H' x W', in channels_last."""
    new = problem.rearranged()
    out = empty_channels_last((problem.batch, new.channels, new.height, new.width), x)
    length = new.width * problem.stride * problem.channels
    block_size = min(_MAX_COPY_BLOCK, triton.next_power_of_2(length))
    with launch_settings.on_device_of(x):
        space_to_depth_kernel[(problem.batch * new.height * problem.stride * triton.cdiv(length, block_size),)](
            x, out, CHANNELS=problem.channels, HEIGHT=problem.height, WIDTH=problem.width, OUT_HEIGHT=new.height,
            OUT_WIDTH=new.width, STRIDE=problem.stride, TOP=problem.padding[0], LEFT=problem.padding[2],
            GROUPS=problem.groups, BLOCK_SIZE=block_size, **launch_settings.OPTIONS,
        )  # fmt: skip
    return out


def _weight_space_to_depth(weight: Tensor, problem: Problem) -> Tensor:
    """The weight of `problem.rearranged()`, in channels_last."""
    stride, (height, width) = problem.stride, problem.rearranged().kernel
    filters, depth = weight.shape[:2]
    missing = (0, width * stride - weight.shape[3], 0, height * stride - weight.shape[2])
    squares = F.pad(weight, missing).reshape(filters, depth, height, stride, width, stride)
    # Rows and columns of squares, then each square's rows, columns and channels.
    flat = squares.permute(0, 2, 4, 3, 5, 1).reshape(filters, height, width, stride * stride * depth)
    return flat.permute(0, 3, 1, 2)


def _weight_depth_to_space(weight: Tensor, problem: Problem) -> Tensor:
    """The inverse of `_weight_space_to_depth`, without the zero padding; in channels_last."""
    stride, (height, width) = problem.stride, problem.rearranged().kernel
    filters, depth = weight.shape[0], problem.channels // problem.groups
    squares = weight.permute(0, 2, 3, 1).reshape(filters, height, width, stride, stride, depth)
    padded = squares.permute(0, 5, 1, 3, 2, 4).reshape(filters, depth, height * stride, width * stride)
    return dense_as(padded[:, :, : problem.kernel[0], : problem.kernel[1]], True)

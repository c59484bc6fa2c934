"""Convolution, bias and ReLU.

    z[n, o, i, j] = bias[o] + sum over c, a, b of weight[o, c, a, b] * x[n, c, i * stride - top + a, ...]
    y = relu(z)

    grad_z = grad_y where y > 0, else 0             grad_bias[o] = sum over n, i, j of grad_z[n, o, i, j]
    grad_x[n, c, h, w]      = sum over o, a, b of weight[o, c, a, b] * grad_z[n, o, (h + top - a) / stride, ...]
    grad_weight[o, c, a, b] = sum over n, i, j of grad_z[n, o, i, j] * x[n, c, i * stride - top + a, ...]

(for columns alike; what lies outside of x or z is 0).

Each of the three is a product of two matrices that exist only as tiles (implicit GEMM), gathered from channels_last
tensors, where the terms of a tap lie next to each other:

    forward            pixels of y x filters          over (a, b, c) flattened
    data gradient      pixels of x x channels         over (a, b, o) flattened, taps that meet a multiple of the stride
    weight gradient    filters x (a, b, c) flattened  over the pixels of y, cut into splits

Terms are flattened because a step per tap would often fill a part of a matrix instruction only. The first layer's 3
channels are also loaded 2 bytes at a time. Where settings say so, squares of stride x stride pixels are laid into
channels first (space to depth): 4 x 4 pixels of 3 channels make 48, loaded 16 bytes at a time, for 19 % more terms and
a pass over the images, in backward once more.

Pixels of x whose rows and columns are congruent modulo the stride meet the same taps, so a program of the data gradient
takes pixels of one such phase and visits no tap in vain. The splits of a weight gradient are summed by a second kernel,
in a fixed order.

Backward keeps x, weight and, for the ReLU's sign, y. One pass over grad_y and y writes grad_z and sums the bias
gradient; masking inside the two products would read y once for every tap.

Where nothing says that these kernels are faster (see `kernels.conv_settings`), cuDNN computes the products, and only
what it leaves out is computed here: bias and ReLU in place, and the pass over grad_y and y.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from kernels import arguments, conv_settings, dispatch, launch, native, reference
from kernels.autograd import no_double_backward
from kernels.conv_settings import Direction, Problem, Settings
from kernels.gradient_sink import GradientSink
from kernels.memory_format import dense_as, empty_as, is_channels_last
from kernels.vector_lanes import wide

# A row that no tap brings back into an image.
_FAR = tl.constexpr(-(2**30))


@triton.jit
def locate_pixels(first, PIXELS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Image (64 bits), row and column of `BLOCK` pixels, in reading order from pixel `first` (64 bits) of the batch."""
    pixel = (first % PIXELS).to(tl.int32) + tl.arange(0, BLOCK)
    return first // PIXELS + pixel // PIXELS, pixel % PIXELS // WIDTH, pixel % WIDTH


@triton.jit
def locate_terms(first, taps_wide, DEPTH: tl.constexpr, BLOCK: tl.constexpr):
    """Tap row, tap column and depth of `BLOCK` terms from number `first` on, which is a multiple of BLOCK."""
    if DEPTH % BLOCK == 0:
        # One tap for all of them, computed once. Written without %, whose result Triton knows no divisor of, and loads
        # would be narrow.
        tap = tl.zeros([BLOCK], tl.int32) + first // DEPTH
        depth = first - first // DEPTH * DEPTH + tl.arange(0, BLOCK)
    else:
        term = first + tl.arange(0, BLOCK)
        tap = term // DEPTH
        depth = term % DEPTH
    return tap // taps_wide, tap % taps_wide, depth


@triton.jit
def within(position, LENGTH: tl.constexpr):
    """0 <= position < LENGTH, in one comparison."""
    return position.to(tl.uint32) < LENGTH


@triton.jit
def zeros_like_products(ptr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Zeros to add up products of what `ptr` points to: fp64 for fp64, fp32 for the rest."""
    if ptr.dtype.element_ty == tl.float64:
        return tl.zeros([ROWS, COLUMNS], tl.float64)
    else:
        return tl.zeros([ROWS, COLUMNS], tl.float32)


@triton.jit
def space_to_depth_kernel(
    x_ptr, out_ptr, CHANNELS: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, OUT_HEIGHT: tl.constexpr,
    OUT_WIDTH: tl.constexpr, STRIDE: tl.constexpr, TOP: tl.constexpr, LEFT: tl.constexpr, GROUPS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """out[n, i, j, (group, dy, dx, channel)] = x[n, i * STRIDE + dy - TOP, j * STRIDE + dx - LEFT, (group, channel)].

    A program takes BLOCK elements of one row of x, and of rows and columns of zeros around it.
    """
    DEPTH: tl.constexpr = CHANNELS // GROUPS
    SQUARE: tl.constexpr = STRIDE * STRIDE * DEPTH
    LENGTH: tl.constexpr = OUT_WIDTH * STRIDE * CHANNELS
    BLOCKS: tl.constexpr = (LENGTH + BLOCK - 1) // BLOCK
    program = tl.program_id(0)
    place = program % BLOCKS * BLOCK + tl.arange(0, BLOCK)
    row = program // BLOCKS % (OUT_HEIGHT * STRIDE)
    image = (program // (BLOCKS * OUT_HEIGHT * STRIDE)).to(tl.int64)
    h = row - TOP
    inside = within(h, HEIGHT) & (place >= LEFT * CHANNELS) & (place < (LEFT + WIDTH) * CHANNELS)
    x_row = x_ptr + image * (HEIGHT * WIDTH * CHANNELS) + h * (WIDTH * CHANNELS)
    values = tl.load(x_row + (place - LEFT * CHANNELS), mask=inside, other=0.0)
    rest = place % (STRIDE * CHANNELS)
    if GROUPS > 1:
        channel = rest % CHANNELS
        rest = channel // DEPTH * SQUARE + rest // CHANNELS * DEPTH + channel % DEPTH
    out_row = (
        out_ptr + image * (OUT_HEIGHT * OUT_WIDTH * SQUARE * GROUPS) + row // STRIDE * (OUT_WIDTH * SQUARE * GROUPS)
    )
    offset = place // (STRIDE * CHANNELS) * (SQUARE * GROUPS) + row % STRIDE * (STRIDE * DEPTH) + rest
    tl.store(out_row + offset, values, mask=place < LENGTH)


@triton.jit(do_not_specialize=["batch"])
def conv_fwd_kernel(
    x_ptr, weight_ptr, bias_ptr, y_ptr, batch, CHANNELS: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
    FILTERS: tl.constexpr, KERNEL_HEIGHT: tl.constexpr, KERNEL_WIDTH: tl.constexpr, OUT_HEIGHT: tl.constexpr,
    OUT_WIDTH: tl.constexpr, STRIDE: tl.constexpr, TOP: tl.constexpr, LEFT: tl.constexpr, GROUPS: tl.constexpr,
    WEIGHT_TERMS: tl.constexpr, HAS_BIAS: tl.constexpr, RELU: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """BLOCK_M pixels of y for BLOCK_N filters of one group, whose rows in memory hold WEIGHT_TERMS terms."""
    DEPTH: tl.constexpr = CHANNELS // GROUPS
    TERMS: tl.constexpr = KERNEL_HEIGHT * KERNEL_WIDTH * DEPTH
    GROUP_FILTERS: tl.constexpr = FILTERS // GROUPS
    FILTER_TILES: tl.constexpr = (GROUP_FILTERS + BLOCK_N - 1) // BLOCK_N
    # Neighbouring programs share pixels, as x is much larger than the weights.
    first = (tl.program_id(0) // FILTER_TILES).to(tl.int64) * BLOCK_M
    filter_ = tl.program_id(0) % FILTER_TILES * BLOCK_N + tl.arange(0, BLOCK_N)
    group = tl.program_id(1)
    image, row, column = locate_pixels(first, OUT_HEIGHT * OUT_WIDTH, OUT_WIDTH, BLOCK_M)
    exists = image < batch
    top, left = row * STRIDE - TOP, column * STRIDE - LEFT
    x_rows = x_ptr + image * (HEIGHT * WIDTH * CHANNELS) + (top * WIDTH + left) * CHANNELS + group * DEPTH
    # A pixel behind the last image is far above it.
    top = tl.where(exists, top, _FAR)
    weight_columns = weight_ptr + (group * GROUP_FILTERS + filter_) * WEIGHT_TERMS
    total = zeros_like_products(x_ptr, BLOCK_M, BLOCK_N)
    for start in range(0, TERMS, BLOCK_K):
        a, b, channel = locate_terms(start, KERNEL_WIDTH, DEPTH, BLOCK_K)
        h, w = top[:, None] + a[None, :], left[:, None] + b[None, :]
        term = start + tl.arange(0, BLOCK_K)
        inside = within(h, HEIGHT) & within(w, WIDTH)
        inside_weight = (filter_ < GROUP_FILTERS)[None, :]
        if TERMS % BLOCK_K != 0:
            inside &= (term < TERMS)[None, :]
            inside_weight &= (term < WEIGHT_TERMS)[:, None]
        x = tl.load(x_rows[:, None] + ((a * WIDTH + b) * CHANNELS + channel)[None, :], mask=inside, other=0.0)
        weight = tl.load(weight_columns[None, :] + term[:, None], mask=inside_weight, other=0.0)
        total = tl.dot(x, weight, total, input_precision=PRECISION, out_dtype=total.dtype)
    if HAS_BIAS:
        bias = tl.load(bias_ptr + group * GROUP_FILTERS + filter_, mask=filter_ < GROUP_FILTERS, other=0.0)
        total += bias.to(total.dtype)[None, :]
    if RELU:
        # Written so that a NaN stays one.
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
    # Neighbouring programs share gradients.
    phase = tl.program_id(0) % (STRIDE * STRIDE)
    tile = tl.program_id(0) // (STRIDE * STRIDE)
    first = (tile // CHANNEL_TILES).to(tl.int64) * BLOCK_M
    channel = tile % CHANNEL_TILES * BLOCK_N + tl.arange(0, BLOCK_N)
    group = tl.program_id(1)
    image, row, column = locate_pixels(first, PHASE_HEIGHT * PHASE_WIDTH, PHASE_WIDTH, BLOCK_M)
    h, w = row * STRIDE + phase // STRIDE, column * STRIDE + phase % STRIDE
    exists = (image < batch) & (h < HEIGHT) & (w < WIDTH)
    # Pixel h meets tap a in row (h + TOP - a) / STRIDE of z: taps first_a, first_a + STRIDE, ... in rows last_i, ...
    first_a, first_b = (phase // STRIDE + TOP) % STRIDE, (phase % STRIDE + LEFT) % STRIDE
    last_i, last_j = row + (phase // STRIDE + TOP) // STRIDE, column + (phase % STRIDE + LEFT) // STRIDE
    taps_wide = (KERNEL_WIDTH - first_b + STRIDE - 1) // STRIDE
    terms = (KERNEL_HEIGHT - first_a + STRIDE - 1) // STRIDE * taps_wide * DEPTH
    grad_rows = grad_ptr + image * (OUT_HEIGHT * OUT_WIDTH * FILTERS) + (last_i * OUT_WIDTH + last_j) * FILTERS
    last_i = tl.where(exists, last_i, _FAR)
    total = zeros_like_products(grad_ptr, BLOCK_M, BLOCK_N)
    for start in range(0, terms, BLOCK_K):
        up, aside, filter_ = locate_terms(start, taps_wide, DEPTH, BLOCK_K)
        filter_ += group * DEPTH
        i, j = last_i[:, None] - up[None, :], last_j[:, None] - aside[None, :]
        inside = within(i, OUT_HEIGHT) & within(j, OUT_WIDTH)
        inside_weight = (channel < GROUP_CHANNELS)[None, :]
        if DEPTH % BLOCK_K != 0:
            counts = start + tl.arange(0, BLOCK_K) < terms
            inside &= counts[None, :]
            inside_weight &= counts[:, None]
        offset = filter_ - (up * OUT_WIDTH + aside) * FILTERS
        grad = tl.load(grad_rows[:, None] + offset[None, :], mask=inside, other=0.0)
        tap = (first_a + up * STRIDE) * KERNEL_WIDTH + first_b + aside * STRIDE
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
    # Neighbouring programs share pixels.
    split = (tl.program_id(0) // (FILTER_TILES * TERM_TILES)).to(tl.int64)
    tile = tl.program_id(0) % (FILTER_TILES * TERM_TILES)
    filter_ = tile // TERM_TILES * BLOCK_M + tl.arange(0, BLOCK_M)
    start = tile % TERM_TILES * BLOCK_N
    group = tl.program_id(1)
    term = start + tl.arange(0, BLOCK_N)
    a, b, channel = locate_terms(start, KERNEL_WIDTH, DEPTH, BLOCK_N)
    x_columns = x_ptr + ((a * WIDTH + b) * CHANNELS + channel + group * DEPTH)
    grad_columns = grad_ptr + group * GROUP_FILTERS + filter_
    total = zeros_like_products(x_ptr, BLOCK_M, BLOCK_N)
    for step in range(steps):
        first = (split * steps + step) * BLOCK_K
        image, row, column = locate_pixels(first, OUT_HEIGHT * OUT_WIDTH, OUT_WIDTH, BLOCK_K)
        exists = image < batch
        grad_rows = (first + tl.arange(0, BLOCK_K)) * FILTERS
        grad = tl.load(
            grad_columns[None, :] + grad_rows[:, None],
            mask=exists[:, None] & (filter_ < GROUP_FILTERS)[None, :],
            other=0.0,
        )
        top, left = row * STRIDE - TOP, column * STRIDE - LEFT
        h, w = top[:, None] + a[None, :], left[:, None] + b[None, :]
        inside = exists[:, None] & within(h, HEIGHT) & within(w, WIDTH) & (term < TERMS)[None, :]
        x_rows = image * (HEIGHT * WIDTH * CHANNELS) + (top * WIDTH + left) * CHANNELS
        x = tl.load(x_columns[None, :] + x_rows[:, None], mask=inside, other=0.0)
        total = tl.dot(tl.trans(grad), x, total, input_precision=PRECISION, out_dtype=total.dtype)
    part_rows = part_ptr + split * (FILTERS * TERMS) + (group * GROUP_FILTERS + filter_) * TERMS
    tl.store(
        part_rows[:, None] + term[None, :], total, mask=(filter_ < GROUP_FILTERS)[:, None] & (term < TERMS)[None, :]
    )


@triton.jit(do_not_specialize=["parts"])
def sum_parts_kernel(part_ptr, total_ptr, parts, length, PARTS: tl.constexpr, BLOCK: tl.constexpr):
    """total[i] = sum over p of part[p, i], for `BLOCK` of `length` sums, PARTS parts at a time."""
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], part_ptr.dtype.element_ty)
    for start in range(0, parts, PARTS):
        part = start + tl.arange(0, PARTS)
        mask = (part < parts)[:, None] & (place < length)[None, :]
        values = tl.load(part_ptr + part.to(tl.int64)[:, None] * length + place[None, :], mask=mask, other=0.0)
        total += tl.sum(values, axis=0)
    tl.store(total_ptr + place, total, mask=place < length)


@triton.jit(do_not_specialize=["rows"])
def bias_relu_fwd_kernel(
    y_ptr, bias_ptr, rows, FILTERS: tl.constexpr, HAS_BIAS: tl.constexpr, RELU: tl.constexpr, ITEMS: tl.constexpr,
    VECTOR: tl.constexpr,
):  # fmt: skip
    """y = relu(y + bias) in place, for rows x FILTERS."""
    VECTORS: tl.constexpr = FILTERS // VECTOR
    first = tl.program_id(0).to(tl.int64) * ITEMS
    item = tl.arange(0, ITEMS)
    lane = tl.arange(0, VECTOR)[None, :]
    mask = (first + item < rows.to(tl.int64) * VECTORS)[:, None]
    places = y_ptr + first * VECTOR + (item[:, None] * VECTOR + lane)
    value = wide(tl.load(places, mask=mask, other=0.0))
    if HAS_BIAS:
        channel = ((first % VECTORS).to(tl.int32) + item) % VECTORS * VECTOR
        value += tl.load(bias_ptr + channel[:, None] + lane).to(value.dtype)
    if RELU:
        # Written so that a NaN stays one.
        value = tl.where(value <= 0.0, 0.0, value)
    tl.store(places, value, mask=mask)


@triton.jit(do_not_specialize=["rows", "steps"])
def bias_relu_bwd_kernel(
    grad_ptr, y_ptr, grad_z_ptr, part_ptr, rows, steps, FILTERS: tl.constexpr, RELU: tl.constexpr,
    SUM: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """grad_z of `steps * ROWS` rows of FILTERS, with RELU, and with SUM the sums over these rows, for BLOCK filters."""
    TILES: tl.constexpr = (FILTERS + BLOCK - 1) // BLOCK
    filter_ = tl.program_id(0) % TILES * BLOCK + tl.arange(0, BLOCK)[None, :]
    share = (tl.program_id(0) // TILES).to(tl.int64)
    total = zeros_like_products(grad_ptr, ROWS, BLOCK)
    for step in range(steps):
        row = (share * steps + step) * ROWS + tl.arange(0, ROWS)[:, None]
        offset = row * FILTERS + filter_
        mask = (row < rows) & (filter_ < FILTERS)
        grad = tl.load(grad_ptr + offset, mask=mask, other=0.0)
        if RELU:
            y = tl.load(y_ptr + offset, mask=mask, other=0.0)
            grad = tl.where(y <= 0.0, 0.0, grad)
            tl.store(grad_z_ptr + offset, grad, mask=mask)
        if SUM:
            total += wide(grad)
    if SUM:
        sums = tl.sum(total, axis=0)[None, :]
        tl.store(part_ptr + share * FILTERS + filter_, sums, mask=filter_ < FILTERS)


# Rows and filters that a program of `bias_relu_bwd_kernel` takes at a time, two items of 16 bytes a thread; and how
# many programs along the rows, which is how many parts each sum has.
_ROWS, _FILTERS, _SHARES = 32, 64, 256
# Parts and sums that a program of `sum_parts_kernel` takes at a time; where the sums are few, so would be the programs.
_PARTS, _SUMS = 16, 64
_FEW, _PARTS_OF_FEW, _SUMS_OF_FEW = 8192, 128, 16
# Elements that a program of `space_to_depth_kernel` takes, at most.
_PLACES = 1024


def _constants(problem: Problem, settings: Settings) -> dict[str, Any]:
    """What the three products' kernels have in common."""
    return {
        "CHANNELS": problem.channels,
        "HEIGHT": problem.height,
        "WIDTH": problem.width,
        "FILTERS": problem.filters,
        "KERNEL_HEIGHT": problem.kernel[0],
        "KERNEL_WIDTH": problem.kernel[1],
        "OUT_HEIGHT": problem.out_height,
        "OUT_WIDTH": problem.out_width,
        "STRIDE": problem.stride,
        "TOP": problem.padding[0],
        "LEFT": problem.padding[2],
        "GROUPS": problem.groups,
        "PRECISION": problem.precision,
        "BLOCK_M": settings.block_m,
        "BLOCK_N": settings.block_n,
        "BLOCK_K": settings.block_k,
        **launch.OPTIONS,
        "num_warps": settings.num_warps,
        "num_stages": settings.num_stages,
    }


def _channels_last(shape: tuple[int, ...], like: Tensor) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def _out_shape(problem: Problem) -> tuple[int, int, int, int]:
    return problem.batch, problem.filters, problem.out_height, problem.out_width


def _space_to_depth(x: Tensor, problem: Problem) -> Tensor:
    """The x of `problem.rearranged()`: N x groups * stride^2 * depth x H' x W'."""
    other = problem.rearranged()
    out = _channels_last((problem.batch, other.channels, other.height, other.width), x)
    length = other.width * problem.stride * problem.channels
    block = min(_PLACES, triton.next_power_of_2(length))
    with launch.on(x):
        space_to_depth_kernel[(problem.batch * other.height * problem.stride * triton.cdiv(length, block),)](
            x,
            out,
            CHANNELS=problem.channels,
            HEIGHT=problem.height,
            WIDTH=problem.width,
            OUT_HEIGHT=other.height,
            OUT_WIDTH=other.width,
            STRIDE=problem.stride,
            TOP=problem.padding[0],
            LEFT=problem.padding[2],
            GROUPS=problem.groups,
            BLOCK=block,
            **launch.OPTIONS,
        )
    return out


def _weight_space_to_depth(weight: Tensor, problem: Problem) -> Tensor:
    """The weight of `problem.rearranged()`, in channels_last."""
    stride, (height, width) = problem.stride, problem.rearranged().kernel
    filters, depth = weight.shape[:2]
    missing = (0, width * stride - weight.shape[3], 0, height * stride - weight.shape[2])
    squares = F.pad(weight, missing).reshape(filters, depth, height, stride, width, stride)
    # A filter's rows and columns of squares, then a square's rows, columns and channels.
    flat = squares.permute(0, 2, 4, 3, 5, 1).reshape(filters, height, width, stride * stride * depth)
    return flat.permute(0, 3, 1, 2)


def _weight_depth_to_space(weight: Tensor, problem: Problem) -> Tensor:
    """The inverse, without the zeros that were added; in channels_last."""
    stride, (height, width) = problem.stride, problem.rearranged().kernel
    filters, depth = weight.shape[0], problem.channels // problem.groups
    squares = weight.permute(0, 2, 3, 1).reshape(filters, height, width, stride, stride, depth)
    whole = squares.permute(0, 5, 1, 3, 2, 4).reshape(filters, depth, height * stride, width * stride)
    return dense_as(whole[:, :, : problem.kernel[0], : problem.kernel[1]], True)


def _run_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, problem: Problem, relu: bool, settings: Settings
) -> Tensor:
    if settings.rearranged:
        x, weight, problem = _space_to_depth(x, problem), _weight_space_to_depth(weight, problem), problem.rearranged()
    y = _channels_last(_out_shape(problem), x)
    rows, columns, terms = problem.product("forward")
    weight = weight.permute(0, 2, 3, 1).reshape(problem.filters, terms)
    missing = -terms % (16 // x.element_size())
    if missing:
        # Zeros behind each filter's terms: a row that begins at a multiple of 16 bytes is loaded so much at a time.
        weight = F.pad(weight, (0, missing))
    tiles = triton.cdiv(rows, settings.block_m) * triton.cdiv(columns, settings.block_n)
    with launch.on(x):
        conv_fwd_kernel[(tiles, problem.groups)](
            x,
            weight,
            x if bias is None else bias,
            y,
            problem.batch,
            WEIGHT_TERMS=weight.shape[1],
            HAS_BIAS=bias is not None,
            RELU=relu,
            **_constants(problem, settings),
        )
    return y


def _run_backward_data(grad: Tensor, weight: Tensor, problem: Problem, settings: Settings) -> Tensor:
    grad_x = _channels_last((problem.batch, problem.channels, problem.height, problem.width), grad)
    rows, columns, _ = problem.product("data_gradient")
    tiles = triton.cdiv(rows, settings.block_m) * triton.cdiv(columns, settings.block_n)
    with launch.on(grad):
        conv_bwd_data_kernel[(tiles * problem.stride**2, problem.groups)](
            grad, weight, grad_x, problem.batch, **_constants(problem, settings)
        )
    return grad_x


def _run_backward_weight(grad: Tensor, x: Tensor, problem: Problem, settings: Settings) -> Tensor:
    if settings.rearranged:
        x, plain = _space_to_depth(x, problem), dataclasses.replace(settings, rearranged=False)
        return _weight_depth_to_space(_run_backward_weight(grad, x, problem.rearranged(), plain), problem)
    shape = (problem.filters, problem.channels // problem.groups, *problem.kernel)
    grad_weight = _channels_last(shape, x)
    rows, columns, terms = problem.product("weight_gradient")
    tiles = triton.cdiv(rows, settings.block_m) * triton.cdiv(columns, settings.block_n)
    steps = triton.cdiv(triton.cdiv(terms, settings.block_k), settings.splits)
    whole = settings.splits == 1
    parts = grad_weight if whole else _parts(settings.splits, grad_weight.numel(), x)
    with launch.on(x):
        conv_bwd_weight_kernel[(tiles * settings.splits, problem.groups)](
            grad, x, parts, problem.batch, steps, **_constants(problem, settings)
        )
    if not whole:
        _sum_parts(parts, grad_weight)
    return grad_weight


def _parts(parts: int, length: int, like: Tensor) -> Tensor:
    work = torch.float64 if like.dtype == torch.float64 else torch.float32
    return torch.empty((parts, length), dtype=work, device=like.device)


def _sum_parts(parts: Tensor, total: Tensor) -> None:
    count, length = parts.shape
    at_once, block = (_PARTS_OF_FEW, _SUMS_OF_FEW) if length <= _FEW else (_PARTS, _SUMS)
    with launch.on(parts):
        sum_parts_kernel[(triton.cdiv(length, block),)](
            parts, total, count, length, PARTS=at_once, BLOCK=block, **launch.OPTIONS
        )


def _run_bias_relu(y: Tensor, bias: Tensor | None, relu: bool) -> None:
    """In place, on a channels_last tensor."""
    batch, filters, height, width = y.shape
    rows = batch * height * width
    vector = launch.vector_width(filters, y.element_size())
    with launch.on(y):
        bias_relu_fwd_kernel[(launch.blocks(rows * (filters // vector)),)](
            y,
            y if bias is None else bias,
            rows,
            FILTERS=filters,
            HAS_BIAS=bias is not None,
            RELU=relu,
            ITEMS=launch.ITEMS,
            VECTOR=vector,
            **launch.OPTIONS,
        )


def sum_over_pixels(grad: Tensor, dtype: torch.dtype) -> Tensor:
    """Each channel's sum over images and pixels of a channels_last tensor, in fp32 or fp64 and in a fixed order."""
    return _run_bias_relu_backward(grad, None, True, dtype)[1]


def _run_bias_relu_backward(
    grad: Tensor, y: Tensor | None, needs_bias: bool, bias_dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The gradients of z, which is `grad` itself without a ReLU, and of the bias, empty where it is not needed."""
    batch, filters, height, width = grad.shape
    rows = batch * height * width
    grad_z = grad if y is None else torch.empty_like(grad)
    grad_bias = torch.empty(filters if needs_bias else 0, dtype=bias_dtype, device=grad.device)
    steps = triton.cdiv(triton.cdiv(rows, _ROWS), _SHARES)
    shares = triton.cdiv(rows, _ROWS * steps)
    parts = _parts(shares, grad_bias.numel(), grad)
    with launch.on(grad):
        bias_relu_bwd_kernel[(shares * triton.cdiv(filters, _FILTERS),)](
            grad,
            grad if y is None else y,
            grad_z,
            parts,
            rows,
            steps,
            FILTERS=filters,
            RELU=y is not None,
            SUM=needs_bias,
            ROWS=_ROWS,
            BLOCK=_FILTERS,
            **launch.OPTIONS,
        )
    if needs_bias:
        _sum_parts(parts, grad_bias)
    return grad_z, grad_bias


def _padded(x: Tensor, problem: Problem) -> tuple[Tensor, tuple[int, int]]:
    """x and the symmetric padding that PyTorch's convolution is to add to it."""
    top, bottom, left, right = problem.padding
    if top == bottom and left == right:
        return x, (top, left)
    return dense_as(F.pad(x, (left, right, top, bottom)), True), (0, 0)


def _library_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, problem: Problem, relu: bool
) -> Tensor:  # fmt: skip
    x, padding = _padded(x, problem)
    y = dense_as(F.conv2d(x, weight, None, problem.stride, padding, 1, problem.groups), True)
    if bias is not None or relu:
        _run_bias_relu(y, bias, relu)
    return y


def _library_backward(grad: Tensor, x: Tensor | None, weight: Tensor, problem: Problem, direction: Direction) -> Tensor:
    """The gradient of x, which needs no x, or that of the weight, which needs only the weight's shape."""
    data = direction == "data_gradient"
    if data:
        # PyTorch wants to be shown a tensor of x's shape.
        x = _channels_last((problem.batch, problem.channels, problem.height, problem.width), grad)
    assert x is not None
    x, padding = _padded(x, problem)
    grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
        grad, x, weight, None, [problem.stride] * 2, padding, [1, 1], False, [0, 0], problem.groups,
        [data, not data, False],
    )  # fmt: skip
    if not data:
        return grad_weight
    top, left = problem.padding[0] - padding[0], problem.padding[2] - padding[1]
    return grad_x[:, :, top : top + problem.height, left : left + problem.width]


def _product(direction: Direction, grad: Tensor, x: Tensor, weight: Tensor, problem: Problem, forced: bool) -> Tensor:
    """One of the two gradients, in channels_last."""
    settings = conv_settings.choose(direction, problem, conv_settings.gpu_of(x), forced)
    if settings is None:
        return _library_backward(grad, x, weight, problem, direction)
    if direction == "data_gradient":
        return _run_backward_data(grad, weight, problem, settings)
    return _run_backward_weight(grad, x, problem, settings)


@torch.library.custom_op("fastalex::conv_relu_forward", mutates_args=())
def _forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: Sequence[int],
    groups: int,
    relu: bool,
    forced: bool,
) -> Tensor:
    """y in x's layout. `padding` has four sides; `forced` takes the Triton kernels even where cuDNN may be faster."""
    problem = conv_settings.problem_of(x, weight, stride, padding, groups, relu or bias is not None)
    _check_offsets(problem)
    settings = conv_settings.choose("forward", problem, conv_settings.gpu_of(x), forced)
    channels_last = is_channels_last(x)
    x, weight = dense_as(x, True), dense_as(weight, True)
    bias = None if bias is None else bias.contiguous()
    if settings is None:
        y = _library_forward(x, weight, bias, problem, relu)
    else:
        y = _run_forward(x, weight, bias, problem, relu, settings)
    return dense_as(y, channels_last)


@_forward.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: Sequence[int],
    groups: int,
    relu: bool,
    forced: bool,
) -> Tensor:
    return empty_as(x, _out_shape(conv_settings.problem_of(x, weight, stride, padding, groups)))


@torch.library.custom_op("fastalex::conv_relu_backward", mutates_args=())
def _backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    y: Tensor | None,
    stride: int,
    padding: Sequence[int],
    groups: int,
    needs: Sequence[bool],
    forced: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias, those that `needs` names; the others are empty. `y` is None without a ReLU."""
    problem = conv_settings.problem_of(x, weight, stride, padding, groups)
    _check_offsets(problem)
    needs_x, needs_weight, needs_bias = needs
    layouts = is_channels_last(x), is_channels_last(weight)
    grad, x, weight = dense_as(grad, True), dense_as(x, True), dense_as(weight, True)
    grad_x = grad_weight = grad_bias = None
    if y is not None or needs_bias:
        y = None if y is None else dense_as(y, True)
        grad, grad_bias = _run_bias_relu_backward(grad, y, needs_bias, x.dtype)
    if needs_x:
        grad_x = dense_as(_product("data_gradient", grad, x, weight, problem, forced), layouts[0])
    if needs_weight:
        grad_weight = dense_as(_product("weight_gradient", grad, x, weight, problem, forced), layouts[1])
    return _or_empty(grad_x, x), _or_empty(grad_weight, x), _or_empty(grad_bias, x)


@_backward.register_fake
def _(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    y: Tensor | None,
    stride: int,
    padding: Sequence[int],
    groups: int,
    needs: Sequence[bool],
    forced: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    grad_bias = torch.empty(weight.shape[0], dtype=x.dtype, device=x.device)
    made = (empty_as(x), empty_as(weight), grad_bias)
    gradients = [_or_empty(gradient if needed else None, x) for gradient, needed in zip(made, needs, strict=True)]
    return gradients[0], gradients[1], gradients[2]


def _or_empty(gradient: Tensor | None, like: Tensor) -> Tensor:
    return torch.empty(0, dtype=like.dtype, device=like.device) if gradient is None else gradient


class _ConvRelu(torch.autograd.Function):
    """Keeps x, the weight, and with a ReLU the result."""

    @staticmethod
    def forward(ctx, x, weight, bias, stride, padding, groups, relu, forced, sink):
        y = _forward(x, weight, bias, stride, padding, groups, relu, forced)
        ctx.save_for_backward(x, weight, y if relu else None)
        ctx.options = (stride, padding, groups)
        ctx.forced, ctx.sink = forced, sink
        return y

    @staticmethod
    @no_double_backward("conv2d_relu")
    def backward(ctx, grad):
        needs, operands, forced = list(ctx.needs_input_grad[:3]), (grad, *ctx.saved_tensors, *ctx.options), ctx.forced
        if ctx.sink is not None and ctx.sink.defer and needs[1]:
            ctx.sink.add(lambda: _backward(*operands, [False, True, False], forced)[1])
            needs[1] = False
        gradients = _backward(*operands, needs, forced)
        wanted = [gradient if needed else None for gradient, needed in zip(gradients, needs, strict=True)]
        return *wanted, None, None, None, None, None, None


def conv2d_relu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int = 1,
    padding: int | Sequence[int] = 0,
    groups: int = 1,
    *,
    relu: bool = True,
    gradient_sink: GradientSink | None = None,
) -> Tensor:
    """Two-dimensional convolution with a ReLU behind it, `torch.nn.functional.conv2d` otherwise.

    On a CPU, convolutions whose square kernel spans three or five strides, rounded up (3 x 3, 5 x 5, and AlexNet's
    first layer), are computed by Winograd's minimal filtering, where x is fp32 or fp64 in channels_last and has enough
    channels and pixels for that to pay. Rounding errors are then some seven times those of plain sums, which
    `kernels.using("reference")` computes, and what is not finite reaches a few pixels further. The weight's gradient
    then depends on the number of threads in its rounding, as its sum does.

    Differentiable once: there is no double backward, and no transform of `torch.func` (grad, jvp, vmap) takes it, but
    for convolutions that PyTorch's own operators compute (on a CPU those that are not filtered so, and under
    `kernels.using("reference")` all).

    On a GPU, Triton's kernels lay squares of stride x stride pixels into channels where that loads faster (AlexNet's
    first layer); what is not finite in x then reaches windows up to stride - 1 pixels further right and down.

    Args:
        x: N x C x H x W; float32, float16, bfloat16 or float64. Products are added up in fp32, or fp64 for fp64; fp32
            is rounded to TF32 before where `torch.backends.cudnn.allow_tf32` says so, on CUDA.
        weight: K x C/groups x KH x KW, in x's dtype unless autocast is on.
        bias: K values, or None.
        stride: at least 1, the same in both directions.
        padding: rows and columns of zeros: one int, (height, width) or (top, bottom, left, right).
        groups: divides C and K.
        relu: False leaves the ReLU out, for layers that normalise first.
        gradient_sink: takes over the weight's gradient (:class:`kernels.GradientSink`), unless PyTorch's own operators
            compute the convolution.

    Returns:
        N x K x OH x OW, OH = (top + H + bottom - KH) // stride + 1 and OW likewise. Where Triton is chosen, in x's
        memory format; the fast one is channels_last for x and weight.

    Raises:
        TypeError, ValueError: an argument is not as described, or no window fits; raised before anything is computed.
    """
    sides = arguments.four_sided(padding)
    arguments.check_convolution(x, weight, bias, stride, sides, groups)
    arguments.check_bool("relu", relu)
    if gradient_sink is not None and not isinstance(gradient_sink, GradientSink):
        raise TypeError(f"gradient_sink must be a GradientSink or None, not {type(gradient_sink).__name__}")
    chosen = dispatch.implementation_for(x)
    # PyTorch has its own rules for what is empty.
    if chosen == "triton" and x.numel() and weight.numel():
        x, weight, bias = _autocast(x, weight, bias)
        return _ConvRelu.apply(
            x, weight, bias, stride, list(sides), groups, relu, dispatch.triton_is_forced(), gradient_sink
        )
    if chosen == "reference":
        return reference.conv2d_relu(x, weight, bias, stride, sides, groups, relu=relu)
    return native.conv2d_relu(x, weight, bias, stride, sides, groups, relu=relu, gradient_sink=gradient_sink)


def _autocast(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """The operands in autocast's dtype, where it is on; it leaves fp64 alone, as in PyTorch."""
    device = x.device.type
    if not torch.is_autocast_enabled(device) or x.dtype == torch.float64:
        return x, weight, bias
    dtype = torch.get_autocast_dtype(device)
    return x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


def _check_offsets(problem: Problem) -> None:
    """Offsets within one padded image and within the weights are 32 bits wide; a batch may be of any size."""
    top, bottom, left, right = problem.padding
    height, width = problem.kernel
    for what, elements in (
        ("x", problem.channels * (problem.height + top + bottom) * (problem.width + left + right)),
        ("the result", problem.filters * (problem.out_height + height) * (problem.out_width + width)),
    ):
        launch.check_elements(what, elements, " per padded image")
    launch.check_elements("weight", problem.filters * problem.channels // problem.groups * height * width)

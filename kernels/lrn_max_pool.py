"""Bias, ReLU, response normalisation and max-pooling behind a convolution, in one pass over its raw output.

    relu="before": pool(norm(relu(x + bias)))         the paper and Caffe
    relu="after":  relu(pool(norm(x + bias)))         the first layer of the 2012 source

The formulas are those of `kernels.lrn` and `kernels.max_pool`.

Forward reads the raw output once from memory and writes the pooled result alone; positions that several windows share
are normalised for each of them, from cache, which costs less than to write them out. Backward keeps the raw output and
the bias. It finds the maxima again, one byte each, then gathers the gradient of each position and its channel
neighbours from the windows that hold them.
"""

# A tuple that grows changes its type at each step.
# mypy: disable-error-code="assignment, var-annotated"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import arguments, dispatch, launch, native, reference
from kernels.autograd import no_double_backward
from kernels.conv_relu import sum_over_pixels
from kernels.lrn import halo, normalise_lanes, normalise_lanes_backward
from kernels.memory_format import dense, empty_as, is_channels_last
from kernels.vector_lanes import load_lanes, load_neighbours, locate, store_lanes

_NO_MAXIMUM = tl.constexpr(255)
_PLACES_IN_A_BYTE = 255


@triton.jit
def load_biased(
    image_ptr, bias_lanes, vector, pixel, mask, RELU_BEFORE: tl.constexpr, HAS_BIAS: tl.constexpr, HALO: tl.constexpr,
    GROUP_VECTORS: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr, ITEMS: tl.constexpr,
    VECTOR: tl.constexpr, CHANNELS_LAST: tl.constexpr,
):  # fmt: skip
    """Wide lanes of x, with bias and ReLU, of each item and its neighbours; zero outside of the group."""
    x_lanes = load_neighbours(
        image_ptr, vector, pixel, mask, HALO, GROUP_VECTORS, PIXELS, CHANNELS, ITEMS, VECTOR, CHANNELS_LAST
    )
    lanes = ()
    for lane in tl.static_range((2 * HALO + 1) * VECTOR):
        value = x_lanes[lane]
        if HAS_BIAS:
            value = value + bias_lanes[lane]
        if RELU_BEFORE:
            # Written so that a NaN stays one.
            value = tl.where(value <= 0.0, 0.0, value)
        lanes += (value,)
    return lanes


@triton.jit
def load_bias(
    bias_ptr, vector, mask, HAS_BIAS: tl.constexpr, HALO: tl.constexpr, GROUP_VECTORS: tl.constexpr,
    CHANNELS: tl.constexpr, ITEMS: tl.constexpr, VECTOR: tl.constexpr, CHANNELS_LAST: tl.constexpr,
):  # fmt: skip
    """Wide lanes of the bias of each item's channels and their neighbours; zero outside of the group."""
    if HAS_BIAS:
        # The way x is loaded: vectors of 16 bytes would, in NCHW, leave lanes with other threads than those that add
        # them to x. They would move through shared memory, with so many registers in use that some spill.
        return load_neighbours(
            bias_ptr, vector, vector * 0, mask, HALO, GROUP_VECTORS, 1, CHANNELS, ITEMS, VECTOR, CHANNELS_LAST
        )
    else:
        return ()


@triton.jit
def lrn_pool_fwd_kernel(
    x_ptr, bias_ptr, out_ptr, SIZE: tl.constexpr, ALPHA: tl.constexpr, BETA: tl.constexpr, K: tl.constexpr,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, OUT_HEIGHT: tl.constexpr,
    OUT_WIDTH: tl.constexpr, CHANNELS: tl.constexpr, GROUP_CHANNELS: tl.constexpr, ITEMS: tl.constexpr,
    VECTOR: tl.constexpr, HALO: tl.constexpr, CHANNELS_LAST: tl.constexpr, HAS_BIAS: tl.constexpr,
    RELU_BEFORE: tl.constexpr, RELU_AFTER: tl.constexpr, WRITE_PLACES: tl.constexpr,
):  # fmt: skip
    """Pooled values from raw x; or, with WRITE_PLACES, where each maximum lies, 255 where a ReLU behind it is off."""
    OUT_PIXELS: tl.constexpr = OUT_HEIGHT * OUT_WIDTH
    PIXELS: tl.constexpr = HEIGHT * WIDTH
    GROUP_VECTORS: tl.constexpr = GROUP_CHANNELS // VECTOR
    image, vector, pixel, mask = locate(CHANNELS // VECTOR, OUT_PIXELS, ITEMS, CHANNELS_LAST)
    x_start = x_ptr + image * (CHANNELS * PIXELS)
    corner = pixel // OUT_WIDTH * STRIDE * WIDTH + pixel % OUT_WIDTH * STRIDE
    bias_lanes = load_bias(
        bias_ptr, vector, mask, HAS_BIAS, HALO, GROUP_VECTORS, CHANNELS, ITEMS, VECTOR, CHANNELS_LAST
    )
    best = ()
    places = ()
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
                    places += (tl.zeros([ITEMS], tl.int32),)
            else:
                next_best = ()
                next_places = ()
                for lane in tl.static_range(VECTOR):
                    better = (values[lane] > best[lane]) | (values[lane] != values[lane])
                    next_best += (tl.where(better, values[lane], best[lane]),)
                    next_places += (tl.where(better, a * KERNEL + b, places[lane]),)
                best = next_best
                places = next_places
    results = ()
    for lane in tl.static_range(VECTOR):
        off = best[lane] <= 0.0
        if WRITE_PLACES:
            place = places[lane]
            if RELU_AFTER:
                place = tl.where(off, _NO_MAXIMUM, place)
            results += (place.to(tl.uint8),)
        else:
            value = best[lane]
            if RELU_AFTER:
                value = tl.where(off, 0.0, value)
            results += (value,)
    out_start = out_ptr + image * (CHANNELS * OUT_PIXELS)
    store_lanes(out_start, results, vector, pixel, mask, OUT_PIXELS, CHANNELS, ITEMS, VECTOR, CHANNELS_LAST)


@triton.jit
def lrn_pool_bwd_kernel(
    grad_ptr, place_ptr, x_ptr, bias_ptr, grad_x_ptr, SIZE: tl.constexpr, ALPHA: tl.constexpr, BETA: tl.constexpr,
    K: tl.constexpr, KERNEL: tl.constexpr, STRIDE: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
    OUT_HEIGHT: tl.constexpr, OUT_WIDTH: tl.constexpr, CHANNELS: tl.constexpr, GROUP_CHANNELS: tl.constexpr,
    ITEMS: tl.constexpr, VECTOR: tl.constexpr, HALO: tl.constexpr, GRAD_HALO: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, GRAD_CHANNELS_LAST: tl.constexpr, HAS_BIAS: tl.constexpr, RELU_BEFORE: tl.constexpr,
):  # fmt: skip
    """grad_x, in x's layout, from the pooled result's gradient, in its own layout, the maxima's places and raw x."""
    OUT_PIXELS: tl.constexpr = OUT_HEIGHT * OUT_WIDTH
    PIXELS: tl.constexpr = HEIGHT * WIDTH
    GROUP_VECTORS: tl.constexpr = GROUP_CHANNELS // VECTOR
    WINDOWS: tl.constexpr = (KERNEL + STRIDE - 1) // STRIDE
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
    row, column = pixel // WIDTH, pixel % WIDTH
    totals = ()
    for _ in tl.static_range((2 * GRAD_HALO + 1) * VECTOR):
        totals += (tl.zeros_like(x_lanes[0]),)
    for up in tl.static_range(WINDOWS):
        for aside in tl.static_range(WINDOWS):
            i, j = row // STRIDE - up, column // STRIDE - aside
            a, b = row - i * STRIDE, column - j * STRIDE
            holds = (i >= 0) & (i < OUT_HEIGHT) & (a < KERNEL) & (j >= 0) & (j < OUT_WIDTH) & (b < KERNEL) & mask
            window = i * OUT_WIDTH + j
            grad_lanes = load_neighbours(
                grad_ptr + out_start, vector, window, holds, GRAD_HALO, GROUP_VECTORS, OUT_PIXELS, CHANNELS, ITEMS,
                VECTOR, GRAD_CHANNELS_LAST,
            )  # fmt: skip
            next_totals = ()
            for neighbour in tl.static_range(2 * GRAD_HALO + 1):
                at = vector + (neighbour - GRAD_HALO)
                inside = (
                    holds
                    & (vector % GROUP_VECTORS + (neighbour - GRAD_HALO) >= 0)
                    & (vector % GROUP_VECTORS + (neighbour - GRAD_HALO) < GROUP_VECTORS)
                )
                places = load_lanes(
                    place_ptr + out_start, at, window, inside, OUT_PIXELS, CHANNELS, ITEMS, VECTOR, CHANNELS_LAST
                )
                for lane in tl.static_range(VECTOR):
                    here = inside & (places[lane].to(tl.int32) == a * KERNEL + b)
                    gathered = tl.where(here, grad_lanes[neighbour * VECTOR + lane], 0.0)
                    next_totals += (totals[neighbour * VECTOR + lane] + gathered,)
            totals = next_totals
    lanes = normalise_lanes_backward(totals, x_lanes, GRAD_HALO, HALO, VECTOR, SIZE, ALPHA, BETA, K)
    grad_x_lanes = ()
    for lane in tl.static_range(VECTOR):
        value = lanes[lane]
        if RELU_BEFORE:
            value = tl.where(x_lanes[HALO * VECTOR + lane] <= 0.0, 0.0, value)
        grad_x_lanes += (value,)
    store_lanes(grad_x_ptr + start, grad_x_lanes, vector, pixel, mask, PIXELS, CHANNELS, ITEMS, VECTOR, CHANNELS_LAST)


def _pooled(x: Tensor, kernel_size: int, stride: int, dtype: torch.dtype | None = None) -> Tensor:
    height, width = ((length - kernel_size) // stride + 1 for length in x.shape[2:])
    return empty_as(x, (x.shape[0], x.shape[1], height, width), dtype)


def _run_forward(
    x: Tensor,
    bias: Tensor | None,
    out: Tensor,
    size: int,
    alpha: float,
    beta: float,
    k: float,
    groups: int,
    kernel_size: int,
    stride: int,
    relu: str | None,
) -> None:
    """Fill `out` with the pooled values, or with the places of the maxima if it holds bytes."""
    if out.numel() == 0:
        return
    batch, channels, height, width = x.shape
    vector = launch.vector_width(channels // groups, x.element_size())
    with launch.on(x):
        lrn_pool_fwd_kernel[(batch * launch.blocks(channels // vector * out.shape[2] * out.shape[3]),)](
            x,
            x if bias is None else bias,
            out,
            SIZE=size,
            ALPHA=alpha,
            BETA=beta,
            K=k,
            KERNEL=kernel_size,
            STRIDE=stride,
            HEIGHT=height,
            WIDTH=width,
            OUT_HEIGHT=out.shape[2],
            OUT_WIDTH=out.shape[3],
            CHANNELS=channels,
            GROUP_CHANNELS=channels // groups,
            ITEMS=launch.ITEMS,
            VECTOR=vector,
            HALO=halo(size // 2, vector),
            CHANNELS_LAST=is_channels_last(x),
            HAS_BIAS=bias is not None,
            RELU_BEFORE=relu == "before",
            RELU_AFTER=relu == "after",
            WRITE_PLACES=out.dtype == torch.uint8,
            **launch.OPTIONS,
        )


@torch.library.custom_op("fastalex::lrn_pool_forward", mutates_args=())
def _forward(
    x: Tensor,
    bias: Tensor | None,
    size: int,
    alpha: float,
    beta: float,
    k: float,
    groups: int,
    kernel_size: int,
    stride: int,
    relu: str | None,
) -> Tensor:
    launch.check_image(x)
    x = dense(x)
    y = _pooled(x, kernel_size, stride)
    _run_forward(x, _dense_bias(bias), y, size, alpha, beta, k, groups, kernel_size, stride, relu)
    return y


@_forward.register_fake
def _(
    x: Tensor,
    bias: Tensor | None,
    size: int,
    alpha: float,
    beta: float,
    k: float,
    groups: int,
    kernel_size: int,
    stride: int,
    relu: str | None,
) -> Tensor:
    return _pooled(x, kernel_size, stride)


@torch.library.custom_op("fastalex::lrn_pool_backward", mutates_args=())
def _backward(
    grad: Tensor,
    x: Tensor,
    bias: Tensor | None,
    size: int,
    alpha: float,
    beta: float,
    k: float,
    groups: int,
    kernel_size: int,
    stride: int,
    relu: str | None,
    needs_bias: bool,
) -> tuple[Tensor, Tensor]:
    """The gradients of x and of the bias; the latter is empty where it is not needed."""
    x, grad, bias = dense(x), dense(grad), _dense_bias(bias)
    grad_x = empty_as(x)
    if x.numel() == 0:
        return grad_x, _bias_gradient(grad_x, bias, needs_bias)
    places = _pooled(x, kernel_size, stride, torch.uint8)
    _run_forward(x, bias, places, size, alpha, beta, k, groups, kernel_size, stride, relu)
    batch, channels, height, width = x.shape
    vector = launch.vector_width(channels // groups, x.element_size())
    with launch.on(x):
        lrn_pool_bwd_kernel[(batch * launch.blocks(channels // vector * height * width),)](
            grad,
            places,
            x,
            x if bias is None else bias,
            grad_x,
            SIZE=size,
            ALPHA=alpha,
            BETA=beta,
            K=k,
            KERNEL=kernel_size,
            STRIDE=stride,
            HEIGHT=height,
            WIDTH=width,
            OUT_HEIGHT=places.shape[2],
            OUT_WIDTH=places.shape[3],
            CHANNELS=channels,
            GROUP_CHANNELS=channels // groups,
            ITEMS=launch.ITEMS,
            VECTOR=vector,
            HALO=halo(size - 1, vector),
            GRAD_HALO=halo(size // 2, vector),
            CHANNELS_LAST=is_channels_last(x),
            GRAD_CHANNELS_LAST=is_channels_last(grad),
            HAS_BIAS=bias is not None,
            RELU_BEFORE=relu == "before",
            **launch.OPTIONS,
        )
    return grad_x, _bias_gradient(grad_x, bias, needs_bias)


@_backward.register_fake
def _(
    grad: Tensor,
    x: Tensor,
    bias: Tensor | None,
    size: int,
    alpha: float,
    beta: float,
    k: float,
    groups: int,
    kernel_size: int,
    stride: int,
    relu: str | None,
    needs_bias: bool,
) -> tuple[Tensor, Tensor]:
    dtype = x.dtype if bias is None else bias.dtype
    return empty_as(x), torch.empty(x.shape[1] if needs_bias else 0, dtype=dtype, device=x.device)


def _bias_gradient(grad_x: Tensor, bias: Tensor | None, needed: bool) -> Tensor:
    if bias is None or not needed:
        return torch.empty(0, dtype=grad_x.dtype if bias is None else bias.dtype, device=grad_x.device)
    if is_channels_last(grad_x) and grad_x.numel():
        return sum_over_pixels(grad_x, bias.dtype)
    # PyTorch sums in a fixed order, too.
    work = torch.float64 if grad_x.dtype == torch.float64 else torch.float32
    return grad_x.sum((0, 2, 3), dtype=work).to(bias.dtype)


def _dense_bias(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.contiguous()


class _LrnMaxPool(torch.autograd.Function):
    """Keeps the raw x and the bias."""

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
    """`max_pool2d(local_response_norm(x + bias))` with a ReLU before, after or not at all.

    Differentiable once: there is no double backward, and no transform of `torch.func` (grad, jvp, vmap) takes it. Under
    `kernels.using("reference")` there are both.

    Args:
        x: N x C x H x W; float32, float16, bfloat16 or float64. Half precision is computed in fp32.
        size, alpha, beta, k, groups: as in `local_response_norm`.
        kernel_size, stride: as in `max_pool2d`, without padding.
        bias: C values that are added to x first, in any floating dtype.
        relu: None; "before" the normalisation; "after" the pooling.

    Returns:
        N x C x OH x OW in x's dtype and memory format.

    Raises:
        TypeError, ValueError: an argument is not as described, or no window fits; raised before anything is computed.
    """
    arguments.check_tensor("x", x, 4, "N x C x H x W")
    arguments.check_normalisation(size, alpha, beta, k)
    arguments.check_groups(x.shape[1], groups)
    arguments.check_pool(x, kernel_size, stride, 0, False)
    if bias is not None:
        arguments.check_vector("bias", bias, x.shape[1], x, "one per channel of x")
    if relu not in (None, "before", "after"):
        raise ValueError(f'relu must be None, "before" or "after", not {relu!r}')
    chosen = dispatch.implementation_for(x)
    # A window of more places than a byte tells apart has never been part of this network; PyTorch computes it.
    if chosen == "triton" and kernel_size**2 <= _PLACES_IN_A_BYTE:
        return _LrnMaxPool.apply(x, bias, size, float(alpha), float(beta), float(k), groups, kernel_size, stride, relu)
    plain = reference if chosen == "reference" else native
    return plain.lrn_max_pool2d(
        x, size, alpha, beta, k, groups=groups, kernel_size=kernel_size, stride=stride, bias=bias, relu=relu
    )

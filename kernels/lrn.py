"""Local response normalisation across neighbouring channels.

    s[c] = k + alpha / n * sum of x[j]^2 over j = c - n // 2 ... c + (n - 1) // 2
    y[c] = x[c] * s[c]^-beta
    t[c] = grad_y[c] * x[c] * s[c]^(-beta - 1)
    grad_x[c] = grad_y[c] * s[c]^-beta - 2 alpha beta / n * x[c] * sum of t[j] over j = c - (n - 1) // 2 ... c + n // 2

Source: section 3.3 of Krizhevsky, Sutskever and Hinton (2012). Alpha is divided by the window's size, as in the
released source of that network, in Caffe and in PyTorch; the paper's own formula does not divide.

A thread holds one vector of neighbouring channels (16 bytes) and loads the vectors on either side too. Those come from
the L1 cache, and no load is narrower than 16 bytes. Each channel sums its own window: a running sum would lose
precision by cancellation, and would carry one NaN to all later channels. Backward recomputes `s`, so it saves only `x`.

A bias and a ReLU may come before. The mask of the ReLU costs backward no pass of its own, because it loads x anyway.

All sums are unrolled. Windows of more than 16 channels would take long to compile, so PyTorch's additions compute them
(`kernels/native/normalisation.py`), about 2 log2(size) for a sum.
"""

# A tuple that grows in a loop changes its type in each iteration.
# mypy: disable-error-code="assignment"

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kernels import arguments, dispatch, launch_settings, native, reference, tuned
from kernels.autograd import no_double_backward, operator
from kernels.channel_sum import bias_gradient
from kernels.dispatch import tl, triton
from kernels.memory_format import dense, empty_as, is_channels_last
from kernels.vector_lanes import load_bias, load_biased, load_neighbours, locate, store_lanes


@triton.jit
def window_sum(lanes, FIRST: tl.constexpr, SIZE: tl.constexpr):
    """Sum of the `SIZE` lanes from lane `FIRST` on."""
    total = lanes[FIRST]
    for step in tl.static_range(1, SIZE):
        total += lanes[FIRST + step]
    return total


@triton.jit
def inverse_power(scale, BETA: tl.constexpr):
    """`scale^-BETA`, without a logarithm for the exponents in use."""
    if BETA == 0.75:
        root = tl.rsqrt(scale)
        return root * tl.sqrt(root)
    elif BETA == 0.5:
        return tl.rsqrt(scale)
    elif BETA == 1.0:
        return 1.0 / scale
    else:
        return tl.exp2(tl.log2(scale) * -BETA)


@triton.jit
def inverse(scale, BETA: tl.constexpr):
    """`1 / scale`. Uses the root that `inverse_power` computes too, if there is one, because a division is slower."""
    if BETA == 0.75 or BETA == 0.5:
        root = tl.rsqrt(scale)
        return root * root
    else:
        return 1.0 / scale


@triton.jit
def scale_lanes(
    x_lanes, FIRST: tl.constexpr, COUNT: tl.constexpr, SIZE: tl.constexpr, ALPHA: tl.constexpr, K: tl.constexpr
):
    """`s` of `COUNT` channels; the window of the first one starts at lane `FIRST`."""
    squares = ()
    for lane in tl.static_range(COUNT + SIZE - 1):
        squares += (x_lanes[FIRST + lane] * x_lanes[FIRST + lane],)
    scales = ()
    for lane in tl.static_range(COUNT):
        scales += (window_sum(squares, lane, SIZE) * (ALPHA / SIZE) + K,)
    return scales


@triton.jit
def normalise_lanes(
    x_lanes, HALO: tl.constexpr, VECTOR: tl.constexpr, SIZE: tl.constexpr, ALPHA: tl.constexpr, BETA: tl.constexpr,
    K: tl.constexpr,
):  # fmt: skip
    """y of one vector of channels, from x of that vector and of `HALO` vectors on either side."""
    scales = scale_lanes(x_lanes, HALO * VECTOR - SIZE // 2, VECTOR, SIZE, ALPHA, K)
    y_lanes = ()
    for lane in tl.static_range(VECTOR):
        y_lanes += (x_lanes[HALO * VECTOR + lane] * inverse_power(scales[lane], BETA),)
    return y_lanes


@triton.jit
def normalise_lanes_backward(
    grad_lanes, x_lanes, GRAD_HALO: tl.constexpr, HALO: tl.constexpr, VECTOR: tl.constexpr, SIZE: tl.constexpr,
    ALPHA: tl.constexpr, BETA: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """grad_x of one vector of channels, from grad_y with `GRAD_HALO` and x with `HALO` vectors on either side."""
    BEFORE: tl.constexpr = (SIZE - 1) // 2
    # Of this vector and the channels around it: grad_y * s^-beta (direct) and t (spread).
    scales = scale_lanes(x_lanes, HALO * VECTOR - (SIZE - 1), VECTOR + SIZE - 1, SIZE, ALPHA, K)
    direct = ()
    spread = ()
    for lane in tl.static_range(VECTOR + SIZE - 1):
        scaled = grad_lanes[GRAD_HALO * VECTOR - BEFORE + lane] * inverse_power(scales[lane], BETA)
        direct += (scaled,)
        spread += (scaled * x_lanes[HALO * VECTOR - BEFORE + lane] * inverse(scales[lane], BETA),)
    # Each channel adds up t over its mirrored window.
    grad_x_lanes = ()
    for lane in tl.static_range(VECTOR):
        indirect = x_lanes[HALO * VECTOR + lane] * window_sum(spread, lane, SIZE)
        grad_x_lanes += (direct[BEFORE + lane] - (2.0 * ALPHA * BETA / SIZE) * indirect,)
    return grad_x_lanes


@triton.jit
def lrn_fwd_kernel(
    x_ptr, bias_ptr, y_ptr, SIZE: tl.constexpr, ALPHA: tl.constexpr, BETA: tl.constexpr, K: tl.constexpr,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr, GROUP_CHANNELS: tl.constexpr, ITEMS: tl.constexpr,
    VECTOR: tl.constexpr, HALO: tl.constexpr, CHANNELS_LAST: tl.constexpr, HAS_BIAS: tl.constexpr, RELU: tl.constexpr,
):  # fmt: skip
    """y from x, both N x CHANNELS x PIXELS in the same layout. `HALO` vectors on either side cover the window."""
    image, vector, pixel, mask = locate(CHANNELS // VECTOR, PIXELS, ITEMS, CHANNELS_LAST)
    start = image * (CHANNELS * PIXELS)
    GROUP_VECTORS: tl.constexpr = GROUP_CHANNELS // VECTOR
    bias_lanes = load_bias(
        bias_ptr, vector, mask, HAS_BIAS, HALO, GROUP_VECTORS, CHANNELS, ITEMS, VECTOR, CHANNELS_LAST
    )
    x_lanes = load_biased(
        x_ptr + start, bias_lanes, vector, pixel, mask, RELU, HAS_BIAS, HALO, GROUP_VECTORS, PIXELS, CHANNELS, ITEMS,
        VECTOR, CHANNELS_LAST,
    )  # fmt: skip
    y_lanes = normalise_lanes(x_lanes, HALO, VECTOR, SIZE, ALPHA, BETA, K)
    store_lanes(y_ptr + start, y_lanes, vector, pixel, mask, PIXELS, CHANNELS, ITEMS, VECTOR, CHANNELS_LAST)


@triton.jit
def lrn_bwd_kernel(
    grad_ptr, x_ptr, bias_ptr, grad_x_ptr, SIZE: tl.constexpr, ALPHA: tl.constexpr, BETA: tl.constexpr,
    K: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr, GROUP_CHANNELS: tl.constexpr, ITEMS: tl.constexpr,
    VECTOR: tl.constexpr, HALO: tl.constexpr, GRAD_HALO: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    GRAD_CHANNELS_LAST: tl.constexpr, HAS_BIAS: tl.constexpr, RELU: tl.constexpr,
):  # fmt: skip
    """grad_x in x's layout, from x and from grad_y in a layout of its own."""
    image, vector, pixel, mask = locate(CHANNELS // VECTOR, PIXELS, ITEMS, CHANNELS_LAST)
    start = image * (CHANNELS * PIXELS)
    GROUP_VECTORS: tl.constexpr = GROUP_CHANNELS // VECTOR
    bias_lanes = load_bias(
        bias_ptr, vector, mask, HAS_BIAS, HALO, GROUP_VECTORS, CHANNELS, ITEMS, VECTOR, CHANNELS_LAST
    )
    x_lanes = load_biased(
        x_ptr + start, bias_lanes, vector, pixel, mask, RELU, HAS_BIAS, HALO, GROUP_VECTORS, PIXELS, CHANNELS, ITEMS,
        VECTOR, CHANNELS_LAST,
    )  # fmt: skip
    grad_lanes = load_neighbours(
        grad_ptr + start, vector, pixel, mask, GRAD_HALO, GROUP_VECTORS, PIXELS, CHANNELS, ITEMS, VECTOR,
        GRAD_CHANNELS_LAST,
    )  # fmt: skip
    lanes = normalise_lanes_backward(grad_lanes, x_lanes, GRAD_HALO, HALO, VECTOR, SIZE, ALPHA, BETA, K)
    grad_x_lanes = ()
    for lane in tl.static_range(VECTOR):
        value = lanes[lane]
        if RELU:
            value = tl.where(x_lanes[HALO * VECTOR + lane] <= 0.0, 0.0, value)
        grad_x_lanes += (value,)
    store_lanes(grad_x_ptr + start, grad_x_lanes, vector, pixel, mask, PIXELS, CHANNELS, ITEMS, VECTOR, CHANNELS_LAST)


def halo(reach: int, vector: int) -> int:
    """Number of vectors on either side of an item that cover its `reach` nearest channels."""
    return -(-reach // vector)


def _launch(
    kernel: str, x: Tensor, bias: Tensor | None, size: int, alpha: float, beta: float, k: float, groups: int, relu: bool
) -> tuple[tuple[int], dict[str, Any]]:
    """The grid of a kernel, its launch options, and the constants that both kernels have in common."""
    batch, channels, height, width = x.shape
    vector = launch_settings.vector_width(channels // groups, x.element_size())
    constants = {
        "SIZE": size, "ALPHA": alpha, "BETA": beta, "K": k, "PIXELS": height * width, "CHANNELS": channels,
        "GROUP_CHANNELS": channels // groups, "VECTOR": vector,
        "CHANNELS_LAST": is_channels_last(x), "HAS_BIAS": bias is not None, "RELU": relu,
    }  # fmt: skip
    launch = tuned.launch_of(kernel, x)
    return (batch * launch.programs(channels // vector * height * width),), launch.options | constants


@operator("fastalex::lrn_forward")
def _forward(
    x: Tensor, bias: Tensor | None, size: int, alpha: float, beta: float, k: float, groups: int, relu: bool
) -> Tensor:
    arguments.check_image(x)
    x, bias = dense(x), bias if bias is None else bias.contiguous()
    y = empty_as(x)
    if x.numel() == 0:
        return y
    grid, constants = _launch("lrn_fwd_kernel", x, bias, size, alpha, beta, k, groups, relu)
    with launch_settings.on_device_of(x):
        lrn_fwd_kernel[grid](
            x, x if bias is None else bias, y, HALO=halo(size // 2, constants["VECTOR"]), **constants
        )  # fmt: skip
    return y


@_forward.register_fake
def _(x, bias, size, alpha, beta, k, groups, relu):
    return empty_as(x)


@operator("fastalex::lrn_backward")
def _backward(
    grad: Tensor, x: Tensor, bias: Tensor | None, size: int, alpha: float, beta: float, k: float, groups: int,
    relu: bool, needs_bias: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The gradients of x and of the bias; the latter is empty if it is not needed."""
    x, grad, bias = dense(x), dense(grad), bias if bias is None else bias.contiguous()
    grad_x = empty_as(x)
    if x.numel() == 0:
        return grad_x, bias_gradient(grad_x, bias, needs_bias)
    grid, constants = _launch("lrn_bwd_kernel", x, bias, size, alpha, beta, k, groups, relu)
    vector = constants["VECTOR"]
    with launch_settings.on_device_of(x):
        lrn_bwd_kernel[grid](
            grad, x, x if bias is None else bias, grad_x, HALO=halo(size - 1, vector),
            GRAD_HALO=halo(size // 2, vector), GRAD_CHANNELS_LAST=is_channels_last(grad), **constants,
        )  # fmt: skip
    return grad_x, bias_gradient(grad_x, bias, needs_bias)


@_backward.register_fake
def _(grad, x, bias, size, alpha, beta, k, groups, relu, needs_bias):
    dtype = x.dtype if bias is None else bias.dtype
    return empty_as(x), torch.empty(x.shape[1] if needs_bias else 0, dtype=dtype, device=x.device)


class _LocalResponseNorm(torch.autograd.Function):
    """Saves the raw x, and the bias."""

    @staticmethod
    def forward(ctx, x, bias, *options):
        ctx.save_for_backward(x, bias)
        ctx.options = options
        return _forward(x, bias, *options)

    @staticmethod
    @no_double_backward("local_response_norm")
    def backward(ctx, grad):
        x, bias = ctx.saved_tensors
        needs_bias = bias is not None and ctx.needs_input_grad[1]
        grad_x, grad_bias = _backward(grad, x, bias, *ctx.options, needs_bias)
        return grad_x, grad_bias if needs_bias else None, *([None] * len(ctx.options))


def local_response_norm(
    x: Tensor,
    size: int,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 1.0,
    *,
    groups: int = 1,
    bias: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """`torch.nn.functional.local_response_norm`, with its arguments and defaults, which are not those of AlexNet.

    The 2012 paper has size 5 and k = 2. The result has x's dtype under autocast too, where PyTorch's is fp32 on GPUs.
    Each response is divided by a power of the sum of squares over the `size` nearest channels:

        y[n, c, h, w] = x[n, c, h, w] / (k + alpha / size * sum_j x[n, j, h, w]^2)^beta

    with j from c - size // 2 to c + (size - 1) // 2, limited to c's group of channels.

    Differentiable once: there is no double backward, and no transform of `torch.func` (grad, jvp, vmap) works. Under
    `kernels.using("reference")` both work.

    Args:
        x: N x C x H x W, or N x C x any other dimensions; float32, float16, bfloat16 or float64. Half precision is
            computed in fp32.
        size: number of channels in the window, at least 1; may exceed C. Above 16, PyTorch's operators
            compute the sums.
        alpha: at least 0; divided by `size`, as in PyTorch.
        beta: above 0.
        k: above 0.
        groups: number of groups of C / groups channels that are normalised separately.
        bias: C values, added to x first; any floating dtype, rounded to that of the computation.
        relu: whether a ReLU comes before the normalisation, and after the bias.

    Returns:
        A tensor of x's shape, dtype and memory format. Backward saves only `x` and the bias.

    Raises:
        TypeError, ValueError: an argument is not as described; raised before any computation.

    Source: section 3.3 of the 2012 paper. `groups=2` is what its two GPUs computed.
    """
    arguments.check_tensor("x", x)
    if x.dim() != 4:
        if x.dim() < 3:
            raise ValueError(f"x must have at least 3 dimensions (N x C x ...), got shape {tuple(x.shape)}")
        maps = x.flatten(2).unsqueeze(3)
        return local_response_norm(maps, size, alpha, beta, k, groups=groups, bias=bias, relu=relu).reshape(x.shape)
    arguments.check_normalisation(size, alpha, beta, k)
    arguments.check_groups(x.shape[1], groups)
    if bias is not None:
        arguments.check_vector("bias", bias, x.shape[1], x, "one per channel of x")
    arguments.check_bool("relu", relu)
    size, alpha = arguments.clamp_window(x.shape[1] // groups, size, alpha, 1)
    chosen = dispatch.implementation_for(x)
    if chosen == "triton" and size <= arguments.MAX_UNROLLED_WINDOW:
        return _LocalResponseNorm.apply(x, bias, size, float(alpha), float(beta), float(k), groups, relu)
    plain = reference if chosen == "reference" else native
    return plain.local_response_norm(x, size, alpha, beta, k, groups=groups, bias=bias, relu=relu)

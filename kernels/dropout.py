"""Dropout with a mask that is a function of (seed, row, feature): alone, and fused after a bias and a ReLU.

    training, inverted:       y = x * kept / (1 - p)          evaluation: y = x
    training, not inverted:   y = x * kept                    evaluation: y = x * (1 - p)

`kept` is 1 where a feature is kept and 0 where it is dropped. It comes from Philox counters
(`kernels.philox.keep_mask`), so it is the same on every device and for every split of a batch, and a GPU computes it
again in backward instead of saving it.

After a bias and a ReLU, backward saves the result, which the next layer saves as its input anyway: it says where the
ReLU was on.

Source: section 4.2 of Krizhevsky, Sutskever and Hinton (2012), which uses the form that is not inverted.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels import arguments, dispatch, launch_settings, native, reference
from kernels.autograd import no_double_backward, operator
from kernels.dispatch import tl, triton
from kernels.philox import drop_threshold
from kernels.vector_lanes import upcast


@triton.jit
def drop(values, seed_ptr, first_row_ptr, row, vector, THRESHOLD: tl.constexpr, SCALE: tl.constexpr,
         ITEMS: tl.constexpr, VECTOR: tl.constexpr):  # fmt: skip
    """values * SCALE where kept and values * 0 where dropped. Item i of `row` starts at feature vector[i] * VECTOR.

    A threshold of 0 draws no random numbers.
    """
    if THRESHOLD == 0:
        return values * SCALE
    else:
        kept = keep_tile(seed_ptr, first_row_ptr, row, vector, THRESHOLD, ITEMS, VECTOR)
        # values * 0 rather than 0 keeps NaN, as PyTorch's product with a mask does.
        return tl.where(kept, values * SCALE, values * 0.0)


@triton.jit
def keep_tile(seed_ptr, first_row_ptr, row, vector, THRESHOLD: tl.constexpr, ITEMS: tl.constexpr,
              VECTOR: tl.constexpr):  # fmt: skip
    """[ITEMS, VECTOR] tile of the mask, True where kept, as `kernels.philox.keep_mask` defines it."""
    global_row = tl.load(first_row_ptr) + row.to(tl.int64)
    # One Philox block of four words for each four features.
    QUADS: tl.constexpr = VECTOR // 4
    quad = vector[:, None] * QUADS + tl.arange(0, QUADS)[None, :]
    zero = quad * 0
    seed = tl.load(seed_ptr)
    low, high = (global_row & 0xFFFFFFFF).to(tl.uint32), (global_row >> 32).to(tl.uint32)
    word0, word1, word2, word3 = tl.philox(seed, quad, zero + low, zero + high, zero)
    # Interleave the words, so that word c % 4 belongs to feature c.
    words = tl.reshape(tl.join(tl.join(word0, word2), tl.join(word1, word3)), [ITEMS, VECTOR])
    return words >= tl.full([], THRESHOLD, tl.uint32)


@triton.jit
def dropout_fwd_kernel(
    x_ptr, bias_ptr, seed_ptr, first_row_ptr, y_ptr, FEATURES: tl.constexpr, THRESHOLD: tl.constexpr,
    SCALE: tl.constexpr, BIAS_AND_RELU: tl.constexpr, ITEMS: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """y = x, or relu(x + bias), scaled where kept and 0 where dropped. x is N x FEATURES."""
    VECTORS: tl.constexpr = (FEATURES + VECTOR - 1) // VECTOR
    BLOCKS: tl.constexpr = (VECTORS + ITEMS - 1) // ITEMS
    # A program handles ITEMS vectors of VECTOR features of one row.
    program = tl.program_id(0)
    row = program // BLOCKS
    vector = program % BLOCKS * ITEMS + tl.arange(0, ITEMS)
    feature = vector[:, None] * VECTOR + tl.arange(0, VECTOR)[None, :]
    mask = feature < FEATURES
    start = row.to(tl.int64) * FEATURES
    value = upcast(tl.load(x_ptr + start + feature, mask=mask, other=0.0))
    if BIAS_AND_RELU:
        value += tl.load(bias_ptr + feature, mask=mask, other=0.0).to(value.dtype)
        # This comparison keeps NaN.
        value = tl.where(value <= 0.0, 0.0, value)
    value = drop(value, seed_ptr, first_row_ptr, row, vector, THRESHOLD, SCALE, ITEMS, VECTOR)
    tl.store(y_ptr + start + feature, value, mask=mask)


@triton.jit
def relu_dropout_bwd_kernel(
    grad_ptr, y_ptr, seed_ptr, first_row_ptr, grad_x_ptr, FEATURES: tl.constexpr, THRESHOLD: tl.constexpr,
    SCALE: tl.constexpr, ITEMS: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """grad_x from grad_y: scaled where kept, 0 where dropped or where y shows that the ReLU was off. N x FEATURES."""
    VECTORS: tl.constexpr = (FEATURES + VECTOR - 1) // VECTOR
    BLOCKS: tl.constexpr = (VECTORS + ITEMS - 1) // ITEMS
    # A program handles ITEMS vectors of VECTOR features of one row.
    program = tl.program_id(0)
    row = program // BLOCKS
    vector = program % BLOCKS * ITEMS + tl.arange(0, ITEMS)
    feature = vector[:, None] * VECTOR + tl.arange(0, VECTOR)[None, :]
    mask = feature < FEATURES
    start = row.to(tl.int64) * FEATURES
    grad = upcast(tl.load(grad_ptr + start + feature, mask=mask, other=0.0))
    y = upcast(tl.load(y_ptr + start + feature, mask=mask, other=0.0))
    grad = drop(grad, seed_ptr, first_row_ptr, row, vector, THRESHOLD, SCALE, ITEMS, VECTOR)
    tl.store(grad_x_ptr + start + feature, tl.where(y <= 0.0, 0.0, grad), mask=mask)


def _grid(x: Tensor, vector: int) -> tuple[int]:
    return (x.shape[0] * launch_settings.programs(triton.cdiv(x.shape[1], vector)),)


def _vector(x: Tensor) -> int:
    # A Philox block has four words, so an item has at least four features.
    return max(4, 16 // x.element_size())


@operator("fastalex::dropout_forward")
def _forward(x: Tensor, bias: Tensor | None, seed: Tensor, first_row: Tensor, p: float, scale: float) -> Tensor:
    arguments.check_elements("x", x.shape[1], " per row")
    x = x.contiguous()
    y = torch.empty_like(x)
    if x.numel() == 0:
        return y
    vector = _vector(x)
    with launch_settings.on_device_of(x):
        dropout_fwd_kernel[_grid(x, vector)](
            x,
            x if bias is None else bias.contiguous(),
            seed,
            first_row,
            y,
            FEATURES=x.shape[1],
            THRESHOLD=drop_threshold(p),
            SCALE=scale,
            BIAS_AND_RELU=bias is not None,
            ITEMS=launch_settings.ITEMS,
            VECTOR=vector,
            **launch_settings.OPTIONS,
        )
    return y


@_forward.register_fake
def _(x: Tensor, bias: Tensor | None, seed: Tensor, first_row: Tensor, p: float, scale: float) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@operator("fastalex::relu_dropout_backward")
def _relu_backward(grad: Tensor, y: Tensor, seed: Tensor, first_row: Tensor, p: float, scale: float) -> Tensor:
    grad, y = grad.contiguous(), y.contiguous()
    grad_x = torch.empty_like(y)
    if y.numel() == 0:
        return grad_x
    vector = _vector(y)
    with launch_settings.on_device_of(y):
        relu_dropout_bwd_kernel[_grid(y, vector)](
            grad,
            y,
            seed,
            first_row,
            grad_x,
            FEATURES=y.shape[1],
            THRESHOLD=drop_threshold(p),
            SCALE=scale,
            ITEMS=launch_settings.ITEMS,
            VECTOR=vector,
            **launch_settings.OPTIONS,
        )
    return grad_x


@_relu_backward.register_fake
def _(grad: Tensor, y: Tensor, seed: Tensor, first_row: Tensor, p: float, scale: float) -> Tensor:
    return torch.empty_like(y, memory_format=torch.contiguous_format)


class _Dropout(torch.autograd.Function):
    """Saves the seed and the row number."""

    @staticmethod
    def forward(ctx, x, seed, first_row, p, scale):
        ctx.save_for_backward(seed, first_row)
        ctx.options = (p, scale)
        return _forward(x, None, seed, first_row, p, scale)

    @staticmethod
    @no_double_backward("dropout")
    def backward(ctx, grad):
        return _forward(grad, None, *ctx.saved_tensors, *ctx.options), None, None, None, None


class _BiasReluDropout(torch.autograd.Function):
    """Saves the result, the seed and the row number."""

    @staticmethod
    def forward(ctx, x, bias, seed, first_row, p, scale):
        y = _forward(x, bias, seed, first_row, p, scale)
        ctx.save_for_backward(y, seed, first_row)
        ctx.options = (p, scale)
        ctx.bias_dtype = bias.dtype
        return y

    @staticmethod
    @no_double_backward("bias_relu_dropout")
    def backward(ctx, grad):
        grad_x = _relu_backward(grad, *ctx.saved_tensors, *ctx.options)
        grad_bias = None
        if ctx.needs_input_grad[1]:
            accumulator = torch.float64 if grad_x.dtype == torch.float64 else torch.float32
            grad_bias = grad_x.sum(0, dtype=accumulator).to(ctx.bias_dtype)
        return grad_x, grad_bias, None, None, None, None


def _p_and_scale(p: float, training: bool, inverted: bool) -> tuple[float, float]:
    """The probability with which this call drops a feature, and its factor for the others."""
    if training:
        return float(p), 1 / (1 - p) if inverted else 1.0
    return 0.0, 1.0 if inverted else 1 - p


def dropout(
    x: Tensor,
    p: float = 0.5,
    training: bool = True,
    *,
    seed: int | Tensor,
    first_row: int | Tensor = 0,
    inverted: bool = True,
) -> Tensor:
    """`torch.nn.functional.dropout`, but with a mask that follows from `seed` instead of PyTorch's generator.

    `p` must be below 1, and there is no `inplace`. Each feature is set to zero with probability `p`, independently of
    the others:

        training, inverted:       y = x * kept / (1 - p)          evaluation: y = x
        training, not inverted:   y = x * kept                    evaluation: y = x * (1 - p)

    `kept` is 1 or 0, a function of (seed, row, feature); see `kernels.philox.keep_mask`.

    Differentiable once: there is no double backward, and no transform of `torch.func` (grad, jvp, vmap) works. Under
    `kernels.using("reference")` both work.

    Args:
        x: N x F; float32, float16, bfloat16 or float64. More dimensions after the first are one row of features, and
            so is a vector.
        p: probability that a feature is dropped, in [0, 1).
        training: False computes the evaluation form, without random numbers.
        seed: int in [0, 2^63), or an int64 tensor of one element on x's device or the CPU. Use a tensor if a CUDA graph
            has to draw new masks.
        first_row: index of x's first row in the whole batch; same types.
        inverted: True scales by 1 / (1 - p) in training; False, the 2012 form, by 1 - p in evaluation.

    Returns:
        A tensor of x's shape and dtype. Backward saves the seed and the row number in Triton. The native implementation
        saves the mask, one byte per feature, because random numbers are expensive on a CPU.

    Raises:
        TypeError, ValueError: an argument is not as described; raised before any computation.
    """
    arguments.check_tensor("x", x)
    if x.dim() != 2:
        rows = x.flatten(1) if x.dim() > 2 else x.reshape(1, -1)
        return dropout(rows, p, training, seed=seed, first_row=first_row, inverted=inverted).reshape(x.shape)
    arguments.check_probability(p)
    arguments.check_bool("training", training)
    arguments.check_bool("inverted", inverted)
    seed = arguments.counter_tensor("seed", seed, x)
    first_row = arguments.counter_tensor("first_row", first_row, x)
    chosen = dispatch.implementation_for(x)
    if chosen == "triton":
        dropped, scale = _p_and_scale(p, training, inverted)
        if dropped == 0 and scale == 1:
            return x
        return _Dropout.apply(x, seed, first_row, dropped, scale)
    plain = reference if chosen == "reference" else native
    return plain.dropout(x, p, seed=seed, first_row=first_row, training=training, inverted=inverted)


def bias_relu_dropout(
    x: Tensor,
    bias: Tensor,
    p: float = 0.5,
    *,
    seed: int | Tensor,
    first_row: int | Tensor = 0,
    training: bool = True,
    inverted: bool = True,
) -> Tensor:
    """`dropout(relu(x + bias))`, for x = the raw product of a fully connected layer.

    Differentiable once: there is no double backward, and no transform of `torch.func` (grad, jvp, vmap) works. Under
    `kernels.using("reference")` both work.

    Args:
        x: N x F; float32, float16, bfloat16 or float64. Half precision is computed in fp32.
        bias: F values in any floating dtype.
        p, seed, first_row, training, inverted: as in `dropout`.

    Returns:
        N x F in x's dtype.

    Raises:
        TypeError, ValueError: an argument is not as described; raised before any computation.
    """
    arguments.check_tensor("x", x, 2, "N x F")
    arguments.check_vector("bias", bias, x.shape[1], x, "one per feature of x")
    arguments.check_probability(p)
    arguments.check_bool("training", training)
    arguments.check_bool("inverted", inverted)
    seed = arguments.counter_tensor("seed", seed, x)
    first_row = arguments.counter_tensor("first_row", first_row, x)
    chosen = dispatch.implementation_for(x)
    if chosen == "triton":
        return _BiasReluDropout.apply(x, bias, seed, first_row, *_p_and_scale(p, training, inverted))
    plain = reference if chosen == "reference" else native
    return plain.bias_relu_dropout(x, bias, p, seed=seed, first_row=first_row, training=training, inverted=inverted)

"""Convolution, bias and ReLU on a CPU by Winograd's minimal filtering, with 4 to 6 times fewer multiplications.

m x m results of an r x r filter are computed from a tile of n x n inputs, n = m + r - 1; adjacent tiles overlap by
r - 1. The filter and the tile are transformed so that their convolution becomes an elementwise product:

    y = A [sum over channels of (G w G^T) * (B d B^T)] A^T

    d: n x n inputs of a tile     w: r x r weights     y: m x m results     A: m x n, G: n x r, B: n x n

This takes n^2 multiplications instead of m^2 r^2 (49 instead of 225 for m = 5 and r = 3, 64 instead of 400 for m = 4
and r = 5). For each of the n^2 positions in a tile, the sum over channels is a matrix product of all tiles with all
filters. A strided convolution is one of stride 1 in an image whose pixels are cells of stride x stride pixels. Backward
is the adjoint of each step, and transforms the gradient once for both of its products:

    M' = A^T y' A     w' = G^T [sum over tiles of (B d B^T) M'] G     d' = B^T [sum over filters of (G w G^T) M'] B

where the d' of overlapping tiles are added up. Images pass through all steps in chunks that fit the caches. For layers
with few weights, each thread processes images of its own. In fp32 and with a C compiler, `native.c` transforms the
maps; otherwise matrix products do.

In bf16, `native.c` transforms in fp32 and rounds transformed tiles, gradients and weights to bf16 for the products.
Transformed weight gradients are summed in fp32. Small maps lie side by side in mosaics, so that fewer tiles reach
beyond them.

Source: Winograd, Arithmetic Complexity of Computations (1980); Lavin and Gray, Fast Algorithms for Convolutional Neural
Networks (2015), https://arxiv.org/abs/1509.09308. Rounding errors in fp32 are about seven times those of plain sums. In
bf16 they are 2 % of the result's norm for 3 x 3 filters and 5 % for 5 x 5; plain sums of bf16 factors have 0.2 %. A
non-finite input makes all results of its tiles non-finite.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kernels.autograd import no_double_backward, operator
from kernels.gradient_sink import GradientSink
from kernels.memory_format import dense_as, is_channels_last
from kernels.native import build, processor
from kernels.native.winograd_tiles import Tiling, chunk_steps, tile_grid
from kernels.native.winograd_transforms import FILTER_SIZES

# With fewer channels or filters the matrix products are too small to make up for transforming the maps. With fewer
# tiles they do not make up for transforming the weights.
MIN_CHANNELS = 32
MIN_TILES = 64


# --------------------------------------------------------------------------------------------------- host functions


class _StepTransforms:
    """The `step_state` of a :class:`GradientSink`: what the micro-batches of one step share in one layer.

    Holds the transformed weights, computed by the first micro-batch, and the sum of the transformed weight gradients,
    which is transformed back once.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self._weights: Tensor | None = None
        self._sum: tuple[Tiling, Tensor, Tensor] | None = None  # tiling, transformed gradient, weight
        self._backward_passes = 0

    def transformed_weights(self, tiling: Tiling, weight: Tensor) -> Tensor:
        if self._weights is None:
            self._weights = tiling.transform_weights(weight)
        return self._weights

    def gradient_sum(self, x: Tensor, weight: Tensor, *options: Any) -> Tensor:
        """The transformed weight gradient, to which each micro-batch adds its own."""
        if self._sum is None:
            tiling = Tiling(x, weight, *options)
            self._sum = tiling, tiling.zero_gradient(weight), weight
        return self._sum[1]

    def take(self) -> Tensor | None:
        """The weight gradient of all micro-batches, and clear; None if there were none."""
        found = self._sum
        self.clear()
        if found is None:
            return None
        tiling, transformed, weight = found
        return torch.empty_like(weight).copy_(tiling.weight_gradient(transformed))

    def finish_backward(self, sink: GradientSink) -> Tensor | None:
        """Count a micro-batch's gradient; after the step's last one, end the step and return the weight gradient."""
        self._backward_passes += 1
        return sink.finish() if self._backward_passes == sink.micro_batches else None


@operator("fastalex::winograd_forward")
def _forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, sides: Sequence[int], groups: int, relu: bool
) -> Tensor:
    return _run_forward(None, x, weight, bias, stride, sides, groups, relu)


def _run_forward(
    step: _StepTransforms | None,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    sides: Sequence[int],
    groups: int,
    relu: bool,
) -> Tensor:
    x, options = dense_as(x, channels_last=True), (stride, sides, groups)
    tiling = Tiling(x, weight, *options)
    weights = tiling.transform_weights(weight) if step is None else step.transformed_weights(tiling, weight)
    y = _empty_result(x, weight, stride, sides)

    def convolve(images: slice) -> None:
        steps = chunk_steps(x[images], weight, *options)
        for x_chunk, y_chunk in zip(*_split(steps.images, images, x, y), strict=True):
            steps.write_results(steps.multiply(steps.transform_inputs(x_chunk), weights), bias, y_chunk, relu=relu)

    tiling.run(convolve, len(x))
    return y


def _split(chunk: int, images: slice, *batches: Tensor) -> list[tuple[Tensor, ...]]:
    """For each batch, its `images` in chunks, as images x rows x columns x channels."""
    return [batch[images].permute(0, 2, 3, 1).split(chunk) for batch in batches]


@_forward.register_fake
def _(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, sides: Sequence[int], groups: int, relu: bool
) -> Tensor:
    return _empty_result(x, weight, stride, sides)


def _empty_result(x: Tensor, weight: Tensor, stride: int, sides: Sequence[int]) -> Tensor:
    return torch.empty(
        (x.shape[0], weight.shape[0], *_result_size(x, weight, stride, sides)),
        dtype=x.dtype,
        device=x.device,
        memory_format=torch.channels_last,
    )


def _result_size(x: Tensor, weight: Tensor, stride: int, sides: Sequence[int]) -> tuple[int, int]:
    """Height and width."""
    top, bottom, left, right = sides
    height = (top + x.shape[2] + bottom - weight.shape[2]) // stride + 1
    width = (left + x.shape[3] + right - weight.shape[3]) // stride + 1
    return height, width


@operator("fastalex::winograd_backward")
def _backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    y: Tensor | None,
    stride: int,
    sides: Sequence[int],
    groups: int,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, weight and bias that `needs` selects; the others are empty. `y` is None without a ReLU."""
    return _run_backward(None, grad, x, weight, y, stride, sides, groups, needs=needs)


def _run_backward(
    step: _StepTransforms | None,
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    y: Tensor | None,
    stride: int,
    sides: Sequence[int],
    groups: int,
    *,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`_backward`. With `step`, the weight's gradient is added there and the one returned is empty."""
    options = (stride, sides, groups)
    grad_x, grad_weight, grad_bias = _empty_gradients(x, weight, [needs[0], needs[1] and step is None, needs[2]])
    x, grad = dense_as(x, channels_last=True), dense_as(grad, channels_last=True)
    tiling = Tiling(x, weight, *options)
    weights = total = None  # transformed, like the gradients of the weight below
    if needs[0]:
        weights = tiling.transform_weights(weight) if step is None else step.transformed_weights(tiling, weight)
    if needs[1]:
        total = tiling.zero_gradient(weight) if step is None else step.gradient_sum(x, weight, *options)
    batches = (grad, grad if y is None else y, x, grad_x if needs[0] else x)

    def go_back(images: slice) -> tuple[Tensor | None, Tensor]:
        steps = chunk_steps(x[images], weight, *options)
        own, own_bias = total, weight.new_zeros(weight.shape[0], dtype=tiling.compute_dtype)
        if own is not None and images.start > 0:  # the first thread adds to the total itself
            own = tiling.zero_gradient(weight)
        for upstream, result, x_chunk, out in zip(*_split(steps.images, images, *batches), strict=True):
            gradient, bias_gradient = steps.transform_gradient(upstream, None if y is None else result)
            own_bias += bias_gradient
            if own is not None:
                steps.add_weight_gradient(own, steps.transform_inputs(x_chunk), gradient)
            if weights is not None:
                steps.write_inputs_gradient(steps.multiply_backward(gradient, weights), out)
        return own, own_bias

    by_thread, bias_by_thread = zip(*tiling.run(go_back, len(x)), strict=True)
    if needs[2]:
        grad_bias.copy_(torch.stack(bias_by_thread).sum(0))
    if total is not None:
        for other in by_thread[1:]:
            total += other
        if step is None:
            grad_weight.copy_(tiling.weight_gradient(total))
    return grad_x, grad_weight, grad_bias


@_backward.register_fake
def _(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    y: Tensor | None,
    stride: int,
    sides: Sequence[int],
    groups: int,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_gradients(x, weight, needs)


def _empty_gradients(x: Tensor, weight: Tensor, needs: Sequence[bool]) -> tuple[Tensor, Tensor, Tensor]:
    grad_x, grad_weight, grad_bias = torch.empty_like(x), torch.empty_like(weight), weight.new_empty(weight.shape[0])
    return tuple(
        gradient if needed else weight.new_empty(0)
        for gradient, needed in zip((grad_x, grad_weight, grad_bias), needs, strict=True)
    )  # type: ignore[return-value]


# ------------------------------------------------------------------------------------------------ autograd, public


class _Winograd(torch.autograd.Function):
    """Saves x, the weight and, with a ReLU, the result."""

    @staticmethod
    def forward(ctx, x, weight, bias, stride, sides, groups, relu, sink, step):
        if step is None:
            y = _forward(x, weight, bias, stride, sides, groups, relu)
        else:
            y = _run_forward(step, x, weight, bias, stride, sides, groups, relu)
        ctx.save_for_backward(x, weight, y if relu else None)
        ctx.options = (stride, sides, groups)
        ctx.sink, ctx.step = sink, step
        return y

    @staticmethod
    @no_double_backward("conv2d_relu")
    def backward(ctx, grad):
        needs, operands = list(ctx.needs_input_grad[:3]), (grad, *ctx.saved_tensors, *ctx.options)
        sink, step = ctx.sink, ctx.step
        accumulates = step is not None and needs[1]
        if sink is not None and sink.defer and needs[1]:
            sink.add(functools.partial(_deferred_gradient, operands, step, sink))
            needs[1] = accumulates = False
        gradients = _backward(*operands, needs) if step is None else _run_backward(step, *operands, needs=needs)
        wanted = [gradient if needed else None for gradient, needed in zip(gradients, needs, strict=True)]
        if accumulates:
            wanted[1] = step.finish_backward(sink)
        return *wanted, None, None, None, None, None, None


@torch.no_grad()
def _deferred_gradient(operands: tuple, step: _StepTransforms | None, sink: GradientSink) -> Tensor | None:
    """The weight's gradient of one backward pass; None if it was added to the step's sum."""
    needs = [False, True, False]
    if step is None:
        return _backward(*operands, needs)[1]
    _run_backward(step, *operands, needs=needs)
    return step.finish_backward(sink)


def _filters_bf16() -> bool:
    """Whether the processor gains, and native.c is there: PyTorch would transform in bf16."""
    return build.library() is not None and processor.filters_bf16()


# A tracer cannot look at the processor and the compiled library. This is torch.compiler.assume_constant_result, which
# would import the compiler, for seconds.
_filters_bf16._dynamo_marked_constant = True  # type: ignore[attr-defined]


def is_faster(x: Tensor, weight: Tensor, stride: int, sides: Sequence[int]) -> bool:
    """Whether Winograd convolution supports these arguments and is faster than PyTorch's operator.

    Never for an exported program: which one is faster depends on the batch, which may be left open there.
    """
    if torch.compiler.is_exporting():
        return False
    if x.device.type != "cpu" or torch.is_autocast_enabled("cpu") or weight.dtype != x.dtype:
        return False
    # In bf16, oneDNN's own products beat transforms of large strided maps.
    bf16 = x.dtype == torch.bfloat16 and stride == 1 and _filters_bf16()
    if not bf16 and x.dtype not in (torch.float32, torch.float64):
        return False
    filters, depth, *kernel = weight.shape
    size = -(-kernel[0] // stride)
    if kernel[0] != kernel[1] or size not in FILTER_SIZES or not is_channels_last(x):
        return False
    rows, columns = tile_grid(size, _result_size(x, weight, stride, sides), x.dtype)[2]
    groups = x.shape[1] // depth
    few_channels = depth * stride**2 < MIN_CHANNELS or filters // groups < MIN_CHANNELS
    return not few_channels and x.shape[0] * rows * columns >= MIN_TILES


def conv2d_relu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    sides: tuple[int, int, int, int],
    groups: int,
    *,
    relu: bool,
    gradient_sink: GradientSink | None = None,
) -> Tensor:
    """As :func:`kernels.native.conv2d_relu`.

    In a step of `gradient_sink`, the micro-batches share the transformed weights, and their weight gradients are
    added up before they are transformed back. This does not work under torch.compile.
    """
    step = None
    if gradient_sink is not None and gradient_sink.in_step and torch.is_grad_enabled():
        if gradient_sink.step_state is None:
            gradient_sink.step_state = _StepTransforms()
        step = gradient_sink.step_state
    return _Winograd.apply(x, weight, bias, stride, list(sides), groups, relu, gradient_sink, step)

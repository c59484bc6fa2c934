"""Convolution, bias and ReLU.

    z[n, o, i, j] = bias[o] + sum over c, a, b of weight[o, c, a, b] * x[n, c, i * stride - top + a, ...]
    y = relu(z)

    grad_z = grad_y where y > 0, else 0             grad_bias[o] = sum over n, i, j of grad_z[n, o, i, j]
    grad_x[n, c, h, w]      = sum over o, a, b of weight[o, c, a, b] * grad_z[n, o, (h + top - a) / stride, ...]
    grad_weight[o, c, a, b] = sum over n, i, j of grad_z[n, o, i, j] * x[n, c, i * stride - top + a, ...]

(columns likewise; values outside x or z are 0).

Source: section 3.5 of Krizhevsky, Sutskever and Hinton (2012) for the layers, section 3.1 for the ReLU.

Each of the three products is computed either by the Triton kernels of `kernels.conv_gemm` or by cuDNN, whichever a
measurement on this GPU found faster (`kernels.launch_settings`); without a measurement by cuDNN. What cuDNN leaves out
is computed here: bias and ReLU in place, and the backward pass of the ReLU.

Backward saves x, the weight and, for the ReLU's sign, y. Where forward and the weight gradient compute on x after
space-to-depth, that is made once and saved, too. One pass over grad_y and y writes grad_z and sums the bias
gradient (`kernels.channel_sum`). Masking inside the two products would read y once for every tap.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import arguments, conv_gemm, dispatch, launch_settings, native, reference
from kernels.autograd import is_traced, no_double_backward, operator
from kernels.channel_sum import bias_relu_backward
from kernels.dispatch import tl, triton
from kernels.gradient_sink import GradientSink
from kernels.launch_settings import Direction, Problem
from kernels.memory_format import dense_as, empty_as, is_channels_last
from kernels.vector_lanes import upcast

# The groups are the second axis of a grid, whose length CUDA limits.
_MAX_GROUPS = 65535


@triton.jit(do_not_specialize=["rows"])
def bias_relu_fwd_kernel(
    y_ptr, bias_ptr, rows, FILTERS: tl.constexpr, HAS_BIAS: tl.constexpr, RELU: tl.constexpr, ITEMS: tl.constexpr,
    VECTOR: tl.constexpr,
):  # fmt: skip
    """y = relu(y + bias) in place, for y of rows x FILTERS. A program handles ITEMS vectors of VECTOR filters."""
    VECTORS: tl.constexpr = FILTERS // VECTOR
    first = tl.program_id(0).to(tl.int64) * ITEMS
    item = tl.arange(0, ITEMS)
    lane = tl.arange(0, VECTOR)[None, :]
    mask = (first + item < rows.to(tl.int64) * VECTORS)[:, None]
    pointers = y_ptr + first * VECTOR + (item[:, None] * VECTOR + lane)
    value = upcast(tl.load(pointers, mask=mask, other=0.0))
    if HAS_BIAS:
        channel = ((first % VECTORS).to(tl.int32) + item) % VECTORS * VECTOR
        value += tl.load(bias_ptr + channel[:, None] + lane).to(value.dtype)
    if RELU:
        # This comparison keeps NaN.
        value = tl.where(value <= 0.0, 0.0, value)
    tl.store(pointers, value, mask=mask)


def add_bias_relu_(y: Tensor, bias: Tensor | None, relu: bool) -> None:
    """Add the bias and apply the ReLU in place, to a dense channels_last tensor."""
    batch, filters, height, width = y.shape
    rows = batch * height * width
    vector = launch_settings.vector_width(filters, y.element_size())
    with launch_settings.on_device_of(y):
        bias_relu_fwd_kernel[(launch_settings.programs(rows * (filters // vector)),)](
            y,
            y if bias is None else bias,
            rows,
            FILTERS=filters,
            HAS_BIAS=bias is not None,
            RELU=relu,
            ITEMS=launch_settings.ITEMS,
            VECTOR=vector,
            **launch_settings.OPTIONS,
        )


def library_forward(x: Tensor, weight: Tensor, bias: Tensor | None, problem: Problem, relu: bool) -> Tensor:
    """y by cuDNN's product, of channels_last x and weight, in channels_last."""
    x, padding = _pad(x, problem)
    y = dense_as(F.conv2d(x, weight, None, problem.stride, padding, 1, problem.groups), True)
    if bias is not None or relu:
        add_bias_relu_(y, bias, relu)
    return y


def library_backward(grad: Tensor, x: Tensor | None, weight: Tensor, problem: Problem, direction: Direction) -> Tensor:
    """cuDNN's gradient of x (which needs no x) or of the weight (which needs only the weight's shape)."""
    is_data = direction == "data_gradient"
    if is_data:
        # PyTorch reads the shape of x.
        shape = problem.batch, problem.channels, problem.height, problem.width
        x = conv_gemm.empty_channels_last(shape, grad)
    assert x is not None
    x, padding = _pad(x, problem)
    grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
        grad, x, weight, None, [problem.stride] * 2, padding, [1, 1], False, [0, 0], problem.groups,
        [is_data, not is_data, False],
    )  # fmt: skip
    if not is_data:
        return grad_weight
    top, left = problem.padding[0] - padding[0], problem.padding[2] - padding[1]
    return grad_x[:, :, top : top + problem.height, left : left + problem.width]


def _pad(x: Tensor, problem: Problem) -> tuple[Tensor, tuple[int, int]]:
    """x, padded here if its padding is not symmetric, and the symmetric padding that is left to PyTorch."""
    top, bottom, left, right = problem.padding
    if top == bottom and left == right:
        return x, (top, left)
    return dense_as(F.pad(x, (left, right, top, bottom)), True), (0, 0)


def _gradient(
    direction: Direction, grad: Tensor, x: Tensor, weight: Tensor, problem: Problem, forced: bool,
    squares: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """The gradient of x or of the weight, in channels_last."""
    settings = launch_settings.choose(direction, problem, launch_settings.gpu_of(x), forced)
    if settings is None:
        return library_backward(grad, x, weight, problem, direction)
    if direction == "data_gradient":
        return conv_gemm.run_backward_data(grad, weight, problem, settings)
    return conv_gemm.run_backward_weight(grad, x, problem, settings, squares)


def _check_offsets(problem: Problem) -> None:
    """Check that offsets within one padded image and within the weight fit 32 bits; a batch may have any size."""
    top, bottom, left, right = problem.padding
    height, width = problem.kernel
    in_image = problem.channels * (problem.height + top + bottom) * (problem.width + left + right)
    arguments.check_elements("x", in_image, " per padded image")
    in_result = problem.filters * (problem.out_height + height) * (problem.out_width + width)
    arguments.check_elements("the result", in_result, " per padded image")
    arguments.check_elements("weight", problem.filters * problem.channels // problem.groups * height * width)


def _squares(
    x: Tensor, weight: Tensor, stride: int, padding: Sequence[int], groups: int, epilogue: bool, forced: bool
) -> Tensor | None:
    """x after space-to-depth, if forward and the weight gradient both compute on that; else None.

    Made once for both, it is saved for backward. Under a tracer each of them makes its own.
    """
    if stride == 1 or is_traced((x, weight)):
        return None
    problem = launch_settings.problem_of(x, weight, stride, padding, groups)
    _check_offsets(problem)
    directions: tuple[tuple[Direction, bool], ...] = (("forward", epilogue), ("weight_gradient", False))
    for direction, has_epilogue in directions:
        wanted = dataclasses.replace(problem, epilogue=has_epilogue)
        settings = launch_settings.choose(direction, wanted, launch_settings.gpu_of(x), forced)
        if settings is None or not settings.rearranged:
            return None
    return conv_gemm.space_to_depth(dense_as(x, True), problem)


@operator("fastalex::conv_relu_forward")
def _forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: Sequence[int], groups: int, relu: bool,
    forced: bool, squares: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """y in x's memory format.

    `padding` has four sides; `forced` uses Triton even if cuDNN may be faster; `squares` is x after space-to-depth.
    """
    problem = launch_settings.problem_of(x, weight, stride, padding, groups, relu or bias is not None)
    _check_offsets(problem)
    settings = launch_settings.choose("forward", problem, launch_settings.gpu_of(x), forced)
    channels_last = is_channels_last(x)
    x, weight = dense_as(x, True), dense_as(weight, True)
    bias = None if bias is None else bias.contiguous()
    if settings is None:
        y = library_forward(x, weight, bias, problem, relu)
    else:
        y = conv_gemm.run_forward(x, weight, bias, problem, relu, settings, squares)
    return dense_as(y, channels_last)


@_forward.register_fake
def _(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: Sequence[int], groups: int, relu: bool,
    forced: bool, squares: Tensor | None = None,
) -> Tensor:  # fmt: skip
    problem = launch_settings.problem_of(x, weight, stride, padding, groups)
    return empty_as(x, (problem.batch, problem.filters, problem.out_height, problem.out_width))


@operator("fastalex::conv_relu_backward")
def _backward(
    grad: Tensor, x: Tensor, weight: Tensor, y: Tensor | None, stride: int, padding: Sequence[int], groups: int,
    needs: Sequence[bool], forced: bool, squares: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of x, weight and bias; those that `needs` excludes are empty.

    `y` is None without a ReLU, `squares` is what forward used.
    """
    problem = launch_settings.problem_of(x, weight, stride, padding, groups)
    _check_offsets(problem)
    needs_x, needs_weight, needs_bias = needs
    x_channels_last, weight_channels_last = is_channels_last(x), is_channels_last(weight)
    grad, x, weight = dense_as(grad, True), dense_as(x, True), dense_as(weight, True)
    grad_x = grad_weight = grad_bias = None
    # From here on, grad is the gradient of z.
    if y is not None or needs_bias:
        y = None if y is None else dense_as(y, True)
        grad, grad_bias = bias_relu_backward(grad, y, needs_bias, x.dtype)
    if needs_x:
        grad_x = dense_as(_gradient("data_gradient", grad, x, weight, problem, forced), x_channels_last)
    if needs_weight:
        grad_weight = _gradient("weight_gradient", grad, x, weight, problem, forced, squares)
        grad_weight = dense_as(grad_weight, weight_channels_last)
    return _or_empty(grad_x, x), _or_empty(grad_weight, x), _or_empty(grad_bias, x)


@_backward.register_fake
def _(
    grad: Tensor, x: Tensor, weight: Tensor, y: Tensor | None, stride: int, padding: Sequence[int], groups: int,
    needs: Sequence[bool], forced: bool, squares: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    grad_bias = torch.empty(weight.shape[0], dtype=x.dtype, device=x.device)
    all_three = (empty_as(x), empty_as(weight), grad_bias)
    gradients = [_or_empty(gradient if needed else None, x) for gradient, needed in zip(all_three, needs, strict=True)]
    return gradients[0], gradients[1], gradients[2]


def _or_empty(gradient: Tensor | None, like: Tensor) -> Tensor:
    return torch.empty(0, dtype=like.dtype, device=like.device) if gradient is None else gradient


class _ConvRelu(torch.autograd.Function):
    """Saves x, the weight, with a ReLU the result, and x after space-to-depth if the weight gradient computes on it."""

    @staticmethod
    def forward(ctx, x, weight, bias, stride, padding, groups, relu, forced, gradient_sink):
        squares = None
        if ctx.needs_input_grad[1]:
            squares = _squares(x, weight, stride, padding, groups, relu or bias is not None, forced)
        y = _forward(x, weight, bias, stride, padding, groups, relu, forced, squares)
        ctx.save_for_backward(x, weight, y if relu else None, squares)
        ctx.options = (stride, padding, groups)
        ctx.forced, ctx.gradient_sink = forced, gradient_sink
        return y

    @staticmethod
    @no_double_backward("conv2d_relu")
    def backward(ctx, grad):
        needs, forced, sink = list(ctx.needs_input_grad[:3]), ctx.forced, ctx.gradient_sink
        *saved, squares = ctx.saved_tensors
        operands = (grad, *saved, *ctx.options)
        if sink is not None and sink.defer and needs[1]:
            sink.add(lambda: _backward(*operands, [False, True, False], forced, squares)[1])
            needs[1] = False
        gradients = _backward(*operands, needs, forced, squares)
        wanted = [gradient if needed else None for gradient, needed in zip(gradients, needs, strict=True)]
        return *wanted, None, None, None, None, None, None


def conv2d_relu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    relu: bool = True,
    gradient_sink: GradientSink | None = None,
) -> Tensor:
    """`torch.nn.functional.conv2d`, with its arguments and defaults, followed by a ReLU unless `relu` is False.

    The formula is at the top of `kernels/conv_relu.py`. PyTorch's operator computes strides that differ, dilation and
    more than 65,535 groups. Products are accumulated in fp32 (fp64 for fp64), and on CUDA fp32 factors are rounded to
    TF32 first if `torch.backends.cudnn.allow_tf32` is set. On CPUs, large enough fp32 and fp64 convolutions in
    channels_last are computed by Winograd's minimal filtering (`kernels.native`): rounding errors are about seven times
    those of plain sums, and rounding in the weight gradient depends on the number of threads. With it, and with
    space-to-depth on GPUs, a non-finite value of x may reach neighbouring windows too. `kernels.using("reference")`
    avoids all of this.

    Differentiable once: there is no double backward, except where PyTorch's own operator computes (on CPUs without
    minimal filtering), and no transform of `torch.func` (grad, jvp, vmap) works. `kernels.using("reference")` has both.

    Args:
        x: N x C x H x W or C x H x W; float32, float16, bfloat16 or float64. channels_last is fastest, for the weight
            too.
        weight: K x C/groups x KH x KW, in x's dtype; under autocast also in another one, but fp64 only with fp64.
        bias: K values, or None.
        stride, dilation: at least 1; an int or (vertical, horizontal).
        padding: rows and columns of zeros: one int, (height, width) or (top, bottom, left, right), or as in PyTorch
            "valid" for none or "same" for a result of x's size.
        groups: divides C and K.
        relu: False leaves out the ReLU, for layers that normalise first.
        gradient_sink: defers or accumulates the weight gradient, which backward then leaves at None
            (:class:`kernels.GradientSink`). PyTorch's own operators ignore it. Not supported under torch.compile.

    Returns:
        N x K x OH x OW (K x OH x OW) with OH = (top + H + bottom - dilation * (KH - 1) - 1) // stride + 1, OW likewise;
        from Triton in x's memory format. Under autocast in its dtype, like `conv2d`.

    Raises:
        TypeError, ValueError: an argument is not as described, or no window fits; raised before any computation.
    """
    if isinstance(x, Tensor) and x.dim() == 3:
        options = (stride, padding, dilation, groups)
        y = conv2d_relu(x.unsqueeze(0), weight, bias, *options, relu=relu, gradient_sink=gradient_sink)
        return y.squeeze(0)
    strides, dilations = arguments.pair("stride", stride, 1), arguments.pair("dilation", dilation, 1)
    arguments.check_convolution(x, weight, bias, groups)
    sides = arguments.sides_of(padding, (weight.shape[2], weight.shape[3]), strides, dilations)
    arguments.check_convolution_fits(x, weight, sides, dilations)
    arguments.check_bool("relu", relu)
    if gradient_sink is not None and not isinstance(gradient_sink, GradientSink):
        raise TypeError(f"gradient_sink must be a GradientSink or None, got {type(gradient_sink).__name__}")
    return _compute(x, weight, bias, strides, sides, dilations, groups, relu, gradient_sink)


def _compute(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    sides: tuple[int, int, int, int],
    dilation: tuple[int, int],
    groups: int,
    relu: bool,
    gradient_sink: GradientSink | None,
) -> Tensor:
    """:func:`conv2d_relu` of checked arguments."""
    chosen = dispatch.implementation_for(x)
    operands = (x, weight, bias, stride, sides, dilation, groups)
    if chosen == "reference":
        return reference.conv2d_relu(*operands, relu=relu)
    step = stride[0]
    has_kernel = stride == (step, step) and dilation == (1, 1) and groups <= _MAX_GROUPS
    # Empty tensors follow PyTorch's own rules.
    if chosen == "native" or not has_kernel or x.numel() == 0 or weight.numel() == 0:
        return native.conv2d_relu(*operands, relu=relu, gradient_sink=gradient_sink)
    x, weight, bias = _autocast(x, weight, bias)
    forced = dispatch.triton_is_forced()
    return _ConvRelu.apply(x, weight, bias, step, list(sides), groups, relu, forced, gradient_sink)


def _autocast(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """The operands in autocast's dtype if it is on. Like PyTorch, it leaves fp64 alone."""
    device = x.device.type
    if not torch.is_autocast_enabled(device) or x.dtype == torch.float64:
        return x, weight, bias
    dtype = torch.get_autocast_dtype(device)
    return x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)

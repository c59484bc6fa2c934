"""Max pooling on a CPU, alone and fused with bias, ReLU and local response normalisation.

Max pooling alone is PyTorch's operator. The fused operator is computed by `native.c` in fp32 and bf16 in channels_last;
in all other cases by PyTorch, a few images at a time, so that the normalised maps stay in the caches.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.autograd import no_double_backward, operator
from kernels.memory_format import dense_as, empty_as, is_channels_last
from kernels.native import c_functions
from kernels.native.buffers import compute_dtype
from kernels.native.normalisation import normalise, normalise_backward, same_map_norm


def max_pool2d(
    x: Tensor,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    *,
    ceil_mode: bool,
) -> Tensor:
    """As :func:`kernels.max_pool2d`, without the checks."""
    return F.max_pool2d(x, kernel, stride, padding, dilation, ceil_mode=ceil_mode)


class _WindowIndices:
    """Positions of maxima within their pooling windows, dh * kernel_size + dw, in a narrow dtype.

    Attributes:
        dtype: uint8 for windows up to 15 x 15, else int32.
        none: marks an element that the ReLU set to 0.
    """

    def __init__(self, x: Tensor, kernel_size: int, stride: int) -> None:
        height, width = ((length - kernel_size) // stride + 1 for length in x.shape[2:])
        self.like, self.shape, self.kernel_size = x, (*x.shape[:2], height, width), kernel_size
        rows, columns = (torch.arange(count, device=x.device) * stride for count in (height, width))
        self._corners = rows[:, None] * x.shape[3] + columns
        self.dtype = torch.uint8 if kernel_size**2 <= 255 else torch.int32
        self.none = torch.iinfo(self.dtype).max

    def new_output(self, dtype: torch.dtype) -> Tensor:
        """An uninitialised tensor of the pooled shape, in x's layout."""
        return empty_as(self.like, self.shape, dtype)

    def from_map_indices(self, indices: Tensor) -> Tensor:
        """Convert PyTorch's indices, which count the pixels of the map; `indices` is overwritten."""
        indices -= self._corners
        return indices - indices // self.like.shape[3] * (self.like.shape[3] - self.kernel_size)

    def to_map_indices(self, argmax: Tensor) -> Tensor:
        """The inverse of :meth:`from_map_indices`; `argmax` is int64."""
        return argmax + argmax // self.kernel_size * (self.like.shape[3] - self.kernel_size) + self._corners


def _runs_in_c(x: Tensor, bias: Tensor | None, indices: _WindowIndices) -> bool:
    fits = is_channels_last(x) and x.numel() > 0 and indices.dtype == torch.uint8
    return fits and (bias is None or bias.dtype in (x.dtype, torch.float32)) and c_functions.supports(x)


def _chunk_buffer(x: Tensor) -> Tensor:
    """A buffer of four images per thread, or of all images on a GPU, in x's layout. Smaller chunks were slower."""
    images = x.shape[0] if x.is_cuda else min(4 * torch.get_num_threads(), x.shape[0])
    return empty_as(x, (images, *x.shape[1:]), compute_dtype(x))


def _add_bias(chunk: Tensor, bias: Tensor | None, relu: str | None) -> Tensor:
    """chunk + bias in the dtype computed in, and the ReLU if it comes before normalisation."""
    wide = chunk.to(compute_dtype(chunk))
    if bias is not None:
        wide = wide + bias.to(wide.dtype).view(-1, 1, 1)
    return wide.relu() if relu == "before" else wide


@operator("fastalex::native_lrn_pool_forward")
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
) -> tuple[Tensor, Tensor]:
    """The result, and the position of each maximum within its window (see `_WindowIndices`)."""
    channels_last = is_channels_last(x)
    x = dense_as(x, channels_last)
    window_indices = _WindowIndices(x, kernel_size, stride)
    y, argmax = window_indices.new_output(x.dtype), window_indices.new_output(window_indices.dtype)
    if _runs_in_c(x, bias, window_indices):
        c_functions.lrn_pool_forward(x, bias, y, argmax, (size, alpha, beta, k), groups, (kernel_size, stride), relu)
        return y, argmax
    buffer = _chunk_buffer(x)
    for start in range(0, x.shape[0], buffer.shape[0] or 1):
        images = slice(start, min(start + buffer.shape[0], x.shape[0]))
        biased = _add_bias(x[images], bias, relu)
        normalised = buffer[: biased.shape[0]]
        normalise(biased, normalised, "channels", size, alpha, beta, k, groups)
        pooled, map_indices = torch.ops.aten.max_pool2d_with_indices(normalised, [kernel_size] * 2, [stride] * 2)
        y[images] = pooled
        found = window_indices.from_map_indices(map_indices)
        argmax[images] = found.masked_fill_(pooled <= 0, window_indices.none) if relu == "after" else found
    return y.relu_() if relu == "after" else y, argmax


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
) -> tuple[Tensor, Tensor]:
    window_indices = _WindowIndices(x, kernel_size, stride)
    return window_indices.new_output(x.dtype), window_indices.new_output(window_indices.dtype)


@operator("fastalex::native_lrn_pool_backward")
def _backward(
    grad: Tensor,
    argmax: Tensor,
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
) -> tuple[Tensor, Tensor]:
    """The gradients of x and, in the dtype computed in, of the bias."""
    channels_last = is_channels_last(x)
    x, grad = dense_as(x, channels_last), dense_as(grad, channels_last)
    window_indices = _WindowIndices(x, kernel_size, stride)
    grad_x = empty_as(x)
    if _runs_in_c(x, bias, window_indices):
        options = (size, alpha, beta, k), groups, (kernel_size, stride), relu
        return grad_x, c_functions.lrn_pool_backward(grad, argmax, x, bias, grad_x, *options)
    grad_bias = torch.zeros(x.shape[1], dtype=compute_dtype(x), device=x.device)
    whole_buffer = _chunk_buffer(x)
    for start in range(0, x.shape[0], whole_buffer.shape[0] or 1):
        images = slice(start, min(start + whole_buffer.shape[0], x.shape[0]))
        biased = _add_bias(x[images], bias, relu)
        buffer = whole_buffer[: biased.shape[0]]
        upstream, indices = grad[images].to(biased.dtype), argmax[images].long()
        if relu == "after":
            zeroed = indices == window_indices.none
            upstream, indices = upstream.masked_fill(zeroed, 0), indices.masked_fill_(zeroed, 0)
        indices = window_indices.to_map_indices(indices)
        upstream = torch.ops.aten.max_pool2d_with_indices_backward(
            upstream, buffer, [kernel_size] * 2, [stride] * 2, [0, 0], [1, 1], False, indices
        )
        normalise_backward(upstream, biased, buffer, "channels", size, alpha, beta, k, groups)
        if relu == "before":
            torch.ops.aten.threshold_backward(buffer, biased, 0, grad_input=buffer)
        grad_x[images] = buffer
        if bias is not None:
            grad_bias += buffer.sum((0, 2, 3))
    return grad_x, grad_bias


@_backward.register_fake
def _(
    grad: Tensor,
    argmax: Tensor,
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
) -> tuple[Tensor, Tensor]:
    grad_bias = torch.empty(x.shape[1], dtype=compute_dtype(x), device=x.device)
    return empty_as(x), grad_bias


class _LrnMaxPool(torch.autograd.Function):
    """Saves the input, the bias, and a byte per pooled element; backward computes the scale again."""

    @staticmethod
    def forward(ctx, x, bias, *options):
        y, argmax = _forward(x, bias, *options)
        ctx.save_for_backward(argmax, x, bias)
        ctx.options = options
        return y

    @staticmethod
    @no_double_backward("lrn_max_pool2d")
    def backward(ctx, grad):
        argmax, x, bias = ctx.saved_tensors
        grad_x, grad_bias = _backward(grad, argmax, x, bias, *ctx.options)
        return grad_x, None if bias is None else grad_bias.to(bias.dtype), *([None] * len(ctx.options))


def lrn_max_pool2d(
    x: Tensor,
    size: int,
    alpha: float,
    beta: float,
    k: float,
    *,
    groups: int,
    kernel_size: int,
    stride: int,
    bias: Tensor | None,
    relu: str | None,
) -> Tensor:
    """As :func:`kernels.lrn_max_pool2d`, without the checks."""
    return _LrnMaxPool.apply(x, bias, size, alpha, beta, k, groups, kernel_size, stride, relu)


def same_map_norm_max_pool2d(
    x: Tensor, size: int, alpha: float, beta: float, k: float, *, kernel_size: int, stride: int
) -> Tensor:
    """As :func:`kernels.same_map_norm_max_pool2d`, without the checks."""
    return F.max_pool2d(same_map_norm(x, size, alpha, beta, k), kernel_size, stride)

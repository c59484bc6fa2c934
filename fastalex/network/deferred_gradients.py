"""Deferred weight gradients of fully connected layers: one matrix product per step instead of one per micro-batch.

:class:`LinearGradientSink` collects the rows of all micro-batches, and :func:`linear` is the layer that feeds it. The
counterpart for convolutions is :class:`kernels.GradientSink`. A block's ``gradient_sink`` is one of the two, or None
if its weight gradient is computed within each backward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.autograd import no_double_backward

_HAS_ONEDNN = torch.backends.mkldnn.is_available()


class LinearGradientSink:
    """Collects inputs and output gradients of a fully connected layer, to compute its weight gradient once per step.

    The gradient of W in y = x W^T is dW = dy^T x, a sum over rows. Computed per micro-batch, every product reads and
    writes the whole gradient (fc6: 151 MB in fp32). Computed from the rows of all micro-batches, it is written once.

    Args:
        weight: the master weight of the layer that this sink serves.
        micro_batches: the backward pass of this many micro-batches returns the gradient; None leaves it to
            :meth:`finish`.
    """

    def __init__(self, weight: nn.Parameter, micro_batches: int | None = None) -> None:
        self.micro_batches = micro_batches
        self._weight = weight
        self._inputs: list[Tensor] = []
        self._output_gradients: list[Tensor] = []
        self._buffer: Tensor | None = None
        self._on_complete: tuple[int, Callable[[], object]] | None = None

    @property
    def has_deferred(self) -> bool:
        """Whether rows wait for :meth:`finish`."""
        return bool(self._inputs)

    def add(self, inputs: Tensor, output_gradients: Tensor) -> Tensor | None:
        """Store a micro-batch's rows (N x in, N x out).

        Returns:
            The weight gradient of all rows, in their dtype, if this is the last of ``micro_batches``; else None.
        """
        self._inputs.append(inputs)
        self._output_gradients.append(output_gradients)
        if self._on_complete is not None and len(self._inputs) == self._on_complete[0]:
            self._on_complete[1]()
        if len(self._inputs) != self.micro_batches:
            return None
        inputs, output_gradients = self._take_rows()
        return output_gradients.t() @ inputs

    def when_complete(self, micro_batches: int, call: Callable[[], object] | None) -> None:
        """Call a function within backward passes as soon as the rows of so many micro-batches are stored.

        The layer has then used its weight for the last time in the step. None calls nothing any more.
        """
        self._on_complete = None if call is None else (micro_batches, call)

    def record_stream(self, stream: torch.Stream) -> None:
        """Keep the memory of the stored rows until ``stream`` has done what it has been given by then."""
        for rows in (*self._inputs, *self._output_gradients):
            rows.record_stream(stream)

    def begin_step(self) -> None:
        """Start a step. Drops the rows of an unfinished one."""
        self.discard()

    @torch.no_grad()
    def finish(self) -> Tensor | None:
        """The weight gradient of all stored rows, in the order of their backward passes; None if there are none.

        The result reuses the memory of the previous step's gradient, unless the weight still has a gradient.
        """
        if not self._inputs:
            return None
        inputs, output_gradients = self._take_rows()
        weight = self._weight
        if weight.grad is not None:  # it may be the buffer
            return output_gradients.t() @ inputs
        # On a CPU, faulting in fresh pages for a gradient of this size costs more than the product.
        if self._buffer is None or self._buffer.device != weight.device:
            self._buffer = torch.empty_like(weight)
        if inputs.dtype == weight.dtype:
            torch.mm(output_gradients.t(), inputs, out=self._buffer)
        elif weight.is_cuda:  # writes the fp32 sums directly, without rounding them to bf16 first
            torch.ops.aten.mm.dtype_out(output_gradients.t(), inputs, weight.dtype, out=self._buffer)
        else:
            self._buffer.copy_(output_gradients.t() @ inputs)
        return self._buffer

    def discard(self) -> None:
        """Drop all rows."""
        self._inputs.clear()
        self._output_gradients.clear()

    def _take_rows(self) -> tuple[Tensor, Tensor]:
        if len(self._inputs) == 1:
            rows = self._inputs[0], self._output_gradients[0]
        else:
            rows = torch.cat(self._inputs), torch.cat(self._output_gradients)
        self.discard()
        return rows


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, gradient_sink: LinearGradientSink | None = None
) -> Tensor:
    """y = x W^T + b, with x: N x in, W: out x in, b: out values or None.

    With a sink, the backward pass hands the weight gradient to it instead of computing it.
    """
    if gradient_sink is None:
        return _multiply(x, weight, bias)
    return _DeferredLinear.apply(x, weight, bias, gradient_sink)


class _DeferredLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, sink: LinearGradientSink) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.sink = sink
        return _multiply(x, weight, bias)

    @staticmethod
    @no_double_backward("a fully connected layer")
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        (grad_y,) = gradients
        x, weight = ctx.saved_tensors
        grad_x = _multiply(grad_y, weight.t(), None) if ctx.needs_input_grad[0] else None
        grad_weight = ctx.sink.add(x, grad_y) if ctx.needs_input_grad[1] else None
        grad_bias = grad_y.sum(0) if ctx.needs_input_grad[2] else None
        return grad_x, grad_weight, grad_bias, None


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x W^T + b by the fastest library for the device, dtype and mode."""
    if x.is_cuda or x.dtype != torch.float32:
        return F.linear(x, weight, bias)
    # oneDNN is a fifth to a third faster than MKL, which F.linear calls: with few rows it packs W faster. It has no
    # autograd formula.
    if _HAS_ONEDNN and not (torch.is_grad_enabled() or torch.compiler.is_compiling()):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    # Computed as W x^T, because MKL packs the right-hand matrix: with few rows, packing W would take longer than the
    # product.
    y = (weight @ x.t()).t().contiguous()
    return y if bias is None else y + bias

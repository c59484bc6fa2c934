"""TODO."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.autograd import no_double_backward


class KeptFactors:
    """Inputs and output gradients of one fully connected layer, of the micro-batches since its last weight gradient.

    A weight gradient is a sum of products over rows. Made for every micro-batch apart, each product reads and writes
    the whole gradient (fc6: 151 MB in fp32); made once of all rows, it is written once.

    Args:
        micro_batches: after so many the gradient is made; None leaves that to :meth:`add_product_to`.
    """

    def __init__(self, micro_batches: int | None = None) -> None:
        self.micro_batches = micro_batches
        self._inputs: list[Tensor] = []
        self._gradients: list[Tensor] = []
        self._memory: Tensor | None = None

    def add(self, inputs: Tensor, gradients: Tensor) -> Tensor | None:
        """Keep a micro-batch's rows (N x in, N x out); return the weight gradient if these are the last ones."""
        self._inputs.append(inputs)
        self._gradients.append(gradients)
        if len(self._inputs) != self.micro_batches:
            return None
        inputs, gradients = self._take()
        return gradients.t() @ inputs

    @torch.no_grad()
    def add_product_to(self, weight: nn.Parameter) -> None:
        """Add the gradient of all rows kept to ``weight.grad``, in the order of their backward passes."""
        if not self._inputs:
            return
        inputs, gradients = self._take()
        if weight.grad is not None:
            weight.grad += gradients.t() @ inputs
            return
        # Last step's memory again: on a CPU, fresh pages for a gradient of this size cost more than the product.
        if self._memory is None or self._memory.device != weight.device:
            self._memory = torch.empty_like(weight)
        if inputs.dtype == weight.dtype:
            torch.mm(gradients.t(), inputs, out=self._memory)
        elif weight.is_cuda:  # sums in fp32 go to memory as they are, not rounded and widened again in a second pass
            torch.ops.aten.mm.dtype_out(gradients.t(), inputs, weight.dtype, out=self._memory)
        else:
            self._memory.copy_(gradients.t() @ inputs)
        weight.grad = self._memory

    def clear(self) -> None:
        """Drop what is kept."""
        self._inputs.clear()
        self._gradients.clear()

    def _take(self) -> tuple[Tensor, Tensor]:
        inputs, gradients = torch.cat(self._inputs), torch.cat(self._gradients)
        self.clear()
        return inputs, gradients


class _DeferredLinear(torch.autograd.Function):
    """x W' + b, whose backward pass leaves the weight's gradient to :class:`KeptFactors`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, kept: KeptFactors) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.kept = kept
        return _linear(x, weight, bias)

    @staticmethod
    @no_double_backward("a fully connected layer")
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        (gradient,) = gradients
        x, weight = ctx.saved_tensors
        of_x = _linear(gradient, weight.t(), None) if ctx.needs_input_grad[0] else None
        of_weight = ctx.kept.add(x, gradient) if ctx.needs_input_grad[1] else None
        of_bias = gradient.sum(0) if ctx.needs_input_grad[2] else None
        return of_x, of_weight, of_bias, None


_HAS_ONEDNN = torch.backends.mkldnn.is_available()


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x W' + b."""
    if x.is_cuda or x.dtype != torch.float32:
        return F.linear(x, weight, bias)
    if _HAS_ONEDNN and not (torch.is_grad_enabled() or torch.compiler.is_compiling()):  # it has no gradient of its own
        # oneDNN takes a fifth to a third less than MKL, which F.linear calls: with few rows it rearranges W faster.
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    # As W x': MKL rearranges the right-hand matrix, which for few rows takes longer than the product.
    y = (weight @ x.t()).t().contiguous()
    return y if bias is None else y + bias

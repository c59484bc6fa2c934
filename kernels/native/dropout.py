"""Dropout on a CPU, alone and fused with bias and ReLU.

The mask is the one that :func:`kernels.philox.keep_mask` defines, generated in chunks of rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.autograd import no_double_backward, operator
from kernels.native.buffers import chunk_elements, compute_dtype
from kernels.philox import keep_mask


# A custom operator, because torch.compile takes minutes to trace Philox's ten rounds.
@operator("fastalex::native_mask")
def _apply_mask(
    x: Tensor, seed: Tensor, first_row: Tensor, p: float, scale: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """x * mask * scale in `dtype`, and the mask (bool)."""
    y, mask = _empty_outputs(x, dtype)
    rows, features = x.shape
    chunk = max(1, chunk_elements(x) // max(features, 1))
    for start in range(0, rows, chunk):
        x_chunk, mask_chunk = x[start : start + chunk], mask[start : start + chunk]
        mask_chunk.copy_(keep_mask(seed, first_row + start, x_chunk.shape[0], features, p))
        factor = mask_chunk.to(compute_dtype(x)).mul_(scale)
        if dtype == factor.dtype:
            torch.mul(x_chunk, factor, out=y[start : start + chunk])
        else:  # rounded once
            y[start : start + chunk].copy_(factor.mul_(x_chunk))
    return y, mask


@_apply_mask.register_fake
def _(x: Tensor, seed: Tensor, first_row: Tensor, p: float, scale: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return _empty_outputs(x, dtype)


def _empty_outputs(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    y = torch.empty_like(x, dtype=dtype, memory_format=torch.contiguous_format)
    return y, torch.empty_like(y, dtype=torch.bool)


@operator("fastalex::native_relu_dropout_backward")
def _relu_dropout_backward(grad: Tensor, y: Tensor, seed: Tensor, first_row: Tensor, p: float, scale: float) -> Tensor:
    grad_x = torch.ops.aten.threshold_backward(grad, y, 0)
    # Positive results were not dropped. Only the mask can tell for a NaN.
    if y.isnan().any():
        return _apply_mask(grad_x, seed, first_row, p, scale, grad_x.dtype)[0]
    return grad_x.mul_(scale) if scale != 1 else grad_x


@_relu_dropout_backward.register_fake
def _(grad: Tensor, y: Tensor, seed: Tensor, first_row: Tensor, p: float, scale: float) -> Tensor:
    return torch.empty_like(torch.ops.aten.threshold_backward(grad, y, 0))


class _Dropout(torch.autograd.Function):
    """Saves the mask, one byte per feature: generating it again would take ten times as long as reading it."""

    @staticmethod
    def forward(ctx, x, seed, first_row, p, scale):
        y, mask = _apply_mask(x, seed, first_row, p, scale, x.dtype)
        ctx.save_for_backward(mask)
        ctx.scale = scale
        return y

    @staticmethod
    @no_double_backward("dropout")
    def backward(ctx, grad):
        (mask,) = ctx.saved_tensors
        return (grad * mask).mul_(ctx.scale), None, None, None, None


class _BiasReluDropout(torch.autograd.Function):
    """Saves the result, which shows where the ReLU and the mask let values pass, and the seed and the row number."""

    @staticmethod
    def forward(ctx, x, bias, seed, first_row, p, scale):
        y, _ = _apply_mask(_add_bias_relu(x, bias), seed, first_row, p, scale, x.dtype)
        ctx.save_for_backward(y, seed, first_row)
        ctx.options = (p, scale)
        ctx.bias_dtype = bias.dtype
        return y

    @staticmethod
    @no_double_backward("bias_relu_dropout")
    def backward(ctx, grad):
        grad_x = _relu_dropout_backward(grad, *ctx.saved_tensors, *ctx.options)
        grad_bias = grad_x.sum(0, dtype=compute_dtype(grad_x)).to(ctx.bias_dtype) if ctx.needs_input_grad[1] else None
        return grad_x, grad_bias, None, None, None, None


def dropout(x: Tensor, p: float, *, seed: Tensor, first_row: Tensor, training: bool, inverted: bool) -> Tensor:
    """As :func:`kernels.dropout`, without the checks."""
    if not training:
        return x if inverted else x * (1 - p)
    if p == 0:
        return x
    return _Dropout.apply(x, seed, first_row, p, 1 / (1 - p) if inverted else 1.0)


def bias_relu_dropout(
    x: Tensor, bias: Tensor, p: float, *, seed: Tensor, first_row: Tensor, training: bool, inverted: bool
) -> Tensor:
    """As :func:`kernels.bias_relu_dropout`, without the checks."""
    if training and p > 0:
        return _BiasReluDropout.apply(x, bias, seed, first_row, p, 1 / (1 - p) if inverted else 1.0)
    y = _add_bias_relu(x, bias)
    return dropout(y, p, seed=seed, first_row=first_row, training=training, inverted=inverted).to(x.dtype)


def _add_bias_relu(x: Tensor, bias: Tensor) -> Tensor:
    """relu(x + bias) in the dtype computed in, in which the gradient of the bias is then summed too."""
    wide = compute_dtype(x)
    return (x.to(wide) + bias.to(wide)).relu_()

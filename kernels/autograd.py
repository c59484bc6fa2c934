"""Backward passes that are not differentiable themselves, and say so whenever that is asked of them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Backward = Callable[..., Any]


class _Once(torch.autograd.Function):
    """Gradients, unchanged, as functions of all that they were computed from, whose own gradients are an error."""

    @staticmethod
    def forward(ctx, operator, count, *tensors):
        ctx.operator = operator
        return tuple(gradient.view_as(gradient) for gradient in tensors[:count])

    @staticmethod
    def backward(ctx, *_):
        raise RuntimeError(
            f"{ctx.operator} has no double backward, and the gradient of its gradient was asked for; under "
            'kernels.using("reference") it has one'
        )


def no_double_backward(operator: str) -> Callable[[Backward], Backward]:
    """Decorate the backward pass of a `torch.autograd.Function`, below `staticmethod`.

    PyTorch's `once_differentiable` notices only what is differentiated through the incoming gradient. A gradient
    depends on the saved tensors as well, and what reaches them alone would silently get no gradient from here.

    Args:
        operator: its name in the error.

    Raises:
        RuntimeError: by the decorated pass's result, when it is differentiated.
    """

    def decorate(backward: Backward) -> Backward:
        @functools.wraps(backward)
        def once(ctx: Any, *grads: Tensor | None) -> Any:
            with torch.no_grad():
                results = backward(ctx, *grads)
            if not torch.is_grad_enabled() or torch.compiler.is_compiling():
                return results
            every = results if isinstance(results, tuple) else (results,)
            gradients = [result for result in every if result is not None]
            sources = [source for source in (*grads, *ctx.saved_tensors) if source is not None]
            attached = iter(_Once.apply(operator, len(gradients), *gradients, *sources))
            return tuple(None if result is None else next(attached) for result in every)

        return once

    return decorate

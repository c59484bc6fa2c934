"""Backward passes without a double backward: differentiating their result always raises an error."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Backward = Callable[..., Any]


class _RaiseInBackward(torch.autograd.Function):
    """Identity of the first `count` tensors, as a function of all tensors given. Its backward raises an error."""

    @staticmethod
    def forward(ctx, operator, count, *tensors):
        ctx.operator = operator
        return tuple(gradient.view_as(gradient) for gradient in tensors[:count])

    @staticmethod
    def backward(ctx, *_):
        raise RuntimeError(
            f"{ctx.operator} has no double backward, but a gradient of its gradient was requested; under "
            'kernels.using("reference") it has one'
        )


def no_double_backward(operator: str) -> Callable[[Backward], Backward]:
    """Decorator for the backward pass of a `torch.autograd.Function`; goes below `staticmethod`.

    PyTorch's `once_differentiable` raises only if the result is differentiated through the incoming gradient. But a
    gradient depends on the saved tensors too, and differentiation through those alone would silently miss a term.

    Args:
        operator: its name in the error message.

    Raises:
        RuntimeError: when the result of the decorated pass is differentiated.
    """

    def decorate(backward: Backward) -> Backward:
        @functools.wraps(backward)
        def once(ctx: Any, *grads: Tensor | None) -> Any:
            with torch.no_grad():
                results = backward(ctx, *grads)
            if not torch.is_grad_enabled() or torch.compiler.is_compiling():
                return results
            results = results if isinstance(results, tuple) else (results,)
            gradients = [result for result in results if result is not None]
            sources = [source for source in (*grads, *ctx.saved_tensors) if source is not None]
            attached = iter(_RaiseInBackward.apply(operator, len(gradients), *gradients, *sources))
            return tuple(None if result is None else next(attached) for result in results)

        return once

    return decorate

"""What the operators tell PyTorch: how tracers see their launches, and that there is no double backward."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version

Backward = Callable[..., Any]


class Operator:
    """A launch that tracers see as one custom operator, and that eager mode calls directly.

    A custom operator costs tens of microseconds of host time per call, and its first call imports PyTorch's compiler,
    which takes seconds. Only tracers need it: `torch.compile`, `torch.export`, fake tensors and dispatch modes.

    The launch must return fresh tensors, and must run where gradients are off: in a `torch.autograd.Function`, or under
    `torch.no_grad`.

    Args:
        launch: computes the result; its annotations are the custom operator's schema.
        name: of the custom operator, with its namespace.
        mutates_args: names of the arguments that the launch writes to.

    Attributes:
        custom_op: what tracers call.
    """

    def __init__(self, launch: Callable[..., Any], name: str, mutates_args: Sequence[str] = ()) -> None:
        functools.update_wrapper(self, launch)
        self._launch = launch
        self.custom_op = torch.library.custom_op(name, mutates_args=mutates_args)(launch)
        self.register_fake = self.custom_op.register_fake
        names = launch.__code__.co_varnames
        self._written = [names.index(argument) for argument in mutates_args]

    def __call__(self, *args: Any) -> Any:
        """Compute the result."""
        if is_traced(args):
            return self.custom_op(*args)
        result = self._launch(*args)
        for index in self._written:
            increment_version(args[index])
        return result


def operator(name: str, mutates_args: Sequence[str] = ()) -> Callable[[Callable[..., Any]], Operator]:
    """Decorator that makes an :class:`Operator` of a launch."""
    return lambda launch: Operator(launch, name, mutates_args)


def is_traced(args: Sequence[Any]) -> bool:
    """Whether something other than plain tensors would see the call: a tracer, a dispatch mode, a tensor subclass."""
    if torch.compiler.is_compiling():
        return True
    if torch._C._len_torch_dispatch_stack() or torch._C._get_tracing_state() is not None:
        return True
    for argument in args:
        tensors = argument if isinstance(argument, list | tuple) else (argument,)
        if any(isinstance(x, Tensor) and (type(x) not in (Tensor, nn.Parameter) or x.is_meta) for x in tensors):
            return True
    return False


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


class _UnpackedOnce:
    """A context whose saved tensors are unpacked once, as non-reentrant checkpointing requires."""

    def __init__(self, ctx: Any) -> None:
        self._ctx = ctx

    @functools.cached_property
    def saved_tensors(self) -> tuple[Tensor | None, ...]:
        return self._ctx.saved_tensors

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ctx, name)


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
            if not torch.is_grad_enabled() or torch.compiler.is_compiling():
                with torch.no_grad():
                    return backward(ctx, *grads)
            ctx = _UnpackedOnce(ctx)
            with torch.no_grad():
                results = backward(ctx, *grads)
            results = results if isinstance(results, tuple) else (results,)
            gradients = [result for result in results if result is not None]
            sources = [source for source in (*grads, *ctx.saved_tensors) if source is not None]
            attached = iter(_RaiseInBackward.apply(operator, len(gradients), *gradients, *sources))
            return tuple(None if result is None else next(attached) for result in results)

        return once

    return decorate

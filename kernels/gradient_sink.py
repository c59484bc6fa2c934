"""Deferred weight gradients: backward hands them to a sink, and the caller computes them when it suits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class GradientSink:
    """Takes over weight gradients that backward would otherwise compute, so that the caller decides when to compute
    them.

    A convolution in a pipeline stage hands its input's gradient to the previous stage; its weight gradient can wait
    until the end of the step. One sink serves one layer.

        sink.begin_step()
        for each micro-batch: conv2d_relu(x, weight, ..., gradient_sink=sink), then backward
        gradient = sink.finish()

    Args:
        defer: initial value of the attribute of the same name.
        micro_batches: initial value of the attribute of the same name.

    Attributes:
        defer: True: backward stores a function that computes the weight gradient, instead of computing it. Read in
            each backward pass.
        micro_batches: number of backward passes after which an implementation with a `step_state` returns the
            gradient from backward (or from the deferred function) itself; None leaves it to :meth:`finish`.
        step_state: what an implementation keeps between the micro-batches of a step, or None. The implementation sets
            it, uses it only while :attr:`in_step`, and provides two methods: `take()` returns the accumulated weight
            gradient, or None if there is none, and clears the state; `clear()` drops everything.
    """

    def __init__(self, *, defer: bool = False, micro_batches: int | None = None) -> None:
        self.defer = defer
        self.micro_batches = micro_batches
        self.step_state: Any = None
        self._deferred: list[Callable[[], Tensor | None]] = []
        self._in_step = False

    @property
    def in_step(self) -> bool:
        """Whether the weights do not change now, between :meth:`begin_step` and :meth:`finish` or :meth:`discard`."""
        return self._in_step

    @property
    def has_deferred(self) -> bool:
        """Whether deferred functions wait for :meth:`finish`."""
        return bool(self._deferred)

    def add(self, compute: Callable[[], Tensor | None]) -> None:
        """Store a function that computes a weight gradient. Backward calls this if `defer` is set.

        Args:
            compute: returns a new tensor, which the sink may overwrite, or None if it added the gradient to
                `step_state`.
        """
        self._deferred.append(compute)

    def begin_step(self) -> None:
        """Start a step: the weights stay as they are until :meth:`finish`. Drops leftovers of an unfinished step."""
        self.discard()
        self._in_step = True

    @torch.no_grad()
    def finish(self) -> Tensor | None:
        """Compute the deferred gradients in the order of their backward passes, and end the step.

        Returns:
            The sum of the deferred gradients and of the gradient in `step_state`, in fp32 (fp64 for fp64); None if
            nothing was deferred or accumulated.
        """
        deferred, self._deferred = self._deferred, []
        total = None
        for compute in deferred:
            total = _add(total, compute())
        if self.step_state is not None:
            total = _add(total, self.step_state.take())
        self.discard()
        return total

    def discard(self) -> None:
        """Forget everything that is deferred or cached, and end the step."""
        self._deferred.clear()
        if self.step_state is not None:
            self.step_state.clear()
        self._in_step = False


def _add(total: Tensor | None, gradient: Tensor | None) -> Tensor | None:
    """The sum, in at least fp32; overwrites `total`."""
    if gradient is None:
        return total
    gradient = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
    return gradient if total is None else total.add_(gradient)

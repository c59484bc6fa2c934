"""Two ways from an operator to its launches, both without the launches themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from triton.runtime.jit import JITFunction

import kernels
from kernels.autograd import Operator

DIRECT, CUSTOM = "direct", "custom operator"
_directly = Operator.__call__


def _through_custom_op(operator: Operator, *args: Any) -> Any:
    return operator.custom_op(*args)


WAYS: dict[str, Callable[..., Any]] = {DIRECT: _directly, CUSTOM: _through_custom_op}
"""Name -> what calling an operator does: eager mode's way, and `torch.library.custom_op` for every call."""


def take(way: str) -> None:
    """Let every operator go this way from now on."""
    _call_by(WAYS[way])


def _call_by(way: Callable[..., Any]) -> None:
    Operator.__call__ = way  # type: ignore[method-assign]  # mypy allows no method to be replaced


@contextmanager
def nothing_launched() -> Iterator[None]:
    """In this block, Triton's launches do nothing, and CPU tensors count as tensors that Triton can use.

    The code of the launches up to Triton runs. Afterwards operators are called directly again.
    """
    before = JITFunction.run, kernels.dispatch._INTERPRETED
    JITFunction.run, kernels.dispatch._INTERPRETED = _no_launch, True
    try:
        with kernels.using("triton"):
            yield
    finally:
        JITFunction.run, kernels.dispatch._INTERPRETED = before
        take(DIRECT)


def _no_launch(kernel: JITFunction, *args: Any, **options: Any) -> None:
    return None


def count_calls(work: Callable[[], Any]) -> int:
    """How many operators are called by some work."""
    calls = 0

    def counting(operator: Operator, *args: Any) -> Any:
        nonlocal calls
        calls += 1
        return _directly(operator, *args)

    _call_by(counting)
    try:
        work()
    finally:
        take(DIRECT)
    return calls

"""Triton's interpreter, stricter and faster. Without a GPU, all tests of the kernels run in it.

A GPU may do anything where a kernel accesses memory outside its tensors, and may read anything where a masked load has
no `other`. The interpreter accesses that memory too, mostly without a trace, and reads 0. Here the first raises, and
the second gives NaN, or the largest integer.

Three quarters of the interpreter's time go into work without any use. It replaces the functions of `triton.language` at
each call of a device function, although they were replaced when the kernel was launched; and it looks for overflow in
each sum of integers, but would say so only in its debug mode. Both are left out.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from torch import Tensor

# Its arguments are tables of addresses, so that it is not known what it may access.
_UNCHECKED = "sgd_kernel"


class _Memory:
    """What the kernel that runs now may access: ranges of addresses, or None if that is not known."""

    def __init__(self) -> None:
        self.ranges: list[tuple[int, int]] | None = None

    def belongs_to(self, kernel: str, arguments: tuple[object, ...]) -> None:
        tensors = [tensor for tensor in arguments if isinstance(tensor, Tensor) and tensor.numel()]
        self.ranges = None if kernel == _UNCHECKED else [_extent(tensor) for tensor in tensors]

    def check(self, pointers: Any, mask: Any) -> None:
        addresses = pointers.data[np.broadcast_to(mask.data.astype(bool), pointers.data.shape)]
        if self.ranges is None or not addresses.size:
            return
        first, last = int(addresses.min()), int(addresses.max())
        inside = any(start <= first and last < end for start, end in self.ranges)
        assert inside, f"an access outside the kernel's tensors: {first:#x} to {last:#x}, which have {self.ranges}"


def _extent(x: Tensor) -> tuple[int, int]:
    """The addresses of x's first element and of the first byte behind its last one."""
    last = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return x.data_ptr(), x.data_ptr() + (last + 1) * x.element_size()


@contextmanager
def strict_and_fast() -> Iterator[None]:
    """The interpreter as described above, within this block."""
    interpreter: Any = importlib.import_module("triton.runtime.interpreter")
    builder, executor = interpreter.interpreter_builder, interpreter.GridExecutor
    patch, launch = interpreter._patch_lang, executor.__call__
    load, store = builder.create_masked_load, builder.create_masked_store
    memory, patched = _Memory(), set()

    def patch_once_per_launch(function: Callable) -> object:
        module = id(function.__globals__)
        return None if module in patched else patched.add(module) or patch(function)

    def launch_anew(self: Any, *arguments: object, **options: object) -> None:
        patched.clear()
        memory.belongs_to(self.fn.__name__, arguments)
        launch(self, *arguments, **options)

    def checked_load(pointers: Any, mask: Any, other: Any, *options: object) -> Any:
        memory.check(pointers, mask)
        loaded = load(pointers, mask, other, *options)
        if other is None:
            masked = ~np.broadcast_to(mask.data.astype(bool), loaded.data.shape)
            loaded.data[masked] = np.frombuffer(b"\xff" * loaded.data.itemsize, loaded.data.dtype)[0]
        return loaded

    def checked_store(pointers: Any, value: Any, mask: Any, *options: object) -> Any:
        memory.check(pointers, mask)
        return store(pointers, value, mask, *options)

    with pytest.MonkeyPatch.context() as replaced:
        replaced.setattr(interpreter, "_patch_lang", patch_once_per_launch)
        replaced.setattr(executor, "__call__", launch_anew)
        replaced.setattr(builder, "options", dataclasses.replace(builder.options, sanitize_overflow=False))
        replaced.setattr(builder, "create_masked_load", checked_load)
        replaced.setattr(builder, "create_masked_store", checked_store)
        yield

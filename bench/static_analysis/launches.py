"""Records the launches that operators make, instead of running them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

import kernels
from kernels import launch_settings
from static_analysis.cases import Case

_TYPES = {
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.uint8: "*u8",
}

# The operator with its layer, the direction, the kernel and the launch's number.
Key = tuple[str, str, str, int]


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel.

    Attributes:
        case: the operator and its shapes.
        direction: "forward", "backward", or a product of the convolution.
        number: counts the launches of this kernel in this case and direction, from 1.
        arguments: values by name, those of constants included.
        programs: number of programs in the grid.
    """

    case: Case
    direction: str
    number: int
    kernel: JITFunction
    arguments: dict[str, Any]
    programs: int
    options: dict[str, Any]

    @property
    def key(self) -> Key:
        """What identifies it in a record."""
        return self.case.name, self.direction, self.kernel.__name__, self.number

    @property
    def warps(self) -> int:
        """Number of warps of all programs."""
        return self.programs * self.options["num_warps"]

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensor arguments by name."""
        return {name: value for name, value in self.arguments.items() if isinstance(value, Tensor)}

    def source(self) -> ASTSource:
        """The source that Triton would compile for this launch, with the alignment of tensors on a GPU."""
        signature, constants, alignment = {}, {}, {}
        for index, parameter in enumerate(self.kernel.params):
            value = self.arguments[parameter.name]
            if parameter.is_constexpr:
                signature[parameter.name], constants[parameter.name], aligned = "constexpr", value, False
            elif parameter.annotation_type:
                signature[parameter.name], aligned = parameter.annotation_type, False
            elif isinstance(value, int):
                signature[parameter.name] = "i32"
                aligned = value % 16 == 0 and not parameter.do_not_specialize
            else:
                # PyTorch's allocator aligns each tensor to 512 bytes.
                signature[parameter.name], aligned = _TYPES[value.dtype], True
            if aligned:
                alignment[(index,)] = [["tt.divisibility", 16]]
        return ASTSource(self.kernel, signature, constexprs=constants, attrs=alignment)

    def compiler_options(self) -> dict[str, Any]:
        """The options of this launch that change the compiled code."""
        names = (*launch_settings.OPTIONS, "num_stages")
        return {name: self.options[name] for name in names if name in self.options}


def launches_of(case: Case) -> Iterator[Launch]:
    """The launches of a case in order. CPU tensors without values are enough.

    Triton must not be in interpreter mode, in which a kernel has no source to compile.
    """
    with _recording() as recorded:
        y = case.forward()
        forward = list(recorded)
        recorded.clear()
        if y is not None and y.requires_grad:
            y.backward(torch.empty_like(y, memory_format=case.gradient_format))
    for direction, group in ((case.direction, forward), ("backward", recorded)):
        numbers: Counter[str] = Counter()
        for kernel, arguments, grid, options in group:
            numbers[kernel.__name__] += 1
            number = numbers[kernel.__name__]
            yield Launch(case, direction, number, kernel, arguments, math.prod(grid), options)


@contextmanager
def _recording() -> Iterator[list[tuple[JITFunction, dict[str, Any], tuple[int, ...], dict[str, Any]]]]:
    """In this block, launches are appended to a list as (kernel, arguments, grid, options) and do not run."""
    recorded: list[tuple[JITFunction, dict[str, Any], tuple[int, ...], dict[str, Any]]] = []

    def record(self: JITFunction, *args: Any, grid: tuple[int, ...], warmup: bool, **options: Any) -> None:
        arguments = dict(zip(self.arg_names, args, strict=False))
        arguments |= {name: value for name, value in options.items() if name in self.arg_names}
        others = {name: value for name, value in options.items() if name not in self.arg_names}
        recorded.append((self, arguments, grid, others))

    before = JITFunction.run, kernels.dispatch._INTERPRETED
    # CPU tensors count as tensors that Triton can use.
    JITFunction.run, kernels.dispatch._INTERPRETED = record, True
    try:
        with kernels.using("triton"):
            yield recorded
    finally:
        JITFunction.run, kernels.dispatch._INTERPRETED = before

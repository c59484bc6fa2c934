"""Cases of operator benchmarks: inputs, the check against the definition in fp64, and the work to time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from harness.device import DEVICE

DIRECTIONS = ("forward", "backward", "both")
# Allowed errors relative to the largest value: fp64 and fp32 arithmetic, and one or two roundings in half precision.
TOLERANCES = {torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 3e-2}
# Share of a gradient's norm that may differ if rounding decides which pixel of a window is the maximum.
NORM_TOLERANCE = 0.2
# Images checked. CPUs use other algorithms for fewer.
_CHECKED_IMAGES = 8

Operator = Callable[..., Tensor]


@dataclass(frozen=True)
class Case:
    """One operator at one shape.

    Attributes:
        op: name of the operator.
        shape: shape of `x`, the first input.
        dtype: dtype of the inputs.
        definition: the operator in plain PyTorch, which results are compared with.
        providers: name -> (operator, memory format of x: "channels_last", "nchw" or "flat").
        bytes_moved: direction -> the fewest bytes that the operator must read and write.
        operations: direction -> additions and multiplications, instead of `bytes_moved`.
        gradients: direction -> indices of the inputs whose gradients it computes, if parts of backward are timed.
        other_shapes: shapes of the inputs after `x`.
        no_gradient: indices of inputs that need no gradient.
        std: standard deviation of the inputs.
        grid: inputs are multiples of it, so that sums of products are exact. The last input, a bias, is offset by half
            a step of the products, so that no sum is near 0 and rounding does not decide the sign before a ReLU.
        checks: provider -> function that returns what is wrong with a result, or None; for providers that cannot be
            compared with the definition.
        gradients_by_norm: whether gradients in half precision are compared by their norm. Rounded neighbours are often
            equal, so a provider may choose another maximum than the definition.
    """

    op: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    definition: Operator
    providers: dict[str, tuple[Operator, str]]
    bytes_moved: dict[str, int] = field(default_factory=dict)
    operations: dict[str, int] = field(default_factory=dict)
    gradients: dict[str, tuple[int, ...]] = field(default_factory=dict)
    other_shapes: tuple[tuple[int, ...], ...] = ()
    no_gradient: tuple[int, ...] = ()
    std: float = 1.0
    grid: float | None = None
    checks: dict[str, Callable[[Tensor, list[Tensor]], str | None]] = field(default_factory=dict)
    gradients_by_norm: bool = False

    @property
    def directions(self) -> tuple[str, ...]:
        """The directions to time."""
        return ("forward", *self.gradients, "both") if self.gradients else DIRECTIONS


def random_inputs(case: Case) -> tuple[list[Tensor], Tensor]:
    """Random inputs and a random gradient of the result, the same for all providers."""
    generator = torch.Generator(DEVICE).manual_seed(0)

    def draw(shape: Sequence[int]) -> Tensor:
        return torch.randn(shape, generator=generator, device=DEVICE)

    inputs = [(draw(shape) * case.std).to(case.dtype) for shape in (case.shape, *case.other_shapes)]
    if case.grid is not None:
        inputs = [(tensor / case.grid).round() * case.grid for tensor in inputs]
        inputs[-1] += case.grid**2 / 2
    with torch.no_grad():
        result = case.definition(*(tensor[:1] if index == 0 else tensor for index, tensor in enumerate(inputs)))
    if result.dim() == 0:  # a loss, which is not in half precision
        return inputs, draw(()).to(result.dtype)
    return inputs, draw((case.shape[0], *result.shape[1:])).to(case.dtype)


def in_memory_format(
    case: Case, inputs: Sequence[Tensor], grad: Tensor, memory_format: str
) -> tuple[list[Tensor], Tensor]:
    """The inputs and the gradient in the memory format of a provider."""

    def convert(tensor: Tensor) -> Tensor:
        is_wanted = memory_format == "channels_last" and tensor.dim() == 4
        return tensor.detach().to(memory_format=torch.channels_last) if is_wanted else tensor.detach()

    converted = [convert(tensor).requires_grad_(index not in case.no_gradient) for index, tensor in enumerate(inputs)]
    return converted, convert(grad)


def definition_results(case: Case, inputs: Sequence[Tensor], grad: Tensor) -> dict[str, Tensor]:
    """The result and the gradients of the definition in fp64, by name, for the first images.

    A result without dimensions, such as a loss, is computed for all images.
    """
    few = _CHECKED_IMAGES if grad.dim() else case.shape[0]
    wide = [(tensor[:few] if index == 0 else tensor).detach().double() for index, tensor in enumerate(inputs)]
    return _results(case, case.definition, wide, (grad[:few] if grad.dim() else grad).double())


def _results(case: Case, operator: Operator, inputs: Sequence[Tensor], grad: Tensor) -> dict[str, Tensor]:
    own = [tensor.detach().requires_grad_(index not in case.no_gradient) for index, tensor in enumerate(inputs)]
    result = operator(*own)
    result.backward(grad)
    found = {"result": result.detach()}
    for index, tensor in enumerate(own):
        if tensor.requires_grad:
            assert tensor.grad is not None
            found[f"gradient {index}"] = tensor.grad
    return found


def find_error(
    operator: Operator, case: Case, inputs: Sequence[Tensor], grad: Tensor, wanted: Mapping[str, Tensor]
) -> str | None:
    """What is wrong with a provider's result or gradients for the first images, or None.

    Args:
        wanted: the results of the definition.
    """
    upstream = grad.clone()
    if grad.dim():
        upstream[_CHECKED_IMAGES:] = 0
    # The whole batch, as the provider may be compiled for its shape; images that are not checked get no gradient.
    found = _results(case, operator, inputs, upstream)
    # Compare by the largest value, or gradients of chosen maxima by the norm.
    is_half = case.dtype in (torch.float16, torch.bfloat16)
    for what, reference_value in wanted.items():
        value = found[what]
        if reference_value.dim() and what in ("result", "gradient 0"):
            value = value[: len(reference_value)]
        by_norm = case.gradients_by_norm and what != "result" and is_half
        size = torch.linalg.vector_norm if by_norm else _largest
        error = size(value.double() - reference_value) / size(reference_value).clamp(min=1e-12)
        if not error <= (NORM_TOLERANCE if by_norm else TOLERANCES[case.dtype]):
            return f"{what} is off by {float(error):.1e}"
    return None


def _largest(values: Tensor) -> Tensor:
    return values.abs().max()


def timed_work(
    operator: Operator, inputs: Sequence[Tensor], grad: Tensor, case: Case, direction: str
) -> tuple[Callable[[], Any], Callable[[Any], Any]]:
    """What to prepare untimed, and what to time."""
    if direction == "forward":
        return lambda: None, lambda _: operator(*inputs)
    if direction in case.gradients:
        wanted = case.gradients[direction]
        inputs = [tensor.detach().requires_grad_(index in wanted) for index, tensor in enumerate(inputs)]
    needing = [tensor for tensor in inputs if tensor.requires_grad]
    if direction == "both":
        return lambda: None, lambda _: torch.autograd.grad(operator(*inputs), needing, grad)
    return lambda: operator(*inputs), lambda y: torch.autograd.grad(y, needing, grad)


def failure_reason(failure: Exception) -> str:
    """Why a provider failed, in one line."""
    lines = [line.strip() for line in str(failure).splitlines() if line.strip()]
    return f"{type(failure).__name__}: {lines[0] if lines else ''}".rstrip(": ")


def compiled(operator: Operator) -> Operator:
    """`torch.compile` of an operator, for one shape."""
    return torch.compile(operator, dynamic=False)


def image_bytes(shape: Sequence[int], dtype: torch.dtype) -> int:
    """Bytes of a tensor."""
    return math.prod(shape) * dtype.itemsize

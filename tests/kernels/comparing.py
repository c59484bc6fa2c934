"""Shared helpers of the operators' tests: implementations, dtypes, inputs, and comparison with the reference."""

from __future__ import annotations

import builtins
import importlib
import itertools
import math
import mmap
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
from torch import Tensor

import kernels
from kernels.native import build, c_functions

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

# Largest error allowed, relative to the largest value of the fp64 reference, or of the terms that it sums.
TOLERANCES = {
    # About twenty rounded operations of 1.1e-16 each, and sums over a window.
    torch.float64: 1e-13,
    # The same with 6e-8. GPUs compute square roots and powers to within 2 units in the last place.
    torch.float32: 3e-6,
    # Computed in fp32, then one rounding to 11 bits, 4.9e-4. A bias gradient sums rounded values.
    torch.float16: 2e-3,
    # The same with 8 bits, 3.9e-3.
    torch.bfloat16: 1.6e-2,
}
# Convolution by minimal filtering: plain sums of AlexNet's lengths have errors of 1e-6 in fp32, and transforms of up to
# eight points up to forty times that without fused multiply-add. In bf16, eight points multiply a rounding error of
# 4e-3 by up to 30 in short sums; test_winograd.py has tighter bounds for AlexNet's layers.
TRANSFORMED_TOLERANCES = {torch.float64: 6e-14, torch.float32: 4e-5, torch.bfloat16: 0.2}

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
LAYOUTS = ["nchw", "channels_last", "sliced"]
IMPLEMENTATIONS = ["native", "triton"]
# Normalisation and minimal filtering are native.c for fp32 and bf16 on a CPU, else PyTorch: there are two to test.
NATIVE = [*(["native in C"] if DEVICE == "cpu" else []), "native in PyTorch"]
NORM_IMPLEMENTATIONS = [*NATIVE, "triton"]

# Bytes behind the end of a tensor that `kernels` allocates in a test (conftest.py), by its storage's address.
GUARD = 4096
guarded_bytes: dict[int, int] = {}

# More iterations than any loop of a kernel has at small sizes.
LONG_GRID = 1000

dtypes = st.sampled_from(DTYPES)
layouts = st.sampled_from(LAYOUTS)
gradient_layouts = st.sampled_from([*LAYOUTS, "expanded"])
seeds = st.integers(0, 2**31)


def dtypes_of(implementation: str) -> list[torch.dtype]:
    """All dtypes, without bf16 in Triton's interpreter, which truncates where a GPU rounds; two for native.c."""
    if implementation == "native in C":
        return [torch.float32, torch.bfloat16]
    interpreted = implementation == "triton" and DEVICE == "cpu"
    return [dtype for dtype in DTYPES if not (interpreted and dtype == torch.bfloat16)]


COMPUTED = [(implementation, dtype) for implementation in IMPLEMENTATIONS for dtype in dtypes_of(implementation)]
NORM_COMPUTED = [
    (implementation, dtype) for implementation in NORM_IMPLEMENTATIONS for dtype in dtypes_of(implementation)
]


@contextmanager
def using(implementation: str) -> Iterator[None]:
    """:func:`kernels.using`, which also accepts the two of `NATIVE`.

    Fails if a block "native in C" computes nothing there. Every native block says which functions of native.c it
    called, or that PyTorch computed: in `pytest --hypothesis-show-statistics` for the tests by Hypothesis.
    """
    if not implementation.startswith("native"):
        with kernels.using(implementation):
            yield
        return
    with pytest.MonkeyPatch.context() as patched, called_c_functions() as called:
        if implementation == "native in PyTorch":
            patched.setattr(build, "library", lambda: None)
        with kernels.using("native"):
            yield
    assert called or implementation != "native in C", "nothing was computed by native.c"
    if hypothesis.currently_in_test_context():
        hypothesis.event(f"native: {', '.join(sorted(called)) or 'PyTorch'}")


@contextmanager
def called_c_functions() -> Iterator[set[str]]:
    """The names of the functions of native.c that compute something in this block."""
    called, call = set(), c_functions._call

    def recorded(name: str, *arguments: object) -> None:
        call(name, *arguments)
        if name != "run_in_threads":
            called.add(name)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(c_functions, "_call", recorded)
        yield called


def dtype_for(implementation: str, drawn: torch.dtype) -> torch.dtype:
    """The dtype drawn, or the smallest that the implementation supports here."""
    return drawn if drawn in dtypes_of(implementation) else dtypes_of(implementation)[-1]


def examples(count: int) -> Callable:
    """The same few examples in every run, because an interpreted kernel takes a tenth of a second."""
    return hypothesis.settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
    )


def random_tensor(shape: Sequence[int], seed: int, dtype: torch.dtype = torch.float64, scale: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(tuple(shape), generator=generator, dtype=torch.float64) * scale).to(DEVICE, dtype)


def laid_out(x: Tensor, layout: str) -> Tensor:
    """The same values in another layout, if x has enough dimensions; "expanded" repeats the first values."""
    if x.dim() == 0 or (layout == "channels_last" and x.dim() != 4):
        return x.contiguous()
    if layout == "channels_last":
        return x.to(memory_format=torch.channels_last)
    if layout == "sliced":
        wider = torch.zeros(*x.shape[:-1], 2 * x.shape[-1] + 1, dtype=x.dtype, device=x.device)
        wider[..., 1::2] = x
        return wider[..., 1::2]
    if layout == "expanded":
        return x[:1, :, :1, :1].expand_as(x) if x.dim() == 4 and x.numel() else x[:1].expand_as(x)
    return x.contiguous()


def guarded(x: Tensor) -> Tensor:
    """x with NaN around it and in its gaps, which shows reads outside; x itself if elements share memory."""
    if 0 in x.stride() or not x.numel():
        return x
    length = 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    margin = GUARD // x.element_size()
    memory = torch.full((length + 2 * margin,), float("nan"), dtype=x.dtype, device=x.device)
    return memory.as_strided(x.shape, x.stride(), margin).copy_(x)


def zeros(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Zeros. On a CPU, pages take memory only once they are written."""
    if DEVICE == "cuda":
        return torch.zeros(tuple(shape), dtype=dtype, device=DEVICE)
    # Straight from the system: an allocator that keeps freed memory, which training asks for, would clear used pages.
    length = math.prod(shape) * dtype.itemsize
    return torch.frombuffer(mmap.mmap(-1, max(length, 1)), dtype=torch.uint8)[:length].view(dtype).view(tuple(shape))


def uninitialised(shape: Sequence[int], layout: str, dtype: torch.dtype) -> Tensor:
    """An uninitialised tensor. On a CPU, pages take memory only once they are written."""
    memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    return torch.empty(tuple(shape), dtype=dtype, device=DEVICE, memory_format=memory_format)


@contextmanager
def ends_of_grids(count: int) -> Iterator[None]:
    """In the interpreter, long grids and loops run only their first and last `count` iterations; on a GPU, all.

    This tests offsets into large tensors in little time and memory. Arguments are not copied back, which on a CPU would
    copy them onto themselves.
    """
    if DEVICE != "cpu":
        yield
        return
    interpreter = importlib.import_module("triton.runtime.interpreter")

    def ends(*limits: int) -> Iterable[int]:
        full = builtins.range(*limits)
        return itertools.chain(full[:count], full[-count:]) if len(full) > LONG_GRID else full

    with pytest.MonkeyPatch.context() as patched:
        for module in [interpreter, *(module for name, module in sys.modules.items() if name.startswith("kernels."))]:
            patched.setattr(module, "range", ends, raising=False)
        patched.setattr(interpreter.GridExecutor, "_restore_args_dev", lambda *_: None)
        yield


@contextmanager
def no_copies() -> Iterator[None]:
    """Makes `contiguous` fail if it copies."""
    contiguous = Tensor.contiguous

    def without_a_copy(x: Tensor, **options) -> Tensor:
        made = contiguous(x, **options)
        assert made.data_ptr() == x.data_ptr(), "a tensor was copied"
        return made

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Tensor, "contiguous", without_a_copy)
        yield


def check_close(
    found: Tensor,
    wanted: Tensor,
    dtype: torch.dtype,
    what: str,
    magnitude: Tensor | None = None,
    tolerances: Mapping[torch.dtype, float] = TOLERANCES,
) -> None:
    """Check that `found` equals the fp64 reference up to the rounding of `dtype`, with the same NaN and infinities.

    For a sum of few terms, which may cancel, `magnitude` is the sum of their absolute values.
    """
    assert found.shape == wanted.shape, what
    if wanted.numel() == 0:
        return
    finite = wanted.isfinite()
    assert torch.equal(found.isfinite(), finite), (
        f"{what}: NaN or infinity where the reference has none, or none where it has"
    )
    torch.testing.assert_close(found[~finite].double(), wanted[~finite], equal_nan=True)
    if finite.any():
        scale = (wanted if magnitude is None else magnitude)[finite].abs().max().clamp(min=1e-6)
        error = (found.double() - wanted)[finite].abs().max() / scale
        assert error <= tolerances[dtype], f"{what}: error {error:.2e} exceeds {tolerances[dtype]:.2e} for {dtype}"


def check_against_reference(
    operator: Callable[..., Tensor],
    implementation: str,
    tensors: Sequence[Tensor],
    gradient_layout: str,
    seed: int = 0,
) -> Tensor:
    """Compare the result and the gradients of all `tensors` with the reference in fp64. Returns the result."""
    dtype = tensors[0].dtype
    ours = [guarded(tensor.detach()).requires_grad_() for tensor in tensors]
    theirs = [tensor.detach().double().requires_grad_() for tensor in tensors]
    with using(implementation):
        y = operator(*ours)
    with kernels.using("reference"):
        wanted = operator(*theirs)
    check_close(y.detach(), wanted.detach(), dtype, "result")
    assert y.dtype == dtype
    grad = guarded(laid_out(random_tensor(y.shape, seed + 1, dtype), gradient_layout))
    with using(implementation):
        y.backward(grad)
    wanted.backward(grad.double())
    for index, (mine, theirs_) in enumerate(zip(ours, theirs, strict=True)):
        assert mine.grad is not None
        assert theirs_.grad is not None
        # A gradient has the dtype of its tensor, which may be less precise than that of the result.
        coarser = max(dtype, mine.dtype, key=TOLERANCES.__getitem__)
        check_close(mine.grad, theirs_.grad, coarser, f"gradient of tensor {index}")
    for memory_format in (torch.contiguous_format, torch.channels_last):
        if ours[0].dim() == 4 and y.numel() and ours[0].is_contiguous(memory_format=memory_format):
            assert y.is_contiguous(memory_format=memory_format)
    return y


def saved_bytes(operator: Callable[[], Tensor]) -> int:
    """Bytes that autograd saves between forward and backward, each storage counted once."""
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes() - guarded_bytes.get(storage.data_ptr(), 0)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = operator()
    assert result.requires_grad
    return sum(saved.values())

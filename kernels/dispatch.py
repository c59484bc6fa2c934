"""Choice of the implementation that runs an operator.

- `triton`: the kernels in this package. The default for CUDA tensors where Triton is installed. By default, cuDNN
  computes the products of a convolution unless a measurement says that Triton is faster (`kernels.launch_settings`); if
  `triton` is chosen explicitly, Triton computes them all.
- `native`: C and PyTorch, optimised for CPUs. The default for all other tensors.
- `reference`: plain PyTorch, the definition that the tests compare with.

The environment variable `FASTALEX_KERNELS` chooses for the whole process, `using` for a block of code. An
export to ONNX always uses the reference, whose operators ONNX has.

The files of the kernels import Triton from here, because it does not exist for every platform.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

try:
    import triton
    import triton.language as tl
except ImportError:

    class _Absent:
        """Stands for Triton where it is not installed: the kernels are defined, but never launched."""

        def __getattr__(self, name: str) -> _Absent:
            if name.startswith("__"):
                raise AttributeError(name)
            return self

        def __call__(self, *_: object, **__: object) -> _Absent:
            return self

    triton = tl = _Absent()
    HAS_TRITON = False
else:
    HAS_TRITON = True


IMPLEMENTATIONS = ("triton", "native", "reference")


def _checked(name: str, origin: str) -> str:
    if name not in IMPLEMENTATIONS:
        raise ValueError(f"{origin} must be one of {', '.join(IMPLEMENTATIONS)}, got {name!r}")
    return name


# With TRITON_INTERPRET=1, kernels run on CPU tensors too, slowly.
_INTERPRETED = HAS_TRITON and bool(triton.knobs.runtime.interpret)

# A module global instead of a context variable: torch.compile guards on it, and autograd's threads see it.
# The value from the environment is checked at its first use, so that a command can report it in one line.
_chosen: str | None = os.environ.get("FASTALEX_KERNELS") or None


@contextmanager
def using(implementation: str) -> Iterator[None]:
    """Run the operators that are called in this block with one implementation, in all threads of the process.

    Args:
        implementation: "triton", "native" or "reference".

    Raises:
        ValueError: another name.
    """
    global _chosen
    before = _chosen
    _chosen = _checked(implementation, "implementation")
    try:
        yield
    finally:
        _chosen = before


def implementation_for(x: Tensor) -> str:
    """The implementation that an operator called with `x` uses now.

    Raises:
        ValueError: FASTALEX_KERNELS is not an implementation.
        RuntimeError: Triton was chosen and cannot run on x's device; or a transform of `torch.func` is active, which
            only the reference supports.
    """
    if torch.onnx.is_in_onnx_export():
        return "reference"
    if _chosen is None:
        chosen = "triton" if x.is_cuda and HAS_TRITON else "native"
    # A fake tensor launches nothing, so it works without a GPU, for example to find out what backward saves.
    elif _chosen == "triton" and HAS_TRITON and isinstance(x, FakeTensor):
        chosen = _chosen
    else:
        check_choice(x.device)
        chosen = _chosen
    if chosen != "reference" and not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
        raise RuntimeError(
            f"the {chosen} implementation does not support the transforms of torch.func (grad, vjp, jvp, vmap): "
            'use kernels.using("reference") around them'
        )
    return chosen


def check_choice(device: torch.device) -> None:
    """Check that the implementation chosen by `FASTALEX_KERNELS` or :func:`using` exists and runs on this device.

    Raises:
        ValueError: FASTALEX_KERNELS is not an implementation.
        RuntimeError: Triton was chosen and does not run on this device.
    """
    if _chosen is None:
        return
    _checked(_chosen, "FASTALEX_KERNELS")
    if _chosen == "triton" and not HAS_TRITON:
        raise RuntimeError(
            "the Triton kernels were chosen, but Triton is not installed: install triton or choose native"
        )
    if _chosen == "triton" and not (device.type == "cuda" or _INTERPRETED):
        raise RuntimeError(
            f"the Triton kernels were chosen, but do not run on {device}: use a GPU, choose native, or set "
            "TRITON_INTERPRET=1 before Python starts, which runs them in Triton's interpreter"
        )


def triton_is_forced() -> bool:
    """Whether Triton was chosen explicitly, instead of by default because x is on a GPU."""
    return _chosen == "triton"

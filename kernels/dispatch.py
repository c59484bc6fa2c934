"""Which implementation runs an operator.

- `triton`: the kernels in this package. The default for CUDA tensors. A convolution's products are then left to cuDNN
  unless a measurement says that Triton is faster (`kernels.conv_settings`), but not where Triton is asked for by name.
- `native`: C and PyTorch, arranged to be fast on CPUs. The default for all other tensors.
- `reference`: the plainest PyTorch, the definition that the tests compare with.

The environment variable `FASTALEX_KERNELS` chooses one for the whole process, `using` for a block of code.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import triton
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

IMPLEMENTATIONS = ("triton", "native", "reference")


def _checked(name: str, origin: str) -> str:
    if name not in IMPLEMENTATIONS:
        raise ValueError(f"{origin} must be one of {', '.join(IMPLEMENTATIONS)}, not {name!r}")
    return name


# With TRITON_INTERPRET=1, kernels run on CPU tensors too, slowly.
_INTERPRETED = bool(triton.knobs.runtime.interpret)

# A module global and not a context variable: torch.compile guards on it, and autograd's threads see it.
# The environment's choice is checked where it is first used, so that a command can refuse it in one line.
_chosen: str | None = os.environ.get("FASTALEX_KERNELS") or None


@contextmanager
def using(implementation: str) -> Iterator[None]:
    """Run the operators called in this block with one implementation, in every thread of the process.

    Args:
        implementation: "triton", "native" or "reference".

    Raises:
        ValueError: for any other name.
    """
    global _chosen
    before = _chosen
    _chosen = _checked(implementation, "implementation")
    try:
        yield
    finally:
        _chosen = before


def implementation_for(x: Tensor) -> str:
    """The implementation that an operator called with `x` takes now.

    Raises:
        ValueError: if FASTALEX_KERNELS is none of the implementations.
        RuntimeError: if Triton was asked for and cannot run on x's device, or within a transform of `torch.func`,
            which only the reference takes.
    """
    if _chosen is None:
        chosen = "triton" if x.is_cuda else "native"
    # A fake tensor launches nothing, so what Triton's path keeps for backward can be learnt where there is no GPU.
    elif _chosen == "triton" and isinstance(x, FakeTensor):
        chosen = _chosen
    else:
        check_choice(x.device)
        chosen = _chosen
    if chosen != "reference" and not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
        raise RuntimeError(
            f"the {chosen} implementation does not go through torch.func's transforms (grad, vjp, jvp, vmap); "
            'use kernels.using("reference") around them'
        )
    return chosen


def check_choice(device: torch.device) -> None:
    """Refuse an implementation chosen by `FASTALEX_KERNELS` or :func:`using` that does not exist or run there.

    Raises:
        ValueError: if FASTALEX_KERNELS is none of the implementations.
        RuntimeError: if Triton was asked for, on a device that it does not run on.
    """
    if _chosen is None:
        return
    _checked(_chosen, "FASTALEX_KERNELS")
    if _chosen == "triton" and not (device.type == "cuda" or _INTERPRETED):
        raise RuntimeError(
            f"the Triton kernels were chosen, but do not run on {device}: use a GPU, or choose native, or set "
            "TRITON_INTERPRET=1 before Python starts to run them in Triton's interpreter"
        )


def triton_is_forced() -> bool:
    """Whether Triton was asked for by name, and not merely taken because x is on a GPU."""
    return _chosen == "triton"

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
_from_environment = os.environ.get("FASTALEX_KERNELS")
_chosen: str | None = _checked(_from_environment, "FASTALEX_KERNELS") if _from_environment else None


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
        RuntimeError: if Triton was asked for and cannot run on x's device.
    """
    if _chosen is None:
        return "triton" if x.is_cuda else "native"
    # A fake tensor launches nothing, so what Triton's path keeps for backward can be learnt where there is no GPU.
    if _chosen == "triton" and not (x.is_cuda or _INTERPRETED or isinstance(x, FakeTensor)):
        raise RuntimeError(
            f"the Triton kernels were chosen, but x is on {x.device}: move it to a GPU, or choose native, or set "
            "TRITON_INTERPRET=1 before Python starts to run them in Triton's interpreter"
        )
    return _chosen


def triton_is_forced() -> bool:
    """Whether Triton was asked for by name, and not merely taken because x is on a GPU."""
    return _chosen == "triton"

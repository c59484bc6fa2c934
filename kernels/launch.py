"""Launch settings: how much one program does, and how kernels are started.

The kernels here move bytes. A thread takes one load of 16 bytes per tensor and item, the widest there is, and 128
threads make a program: enough programs to fill a GPU at AlexNet's smallest maps, few enough registers for several
programs per multiprocessor. Nothing is tuned at run time.
"""

from __future__ import annotations

import contextlib
import math
from typing import Any

import torch
import triton
from torch import Tensor

# Floating-point contraction is on by default only until Triton 3.10; results must not change with the version.
OPTIONS: dict[str, Any] = {"num_warps": 4, "enable_fp_fusion": True}

ITEMS = 128
_BYTES = 16
_WIDEST = 8
MOST_ELEMENTS = 2**31 - 2**16


def vector_width(channels: int, itemsize: int) -> int:
    """Neighbouring channels that one item holds: a power of two that divides `channels`, 16 bytes at most."""
    return math.gcd(channels, min(_WIDEST, _BYTES // itemsize))


def blocks(items: int) -> int:
    """Programs that one image, or one row, of so many items takes."""
    return triton.cdiv(items, ITEMS)


def check_image(x: Tensor) -> None:
    """Offsets within one image are 32 bits wide; a batch may be of any size."""
    check_elements("x", math.prod(x.shape[1:]), " per image")


def check_elements(name: str, elements: int, where: str = "") -> None:
    """An offset among so many elements fits 32 bits."""
    if elements > MOST_ELEMENTS:
        raise ValueError(f"{name} must have at most {MOST_ELEMENTS} elements{where}, not {elements}")


def on(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Makes x's GPU the current one for a launch."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()

"""The speeds of the device that operators are compared with: a copy, and a large matrix product.

They take turns with the providers, so that a machine that is busy is compared with itself.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from harness.device import CUDA, DEVICE
from harness.turns import Contender

# A limit needs few repetitions.
_SHARE = 0.2


@dataclass(frozen=True)
class Limit:
    """Work at the highest speed of the device.

    Attributes:
        name: name of the speed in the settings of a record.
        unit: amount of work per millisecond at a speed of 1.
        amount: bytes moved, or additions and multiplications.
        work: does it once.
        milliseconds: the median of each round so far, of all cases.
    """

    name: str
    unit: float
    amount: int
    work: Callable[[], Tensor]
    milliseconds: list[float] = field(default_factory=list)

    def contender(self) -> Contender:
        """The work, to take turns with providers."""
        return Contender(lambda: None, lambda _: self.work(), _SHARE)

    @property
    def speed(self) -> float:
        """The median speed so far: GB/s or TFLOP/s."""
        return round(self.amount / statistics.median(self.milliseconds) / self.unit, 4)


def copy_limit() -> Limit:
    """GB/s of a copy within the device, bytes read and written together."""
    source = torch.zeros(512 * 2**20 if CUDA else 128 * 2**20, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    return Limit("copy_gb_per_s", 1e6, 2 * source.nbytes, lambda: target.copy_(source))


def product_limit(dtype: torch.dtype) -> Limit:
    """TFLOP/s of a large square matrix product."""
    side = 8192 if CUDA else 2048
    a, b = (torch.randn(side, side, device=DEVICE).to(dtype) for _ in range(2))
    name = f"product_tflop_per_s_{str(dtype).removeprefix('torch.')}"
    return Limit(name, 1e9, 2 * side**3, lambda: a @ b)

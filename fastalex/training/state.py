"""TODO."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass
class TrainingState:
    """How far a run has come; with the seed this is all that resuming needs.

    ``samples`` counts what the unfinished epoch has consumed. ``errors`` are top-1 validation errors in percent, one
    for each finished epoch. ``replaced`` are the damaged samples of each split in whose place others were used.
    ``skipped`` counts the steps whose update was left out because loss or gradients were not finite.
    """

    epoch: int = 0
    samples: int = 0
    step: int = 0
    seconds: float = 0.0
    errors: list[float] = field(default_factory=list)
    replaced: dict[str, list[int]] = field(default_factory=dict)
    skipped: int = 0

    def add_replaced(self, split: str, samples: Iterable[int]) -> None:
        """Note damaged samples, each of them once."""
        self.replaced[split] = sorted({*self.replaced.get(split, ()), *samples})

    @property
    def is_best(self) -> bool:
        """Whether an epoch has just ended with a lower validation error than all before it."""
        return self.samples == 0 and bool(self.errors) and self.errors[-1] < min(self.errors[:-1], default=math.inf)

"""The counters from which a run resumes."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from fastalex.json_types import check_json


@dataclass
class TrainingState:
    """How far a run has come. Together with the seed and the weights, resuming needs nothing else.

    Attributes:
        epoch: finished epochs.
        samples: training images that the unfinished epoch has consumed.
        step: steps made, including skipped ones.
        seconds: time spent in training steps.
        errors: top-1 validation error in percent of every finished epoch.
        replaced: for each split, the damaged samples that were replaced by others of their class.
        skipped: steps without an update because the loss or a gradient was not finite.
        velocity_rates: the learning rates that the velocities follow, by parameter
            (:class:`~fastalex.recipes.optimizer.KrizhevskySGD`); empty unless the recipe rescales them.
    """

    epoch: int = 0
    samples: int = 0
    step: int = 0
    seconds: float = 0.0
    errors: list[float] = field(default_factory=list)
    replaced: dict[str, list[int]] = field(default_factory=dict)
    skipped: int = 0
    velocity_rates: dict[str, float] = field(default_factory=dict)

    @classmethod
    def from_json(cls, text: str) -> TrainingState:
        """The state in the header of a checkpoint.

        Raises:
            TypeError, ValueError: it is not one.
        """
        values = json.loads(text)
        check_json(cls, values, required=("epoch", "samples", "step"))
        if min(values["epoch"], values["samples"], values["step"]) < 0:
            raise ValueError("epoch, samples and step must be at least 0")
        return cls(**values)

    def add_replaced(self, split: str, samples: Iterable[int]) -> None:
        """Record replaced samples of a split, each once."""
        self.replaced[split] = sorted({*self.replaced.get(split, ()), *samples})

    @property
    def is_best(self) -> bool:
        """Whether an epoch has just ended with the lowest validation error so far."""
        return self.samples == 0 and bool(self.errors) and self.errors[-1] < min(self.errors[:-1], default=math.inf)

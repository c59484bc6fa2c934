"""Loss and error rates, counted on the device and read by the host when they are reported.

Counts are one float64 vector (sum of losses, top-1 errors, top-5 errors, images), as returned by
:func:`kernels.cross_entropy`. Adding vectors combines micro-batches, batches and workers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

_TOP = 5


def chance(classes: int, top: int = 1) -> float:
    """The error rate in percent of guessing ``top`` of ``classes`` classes: 100 (1 - top / classes)."""
    return 100 * max(0.0, 1 - top / classes)


def learning_margin(classes: int, images: int) -> float:
    """By how many points a top-1 error must be below chance for a run to have learned something.

    2 points, or three standard errors of guessing if that is more: 3 * 100 * sqrt(p (1 - p) / n), with p = 1 / classes
    and n validation images. Guessing passes for learning once in 700 runs.
    """
    p = 1 / classes
    return max(2.0, 300 * math.sqrt(p * (1 - p) / images))


def did_not_learn(top1_error: float, classes: int, images: int) -> bool:
    """Whether an error (percent, on that many validation images) is not clearly below the error of guessing."""
    return top1_error > chance(classes) - learning_margin(classes, images)


def has_top5(classes: int) -> bool:
    """Whether a top-5 error says anything: with five classes or fewer it is always 0."""
    return classes > _TOP


@dataclass(frozen=True)
class Metrics:
    """Mean cross-entropy (nats) and error rates (percent) over a number of images."""

    loss: float
    top1_error: float
    top5_error: float
    images: int

    @classmethod
    def from_counts(cls, counts: Tensor) -> Metrics:
        """Means and rates of a sum of count vectors; NaN without images."""
        loss, top1, top5, images = counts.tolist()
        if not images:
            return cls(float("nan"), float("nan"), float("nan"), 0)
        return cls(loss / images, 100 * top1 / images, 100 * top5 / images, int(images))

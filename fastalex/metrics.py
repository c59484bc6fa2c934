"""Loss and error rates, counted on the device and read when they are reported.

A count is one float64 vector (sum of losses, top-1 errors, top-5 errors, images), so that batches, micro-batches and
workers are combined by adding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Metrics:
    """Mean cross-entropy (nats) and error rates in percent over a number of images."""

    loss: float
    top1_error: float
    top5_error: float
    images: int

    @classmethod
    def from_counts(cls, counts: Tensor) -> Metrics:
        """From a sum of :func:`count` vectors."""
        loss, top1, top5, images = counts.tolist()
        if not images:
            return cls(float("nan"), float("nan"), float("nan"), 0)
        return cls(loss / images, 100 * top1 / images, 100 * top5 / images, int(images))


def summed_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy in nats, summed over the rows, in fp32. logits N x classes, labels int64 N."""
    return F.cross_entropy(logits.float(), labels, reduction="sum")


@torch.no_grad()
def misses(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Which rows are top-1 errors, and which top-5 errors: two bool vectors.

    An image counts as an error unless its label's score beats all but 0 (top-1) or 4 (top-5) of the others strictly:
    ties and NaN scores are errors, so a network that says nothing gets nothing right.
    """
    own = logits.gather(1, labels.unsqueeze(1))
    not_beaten = (~(logits < own)).sum(1) - 1
    # A NaN score of its own beats nobody: not_beaten is then classes - 1, which for up to five classes is within top-5.
    wrong = torch.isnan(own.squeeze(1))
    return (not_beaten >= 1) | wrong, (not_beaten >= 5) | wrong


def count(logits: Tensor, labels: Tensor, loss: Tensor) -> Tensor:
    """Losses and errors (:func:`misses`) of a batch as one float64 vector of 4."""
    top1, top5 = misses(logits, labels)
    # Filled in, not copied there: a copy from the host would wait for it, and a CUDA graph cannot record one.
    images = torch.full((), len(labels), dtype=torch.float64, device=loss.device)
    return torch.stack([loss.detach().double(), top1.sum().double(), top5.sum().double(), images])

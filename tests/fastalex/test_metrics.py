"""Error rates by hand."""

import pytest
import torch

import kernels
from fastalex.metrics import Metrics


def test_errors_and_loss_by_hand():
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0, -1.0, -2.0, -3.0]]).repeat(4, 1)
    labels = torch.tensor([0, 1, 4, 5])  # right; within five; within five; not even that
    _, counts = kernels.cross_entropy(logits, labels)
    metrics = Metrics.from_counts(counts)
    probabilities = logits.softmax(1)[torch.arange(4), labels]
    assert metrics.loss == pytest.approx(-probabilities.log().mean().item(), rel=1e-6)
    assert (metrics.top1_error, metrics.top5_error, metrics.images) == (75.0, 25.0, 4)


def test_no_images_no_rates():
    metrics = Metrics.from_counts(torch.zeros(4))
    assert metrics.images == 0
    assert metrics.loss != metrics.loss

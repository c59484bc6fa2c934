"""Error rates by hand."""

import pytest
import torch

import kernels
from fastalex.metrics import Metrics, chance, has_top5


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


def test_guessing():
    assert [round(chance(classes), 2) for classes in (1, 2, 3, 1000)] == [0, 50, 66.67, 99.9]
    assert [round(chance(classes, 5), 2) for classes in (2, 5, 10, 1000)] == [0, 0, 50, 99.5]
    assert [has_top5(classes) for classes in (2, 5, 6)] == [False, False, True]

"""Losses and error rates by hand."""

import pytest
import torch

from fastalex.metrics import Metrics, count, summed_loss


def test_errors_and_loss_by_hand():
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0, -1.0, -2.0, -3.0]]).repeat(4, 1)
    labels = torch.tensor([0, 1, 4, 5])  # right; within five; within five; not even that
    loss = summed_loss(logits, labels)
    metrics = Metrics.from_counts(count(logits, labels, loss))
    probabilities = logits.softmax(1)[torch.arange(4), labels]
    assert metrics.loss == pytest.approx(-probabilities.log().mean().item(), rel=1e-6)
    assert (metrics.top1_error, metrics.top5_error, metrics.images) == (75.0, 25.0, 4)


def test_ties_are_errors():
    logits = torch.zeros(2, 10)
    counts = count(logits, torch.tensor([0, 9]), torch.zeros(()))
    assert counts.tolist() == [0, 2, 2, 2]


@pytest.mark.parametrize("classes", [3, 10])
def test_nan_scores_are_errors(classes):
    logits = torch.full((2, classes), float("nan"))
    logits[1, 1:] = 0.0
    counts = count(logits, torch.tensor([0, 0]), torch.zeros(()))
    assert counts[1:].tolist() == [2, 2, 2]


def test_with_five_classes_or_fewer_top5_is_always_right():
    logits = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    assert count(logits, torch.arange(8) % 4, torch.zeros(()))[2] == 0


def test_counts_add_up_over_batches():
    generator = torch.Generator().manual_seed(1)
    logits, labels = torch.randn(12, 9, generator=generator), torch.randint(9, (12,), generator=generator)
    whole = count(logits, labels, summed_loss(logits, labels))
    parts = sum(count(a, b, summed_loss(a, b)) for a, b in zip(logits.split(5), labels.split(5), strict=True))
    torch.testing.assert_close(parts, whole)


def test_no_images_no_rates():
    metrics = Metrics.from_counts(torch.zeros(4))
    assert metrics.images == 0
    assert metrics.loss != metrics.loss

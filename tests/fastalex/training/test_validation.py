"""Ten views against ten forward passes by hand."""

import pytest
import torch

import dataloading
from fastalex import AlexNet
from fastalex.metrics import Metrics
from fastalex.parallel.engine import WholeNetwork
from fastalex.training.validation import classify, count_errors


@pytest.fixture
def model() -> AlexNet:
    model = AlexNet("krizhevsky", 3, seed=0, width=1 / 16, lrn=False)
    with torch.no_grad():
        for block in model.blocks():
            block.weight.mul_(4)
    return model


def loader(prepared, views: int) -> dataloading.Loader:
    return dataloading.Loader(
        dataloading.Dataset(prepared), "val", 4, shuffle=False, augment=None, views=views, drop_last=False
    )


@pytest.mark.parametrize("views", [1, 10])
def test_views_count_by_the_mean_of_their_softmax_outputs(model, prepared, views):
    engine = WholeNetwork(model, torch.device("cpu"), 4)
    counts = count_errors(engine, loader(prepared, views).epoch(0), views=views)
    assert counts is not None
    model.eval()
    loss, wrong = 0.0, 0
    with torch.no_grad():
        for batch in loader(prepared, views).epoch(0):
            seen = batch.images.view(len(batch.labels), views, 3, 224, 224).unbind(1)
            mean = torch.stack([model(images).double().softmax(1) for images in seen]).mean(0)
            scores = classify(engine, batch, views)
            assert scores is not None
            torch.testing.assert_close(scores.softmax(1) if views == 1 else scores.exp(), mean.float())
            loss -= mean[torch.arange(len(batch.labels)), batch.labels].log().sum().item()
            wrong += int((mean.argmax(1) != batch.labels).sum())
    metrics = Metrics.from_counts(counts)
    assert metrics.images == 7  # the last batch of 3 was filled up and counts as 3
    assert metrics.loss * 7 == pytest.approx(loss, rel=1e-5)
    assert counts[1] == wrong


def test_views_that_are_sure_of_something_else_leave_a_finite_loss(model, prepared):
    with torch.no_grad():
        model.fc8.weight.zero_()
        model.fc8.bias.copy_(torch.tensor([0.0, 400.0, 0.0]))
    counts = count_errors(WholeNetwork(model, torch.device("cpu"), 4), loader(prepared, 10).epoch(0), views=10)
    assert counts is not None
    assert torch.isfinite(counts).all()
    assert counts[0] > 400


def test_giving_up(model, prepared):
    engine = WholeNetwork(model, torch.device("cpu"), 4)
    assert count_errors(engine, loader(prepared, 1).epoch(0), stopped=lambda: True) is None

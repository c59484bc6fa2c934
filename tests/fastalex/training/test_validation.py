"""Ten views against ten forward passes by hand."""

import pytest
import torch

import dataloading
from fastalex import AlexNet
from fastalex.metrics import Metrics
from fastalex.parallel.engine import WholeNetwork
from fastalex.training.validation import count_errors


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


def test_ten_views_are_the_mean_of_ten_softmax_outputs(model, prepared):
    engine = WholeNetwork(model, torch.device("cpu"), 4)
    counts = count_errors(engine, loader(prepared, 10).epoch(0), views=10)
    assert counts is not None
    model.eval()
    loss, wrong = 0.0, 0
    with torch.no_grad():
        for batch in loader(prepared, 10).epoch(0):
            mean = torch.stack([model(batch.images[:, view]).double().softmax(1) for view in range(10)]).mean(0)
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

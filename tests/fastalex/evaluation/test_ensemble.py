"""Evaluation of one network and of an ensemble, against a computation by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import dataloading
from fastalex.evaluation.ensemble import Predictions, fit_coefficients, mix
from fastalex.metrics import Metrics
from fastalex.network.weights import load_model
from fastalex.parallel.engine import WholeNetwork
from fastalex.training.validation import count_errors
from tests.dataloading.small_sources import SYNSETS, TEST_TRUTH, ilsvrc2010, ilsvrc2012
from tests.fastalex.conftest import save_run, write_images
from tests.fastalex.evaluation.conftest import HERE, result_of


def by_class(predictions: Predictions) -> torch.Tensor:
    """The probability of each of three classes, N x 3, numbered as in the data set."""
    return torch.zeros(len(predictions.labels), 3).scatter(1, predictions.top_classes, predictions.top_probabilities)


def test_an_ensemble_of_one_equals_its_network_exactly(runs, prepared):
    model, _ = load_model(runs[0] / "best.safetensors")
    loader = dataloading.Loader(
        dataloading.Dataset(prepared), "val", 4, shuffle=False, augment=None, views=10, drop_last=False
    )
    counts = count_errors(WholeNetwork(model, HERE.device, 4), loader.epoch(0), views=10)
    assert counts is not None
    result = result_of(runs[0], crops=10)
    alone = Metrics.from_counts(counts)
    assert replace(result.predictions.metrics, loss=0.0) == replace(alone, loss=0.0)
    assert result.predictions.metrics.loss == pytest.approx(alone.loss, rel=1e-6)  # another order of summation
    twice = result_of(runs[0], runs[0], crops=10)
    assert torch.equal(twice.predictions.top_classes, result.predictions.top_classes)
    torch.testing.assert_close(twice.predictions.top_probabilities, result.predictions.top_probabilities)


def test_ten_crops_are_averaged(runs, prepared, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    dataset = dataloading.Dataset(prepared)
    model, _ = load_model(runs[0] / "best.safetensors")
    whole = dataloading.Loader(
        dataset, "val", 7, crop_size=256, dtype="uint8", shuffle=False, augment=None, drop_last=False
    )
    images = next(whole.epoch(0)).images.float()
    mean = torch.from_numpy(dataset.mean_image[16:240, 16:240]).permute(2, 0, 1)
    corners = [(0, 0), (0, 32), (32, 0), (32, 32), (16, 16)]
    crops = [images[:, :, top : top + 224, left : left + 224] for top, left in corners]
    with torch.no_grad():
        outputs = [model((c.flip(3) if mirrored else c) - mean).softmax(1) for c in crops for mirrored in (0, 1)]
    expected = torch.stack(outputs).mean(0)
    predictions = result_of(runs[0], crops=10).predictions
    torch.testing.assert_close(by_class(predictions), expected, atol=1e-5, rtol=0)
    assert not torch.backends.cudnn.allow_tf32  # the libraries round as the precision says
    assert expected.std(0).max() > 1e-3  # predictions differ between images


def test_an_ensemble_predicts_the_weighted_mean_of_softmax_outputs(runs):
    alone = [result_of(run).predictions for run in runs]
    first, second = map(by_class, alone)
    result = result_of(*runs, coefficients=(3, 1))
    together = result.predictions
    assert result.coefficients == (0.75, 0.25)
    torch.testing.assert_close(by_class(together), 0.75 * first + 0.25 * second)
    for counts, predictions in zip(together.network_counts, alone, strict=True):
        assert Metrics.from_counts(counts) == predictions.metrics


def test_a_network_with_coefficient_0_has_no_influence():
    sure = torch.tensor([[100.0, 0.0]])
    assert torch.isfinite(mix([sure, -sure], (0.5, 0.5))).all()
    torch.testing.assert_close(mix([sure, -sure], (1.0, 0.0)).softmax(1), sure.softmax(1))
    # One with a small coefficient has some.
    unsure = torch.tensor([[0.0, 1.0]])
    expected = 0.9 * unsure.softmax(1) + 0.1 * (-unsure).softmax(1)
    torch.testing.assert_close(mix([unsure, -unsure], (0.9, 0.1)).exp(), expected)


def test_fitted_coefficients_maximise_the_likelihood_of_the_labels():
    log_likelihoods = torch.randn(200, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 2
    log_likelihoods[:, 2] -= 10  # always the worst
    fitted = fit_coefficients(log_likelihoods)
    assert fitted.sum() == pytest.approx(1)
    assert fitted[2] < 1e-4

    def likelihood(first: float) -> float:
        return (log_likelihoods[:, :2].exp() @ torch.tensor([first, 1 - first], dtype=torch.float64)).log().sum().item()

    grid = [step / 1000 for step in range(1, 1000)]
    assert fitted[0].item() == pytest.approx(max(grid, key=likelihood), abs=2e-3)


def test_classes_in_another_order_are_matched_by_name(tmp_path):
    archives = ilsvrc2012(tmp_path / "archives")
    for order in ("sorted", "devkit"):
        dataloading.prepare_dataset(archives, tmp_path / order, progress=False, workers=1, label_order=order)
    classes = [dataloading.Dataset(tmp_path / order).classes for order in ("sorted", "devkit")]
    assert classes[0] != classes[1]
    run = save_run(tmp_path / "run", tmp_path / "sorted")
    own, other = result_of(run), result_of(run, data=tmp_path / "devkit")
    found = other.predictions.metrics  # its sums over the classes are in another order
    assert own.predictions.metrics == replace(found, loss=pytest.approx(found.loss, rel=1e-6))
    names = [[c[i] for i in j.predictions.top_classes[:, 0]] for c, j in zip(classes, (own, other), strict=True)]
    assert names[0] == names[1]
    torch.testing.assert_close(own.predictions.top_probabilities, other.predictions.top_probabilities)


def test_classes_in_a_cycle_are_not_matched_backwards(runs, prepared, tmp_path):
    """Of two classes, an order and its inverse are the same."""
    assert tuple(dataloading.Dataset(prepared).classes) == ("blue", "green", "red")
    cycled = save_run(tmp_path / "run", prepared, seed=1, classes=("green", "red", "blue"))  # the weights of the first
    own, other = (by_class(result_of(run).predictions) for run in (runs[0], cycled))
    blue, green, red = own.unbind(1)
    torch.testing.assert_close(other, torch.stack([red, blue, green], 1))
    assert not torch.allclose(other, torch.stack([green, red, blue], 1), atol=0.01)
    together = by_class(result_of(runs[0], cycled).predictions)
    torch.testing.assert_close(together, (own + other) / 2)


def test_five_of_more_classes_are_listed_and_counted(tmp_path):
    names = tuple("abcdefg")
    data = dataloading.prepare_dataset(
        write_images(tmp_path / "images", train=1, val=3, classes=names), tmp_path / "data", progress=False, workers=0
    )
    result = result_of(save_run(tmp_path / "run", data.root)).predictions
    assert result.top_classes.shape == (21, 5)
    assert (result.top_probabilities.diff(dim=1) <= 0).all()
    assert (result.top_probabilities.sum(1) < 1).all()
    hits = result.top_classes == result.labels.unsqueeze(1)
    assert torch.equal(result.top1_misses, ~hits[:, 0])
    assert torch.equal(result.top5_misses, ~hits.any(1))
    assert 0 < result.metrics.top5_error < result.metrics.top1_error < 100
    assert result.metrics.top1_error == pytest.approx(100 * result.top1_misses.double().mean().item())
    assert result.metrics.top5_error == pytest.approx(100 * result.top5_misses.double().mean().item())


def test_the_test_set_of_2010_is_evaluated_with_its_own_labels(tmp_path):
    archives = ilsvrc2010(tmp_path / "archives")
    for order in ("sorted", "devkit"):
        dataloading.prepare_dataset(archives, tmp_path / order, progress=False, workers=1, label_order=order)
    run = save_run(tmp_path / "run", tmp_path / "sorted")
    for order in ("sorted", "devkit"):
        predictions = result_of(run, data=tmp_path / order, split="test").predictions
        classes = np.array(dataloading.Dataset(tmp_path / order).classes)
        wanted = classes[predictions.labels.numpy()]
        assert wanted.tolist() == [SYNSETS[number - 1][1] for number in TEST_TRUTH]
        wrong = (classes[predictions.top_classes[:, 0].numpy()] != wanted).mean()
        assert (predictions.metrics.images, predictions.metrics.top1_error) == (3, pytest.approx(100 * wrong))

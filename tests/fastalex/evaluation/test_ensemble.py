"""Evaluation of one network and of several, against the same done by hand."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import dataloading
from fastalex import load_model
from fastalex.errors import ConfigurationError
from fastalex.evaluation.ensemble import Evaluation, EvaluationResult, evaluate, fit_coefficients, mix
from fastalex.evaluation.options import EvaluateOptions, evaluate_and_report, resolve
from fastalex.evaluation.trained_network import TrainedNetwork
from fastalex.metrics import Metrics
from fastalex.parallel.engine import SingleDevice
from fastalex.parallel.world import World
from fastalex.training.validation import count_errors
from tests.dataloading.small_sources import SYNSETS, TEST_TRUTH, ilsvrc2010, ilsvrc2012
from tests.fastalex.conftest import save_run, write_images

HERE = World(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def runs(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two runs with other weights each."""
    folder = tmp_path_factory.mktemp("runs")
    return save_run(folder / "one", prepared, seed=1), save_run(folder / "two", prepared, seed=2)


def judged(*runs: Path, data: Path | None = None, **options: object) -> EvaluationResult:
    paths = (*runs, *((data,) if data else ()))
    job = resolve(EvaluateOptions(paths, devices="cpu", batch_size=4, **options))
    judgement = evaluate(HERE, job.evaluation)
    assert judgement is not None
    return judgement


def test_an_ensemble_of_one_equals_its_member_exactly(runs, prepared):
    model, _ = load_model(runs[0] / "best.safetensors")
    loader = dataloading.Loader(
        dataloading.Dataset(prepared), "val", 4, shuffle=False, augment=None, views=10, drop_last=False
    )
    counts = count_errors(SingleDevice(model, HERE.device, 4), loader.epoch(0), views=10)
    assert counts is not None
    judgement = judged(runs[0], crops=10)
    alone = Metrics.from_counts(counts)
    assert replace(judgement.predictions.metrics, loss=0.0) == replace(alone, loss=0.0)
    assert judgement.predictions.metrics.loss == pytest.approx(alone.loss, rel=1e-6)  # summed in another order
    twice = judged(runs[0], runs[0], crops=10)
    assert torch.equal(twice.predictions.top_classes, judgement.predictions.top_classes)
    torch.testing.assert_close(twice.predictions.top_probabilities, judgement.predictions.top_probabilities)


def test_ten_crops_are_the_mean_of_ten_crops_made_by_hand(runs, prepared):
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
    predictions = judged(runs[0], crops=10).predictions
    found = torch.zeros(7, 3).scatter(1, predictions.top_classes, predictions.top_probabilities)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert expected.std(0).max() > 1e-3  # the images are told apart, so the comparison means something


def test_several_answer_with_the_weighted_mean_of_their_softmax_outputs(runs):
    alone = [judged(run).predictions for run in runs]
    by_class = [torch.zeros(7, 3).scatter(1, p.top_classes, p.top_probabilities) for p in alone]
    judgement = judged(*runs, coefficients=(3, 1))
    together = judgement.predictions
    assert judgement.coefficients == (0.75, 0.25)
    expected = 0.75 * by_class[0] + 0.25 * by_class[1]
    found = torch.zeros(7, 3).scatter(1, together.top_classes, together.top_probabilities)
    torch.testing.assert_close(found, expected)
    for member, predictions in zip(together.members, alone, strict=True):
        assert Metrics.from_counts(member) == predictions.metrics


def test_a_network_without_weight_is_not_heard():
    sure = torch.tensor([[100.0, 0.0]])
    assert torch.isfinite(mix([sure, -sure], (0.5, 0.5))).all()
    torch.testing.assert_close(mix([sure, -sure], (1.0, 0.0)).softmax(1), sure.softmax(1))


def test_fitted_coefficients_make_the_labels_likeliest():
    likelihoods = torch.randn(200, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 2
    likelihoods[:, 2] -= 10  # always the worst
    fitted = fit_coefficients(likelihoods)
    assert fitted.sum() == pytest.approx(1)
    assert fitted[2] < 1e-4

    def likelihood(first: float) -> float:
        return (likelihoods[:, :2].exp() @ torch.tensor([first, 1 - first], dtype=torch.float64)).log().sum().item()

    grid = [step / 1000 for step in range(1, 1000)]
    assert fitted[0].item() == pytest.approx(max(grid, key=likelihood), abs=2e-3)


def test_classes_in_another_order_are_matched_by_name(tmp_path):
    archives = ilsvrc2012(tmp_path / "archives")
    for order in ("sorted", "devkit"):
        dataloading.prepare_dataset(archives, tmp_path / order, progress=False, workers=1, label_order=order)
    classes = [dataloading.Dataset(tmp_path / order).classes for order in ("sorted", "devkit")]
    assert classes[0] != classes[1]
    run = save_run(tmp_path / "run", tmp_path / "sorted")
    own, other = judged(run), judged(run, data=tmp_path / "devkit")
    assert own.predictions.metrics == other.predictions.metrics
    names = [[c[i] for i in j.predictions.top_classes[:, 0]] for c, j in zip(classes, (own, other), strict=True)]
    assert names[0] == names[1]
    assert torch.equal(own.predictions.top_probabilities, other.predictions.top_probabilities)


def test_the_test_set_of_2010_is_judged_by_its_own_labels(tmp_path):
    archives = ilsvrc2010(tmp_path / "archives")
    for order in ("sorted", "devkit"):
        dataloading.prepare_dataset(archives, tmp_path / order, progress=False, workers=1, label_order=order)
    run = save_run(tmp_path / "run", tmp_path / "sorted")
    for order in ("sorted", "devkit"):
        predictions = judged(run, data=tmp_path / order, split="test").predictions
        classes = np.array(dataloading.Dataset(tmp_path / order).classes)
        wanted = classes[predictions.labels.numpy()]
        assert wanted.tolist() == [SYNSETS[number - 1][1] for number in TEST_TRUTH]
        wrong = (classes[predictions.top_classes[:, 0].numpy()] != wanted).mean()
        assert (predictions.metrics.images, predictions.metrics.top1_error) == (3, pytest.approx(100 * wrong))


def test_images_lose_the_mean_that_the_network_learnt_with(runs, prepared, tmp_path):
    """Other data with another mean image, same validation images: the errors stay, because the mean does."""
    source = write_images(tmp_path / "source", train=2, val=3)
    (source / "val" / "red" / "000.jpg").unlink()
    other = dataloading.prepare_dataset(source, tmp_path / "other", progress=False, workers=1)
    assert not np.array_equal(other.mean_image, dataloading.Dataset(prepared).mean_image)
    network = TrainedNetwork.find(runs[0])
    assert network.mean_image_for(other) == str(prepared)
    assert network.mean_image_for(dataloading.Dataset(prepared)) is None
    evaluation = Evaluation((network,), str(other.root), "val", 1, (1.0,), None, 4, "fp32")
    with_own = evaluate(HERE, evaluation)
    with_others = evaluate(HERE, replace(evaluation, networks=(replace(network, data=None),)))
    assert with_own is not None
    assert with_others is not None
    assert with_own.predictions.metrics.loss != with_others.predictions.metrics.loss


def test_tables_and_files(runs, prepared, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    files = {"class_errors": tmp_path / "classes.csv", "predictions": tmp_path / "predictions.csv"}
    options = EvaluateOptions(
        runs, split="train", fit_coefficients="train", devices="cpu", worst=2, batch_size=16, **files
    )
    evaluate_and_report(HERE, resolve(options))
    out = capsys.readouterr().out
    assert "fitted on train, the images judged here: the errors are too low" in out
    assert "2 of 3 classes, worst first" in out
    rows = list(csv.DictReader(files["predictions"].open()))
    dataset = dataloading.Dataset(prepared)
    assert [row["sample"] for row in rows] == [dataset.key("train", sample) for sample in range(32)]
    assert rows[0]["sample"].startswith("000000000-")
    assert [row["file"] for row in rows] == [dataset.source("train", sample) for sample in range(32)]
    assert rows[0]["file"] == "train/blue/000.jpg"
    by_class = list(csv.DictReader(files["class_errors"].open()))
    assert [(row["class"], row["images"]) for row in by_class] == [("blue", "10"), ("green", "10"), ("red", "12")]
    for row in by_class:
        own = [prediction for prediction in rows if prediction["class"] == row["class"]]
        wrong = sum(prediction["class_1"] != row["class"] for prediction in own)
        assert float(row["top1_error"]) == pytest.approx(100 * wrong / len(own), abs=1e-4)
    assert all(
        sum(float(row[f"probability_{rank}"]) for rank in (1, 2, 3)) == pytest.approx(1, abs=1e-4) for row in rows
    )
    with pytest.raises(
        ConfigurationError, match=r"classes.csv exists already; choose another file, or add --overwrite"
    ):
        resolve(options)
    arrays = tmp_path / "predictions.npz"
    evaluate_and_report(HERE, resolve(EvaluateOptions(runs[:1], devices="cpu", predictions=arrays)))
    found = np.load(arrays)
    assert found["classes"].tolist() == dataset.classes
    assert found["files"][0] == "val/blue/000.jpg"
    assert found["labels"].tolist() == dataset.labels("val").tolist()
    assert found["top_classes"].shape == found["top_probabilities"].shape == (7, 3)


def test_what_is_refused(runs, prepared, tmp_path):
    one, two = runs
    other = dataloading.prepare_dataset(
        write_images(tmp_path / "o", train=1, val=1, classes=("cat", "red")), tmp_path / "p", progress=False, workers=1
    )
    stranger = save_run(tmp_path / "stranger", other.root)
    tiny = dataloading.prepare_dataset(
        write_images(tmp_path / "t", train=1, val=1), tmp_path / "q", size=64, progress=False, workers=1
    )
    short = save_run(tmp_path / "short", tiny.root)
    started = tmp_path / "started"
    started.mkdir()
    (started / "config.json").write_text((one / "config.json").read_text())
    (tmp_path / "file.txt").touch()
    for paths, options, message in (
        ((), {}, "name at least one run"),
        ((tmp_path / "nothing",), {}, "no such run folder or file of weights"),
        ((prepared, one), {}, "is not a run folder"),
        ((one, tmp_path / "nothing"), {}, "no such folder"),
        ((started,), {}, "has no best.safetensors yet: it has not saved a checkpoint"),
        ((tmp_path / "file.txt",), {}, "file.txt is damaged"),
        ((one, stranger), {}, r"other classes than .* \(it has 'cat' and lacks 'blue'\)"),
        ((one, short), {}, r"short.* with images stored in 64 pixels, .*one.* in 256 pixels; evaluate them one by one"),
        ((one, other.root), {}, r"2 classes that are not the network's 3 \(it has 'cat' and lacks 'blue'\)"),
        ((one,), {"split": "test"}, "no images in split 'test'; choose --split from train, val"),
        ((one, two), {"fit_coefficients": "test"}, "no images in split 'test'"),
        ((one,), {"fit_coefficients": "val"}, "--fit-coefficients needs several runs; there is 1"),
        ((one, two), {"coefficients": (1.0,)}, "1 numbers for 2 runs"),
        ((one, two), {"coefficients": (1.0, -1.0)}, "1 -1: none may be negative"),
        ((one, two), {"coefficients": (1.0, 1.0), "fit_coefficients": "val"}, "exclude each other"),
        ((one,), {"predictions": tmp_path / "p.txt"}, "name a file that ends with .csv or .npz"),
        ((one,), {"predictions": tmp_path / "no" / "p.csv"}, "there is no folder"),
        ((one,), {"batch_size": 0}, "--batch-size is 0"),
        ((one,), {"devices": ",".join(["cpu"] * 9)}, "9 stages for 8 blocks"),
    ):
        with pytest.raises((ConfigurationError, dataloading.DatasetError), match=message):
            resolve(EvaluateOptions(paths, **{"devices": "cpu", **options}))

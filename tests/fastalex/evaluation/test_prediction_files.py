"""Tables and files of an evaluation."""

import csv
import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import dataloading
from fastalex.errors import ConfigurationError
from fastalex.evaluation.ensemble import Predictions
from fastalex.evaluation.options import EvaluateOptions, _coefficients_text, evaluate_and_report, resolve
from fastalex.evaluation.prediction_files import (
    ClassErrors,
    errors_by_class,
    worst_classes_table,
    write_class_errors,
    write_errors,
)
from tests.dataloading.owning import fill, small_disk
from tests.fastalex.evaluation.conftest import HERE, result_of


def test_tables_and_files(runs, prepared, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    files = {"class_errors": tmp_path / "classes.csv", "predictions": tmp_path / "predictions.csv"}
    options = EvaluateOptions(
        runs, split="train", fit_coefficients="train", devices="cpu", worst=2, batch_size=16, **files
    )
    evaluate_and_report(HERE, resolve(options))
    out = capsys.readouterr().out
    assert "fitted on train, the split evaluated here: the errors are too low" in out
    assert "worst 2 of 3 classes" in out
    assert re.search(r"^top-1 error +\d+\.\d\d % \(chance 66\.67 %\)$", out, re.MULTILINE)
    assert "top-5" not in out
    for number, run in enumerate(runs, 1):
        assert re.search(rf"^weights {number} +{run}/best.safetensors$", out, re.MULTILINE)
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
    with pytest.raises(ConfigurationError, match=r"classes.csv exists already; choose another file, or add --force"):
        resolve(options)
    assert resolve(replace(options, force=True)).predictions == files["predictions"]
    arrays = tmp_path / "predictions.npz"
    evaluate_and_report(HERE, resolve(EvaluateOptions(runs[:1], devices="cpu", predictions=arrays, worst=0)))
    out = capsys.readouterr().out
    assert not any(text in out for text in ("worst", "coefficients", "single networks"))
    found = np.load(arrays)
    assert found["classes"].tolist() == dataset.classes
    assert found["files"][0] == "val/blue/000.jpg"
    assert found["labels"].tolist() == dataset.labels("val").tolist()
    assert found["top_classes"].shape == found["top_probabilities"].shape == (7, 3)


def test_given_coefficients_are_not_called_fitted():
    for fitted_on, split, expected in (
        (None, "val", "0.7500 0.2500"),
        ("train", "val", "0.7500 0.2500, fitted on train"),
        ("val", "val", "0.7500 0.2500, fitted on val, the split evaluated here: the errors are too low"),
    ):
        evaluation = SimpleNamespace(fitted_on=fitted_on, split=split)
        assert _coefficients_text(evaluation, (0.75, 0.25)) == expected  # type: ignore[arg-type]


def test_errors_by_class_name_the_class_that_is_taken_most_often(tmp_path):
    tops = torch.tensor([[1], [1], [2], [0], [1], [0], [3]])
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 3])
    top5_misses = torch.tensor([True, *[False] * 6])
    none = torch.zeros(7)
    predictions = Predictions(labels, tops[:, 0] != labels, top5_misses, tops, none, none, none)
    dataset = SimpleNamespace(classes=["a", "b", "c", "d"], words=["A", "B", "C", "D"])
    errors = errors_by_class(predictions, dataset)
    assert errors == [
        ClassErrors("a", "A", 4, 75.0, 25.0, "b", 2),
        ClassErrors("b", "B", 2, 50.0, 0.0, "a", 1),
        ClassErrors("d", "D", 1, 0.0, 0.0, "", 0),
    ]
    write_class_errors(tmp_path / "errors.csv", errors)
    first = next(csv.DictReader((tmp_path / "errors.csv").open()))
    assert first == {
        "class": "a", "words": "A", "images": "4", "top1_error": "75.0000", "top5_error": "25.0000",
        "most_often_taken_for": "b", "times": "2",
    }  # fmt: skip


def test_the_worst_classes_come_first_and_of_equal_ones_the_larger():
    errors = [
        ClassErrors(name, "", images, top1, 1.0, "z", confusions)
        for name, images, top1, confusions in (
            ("a", 2, 50.0, 1),
            ("b", 4, 50.0, 2),
            ("c", 3, 75.0, 2),
            ("d", 9, 0.0, 0),
        )
    ]
    table = worst_classes_table(errors, 3, classes=6)
    assert table.title == "worst 3 of 4 classes"
    cells = {str(column.header): list(column.cells) for column in table.columns}
    assert list(cells) == ["class", "images", "top-1 error", "top-5 error", "most often confused with"]
    assert list(zip(*cells.values(), strict=True)) == [
        ("c", "3", "75.0 %", "1.0 %", "z (2)"),
        ("b", "4", "50.0 %", "1.0 %", "z (2)"),
        ("a", "2", "50.0 %", "1.0 %", "z (1)"),
    ]


def test_files_that_cannot_be_written_do_not_cost_the_results(runs, tmp_path, capsys):
    with small_disk(tmp_path / "disk", "40k") as disk:
        options = EvaluateOptions(runs[:1], devices="cpu", predictions=disk / "p.csv")
        job = resolve(options)
        fill(disk, 0)  # meanwhile
        with pytest.raises(ConfigurationError, match=r"p.csv cannot be written: No space .*; the results above are c"):
            evaluate_and_report(HERE, job)
        assert [path.name for path in disk.iterdir()] == ["ballast"]
    assert "top-1 error" in capsys.readouterr().out


def test_many_classes_have_a_top_5_error():
    errors = [ClassErrors(str(label), "", 1, 100.0, 50.0, "", 0) for label in range(6)]
    for classes, columns in ((5, 4), (6, 5)):
        table = worst_classes_table(errors[:classes], 2, classes)
        assert len(table.columns) == columns
        assert ("top-5 error" in [column.header for column in table.columns]) == (classes == 6)


def test_errors_are_written_of_the_ensemble_and_of_each_network(runs, tmp_path, capsys):
    path = tmp_path / "errors.json"
    options = EvaluateOptions(runs, crops=10, split="train", devices="cpu", batch_size=16, worst=0, json=path)
    evaluate_and_report(HERE, resolve(options))
    assert capsys.readouterr().out.endswith(f"errors: {path}\n")
    written = json.loads(path.read_text())
    together, alone = (
        result_of(*runs, crops=10, split="train"),
        [result_of(run, crops=10, split="train") for run in runs],
    )
    about = {"split": "train", "views": 10, "images": 32, "classes": 3}
    assert {name: written[name] for name in about} == about
    for found, result in zip([written, *written["networks"]], [together, *alone], strict=True):
        metrics = result.predictions.metrics
        assert found["top1_error"] == metrics.top1_error
        assert found["loss"] == pytest.approx(metrics.loss, rel=1e-5)
    assert [network["coefficient"] for network in written["networks"]] == [0.5, 0.5]
    assert [Path(network["weights"]).parent for network in written["networks"]] == list(runs)


def test_a_loss_that_is_not_finite_is_null(runs, tmp_path):
    evaluation = resolve(EvaluateOptions(runs[:1], devices="cpu")).evaluation
    result = result_of(runs[0])
    result.predictions.losses[0] = float("nan")
    write_errors(tmp_path / "errors.json", evaluation, result)
    assert json.loads((tmp_path / "errors.json").read_text(), parse_constant=pytest.fail)["loss"] is None

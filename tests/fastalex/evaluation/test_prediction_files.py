"""Tables and files of an evaluation."""

import csv
import io
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from rich.console import Console

import dataloading
from fastalex.errors import ConfigurationError
from fastalex.evaluation.ensemble import Predictions
from fastalex.evaluation.options import EvaluateOptions, evaluate_and_report, resolve
from fastalex.evaluation.prediction_files import ClassErrors, errors_by_class, worst_classes_table
from tests.fastalex.evaluation.conftest import HERE


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
    assert resolve(replace(options, overwrite=True)).predictions == files["predictions"]
    arrays = tmp_path / "predictions.npz"
    evaluate_and_report(HERE, resolve(EvaluateOptions(runs[:1], devices="cpu", predictions=arrays, worst=0)))
    assert "worst" not in capsys.readouterr().out
    found = np.load(arrays)
    assert found["classes"].tolist() == dataset.classes
    assert found["files"][0] == "val/blue/000.jpg"
    assert found["labels"].tolist() == dataset.labels("val").tolist()
    assert found["top_classes"].shape == found["top_probabilities"].shape == (7, 3)


def test_errors_by_class_by_hand():
    """Four classes, of which one has no images: what each is taken for, and how often."""
    labels = torch.tensor([3, 0, 1, 1, 0, 1, 1])
    predicted = torch.tensor([3, 1, 3, 0, 0, 3, 1])
    missed = predicted != labels
    top5 = torch.tensor([False, False, True, False, False, False, False])
    nothing = torch.zeros(0)
    predictions = Predictions(labels, missed, top5, predicted.unsqueeze(1), nothing, nothing, nothing)
    dataset = SimpleNamespace(classes=["a", "b", "c", "d"], words=["A", "B", "C", "D"])
    assert errors_by_class(predictions, dataset) == [  # type: ignore[arg-type]
        ClassErrors("a", "A", 2, 50.0, 0.0, "b", 1),
        ClassErrors("b", "B", 4, 75.0, 25.0, "d", 2),
        ClassErrors("d", "D", 1, 0.0, 0.0, "", 0),
    ]


def test_the_worst_classes_come_first_and_of_equal_ones_the_larger():
    entries = [
        ClassErrors(name, "", images, error, 0.0, "x" * bool(error), int(error))
        for name, images, error in (("a", 5, 20.0), ("b", 9, 60.0), ("c", 7, 0.0), ("d", 12, 60.0))
    ]
    out = io.StringIO()
    Console(file=out, width=100).print(worst_classes_table(entries, 3))
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.getvalue().splitlines() if "│" in line]
    assert rows == [
        ["d", "12", "60.0 %", "0.0 %", "x (60)"],
        ["b", "9", "60.0 %", "0.0 %", "x (60)"],
        ["a", "5", "20.0 %", "0.0 %", "x (20)"],
    ]
    assert "worst 3 of 4 classes" in out.getvalue()

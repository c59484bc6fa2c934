"""Tables and files of an evaluation."""

import csv
import re

import numpy as np
import pytest

import dataloading
from fastalex.errors import ConfigurationError
from fastalex.evaluation.options import EvaluateOptions, evaluate_and_report, resolve
from fastalex.evaluation.prediction_files import ClassErrors, worst_classes_table
from tests.dataloading.owning import fill, small_disk
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

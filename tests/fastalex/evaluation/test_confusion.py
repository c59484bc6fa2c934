"""Confusion matrices: counts, tables and heat maps."""

import csv
import io

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import confusion_matrix as sklearn_confusion_matrix

from fastalex.errors import ConfigurationError
from fastalex.evaluation import options as evaluation_options
from fastalex.evaluation.confusion import check_size, confusion_figure, confusion_matrix, write_confusion
from fastalex.evaluation.ensemble import Predictions
from fastalex.evaluation.options import EvaluateOptions, evaluate_and_report, resolve
from tests.fastalex.evaluation.conftest import HERE, result_of


def predictions(labels: torch.Tensor, top: torch.Tensor) -> Predictions:
    none = torch.zeros(len(labels))
    return Predictions(labels, none, none, torch.stack([top, labels], 1), none, none, none)


def test_it_is_that_of_scikit_learn():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(1, 7, (200,), generator=generator)  # class 0 has no images
    top = torch.randint(0, 6, (200,), generator=generator)  # class 6 is never predicted
    found = confusion_matrix(predictions(labels, top), 7)
    assert np.array_equal(found, sklearn_confusion_matrix(labels, top, labels=range(7)))
    assert not np.array_equal(found, found.T)


def test_an_evaluation_writes_it(runs, tmp_path, capsys):
    table, picture = tmp_path / "confusion.csv", tmp_path / "confusion.png"
    options = EvaluateOptions(runs[:1], split="train", devices="cpu", batch_size=16, worst=0, confusion=table)
    evaluate_and_report(HERE, resolve(options))
    assert capsys.readouterr().out.endswith(f"confusion matrix: {table}\n")
    header, *rows = csv.reader(table.open())
    assert header == ["class", "blue", "green", "red"]
    assert [row[0] for row in rows] == header[1:]
    result = result_of(runs[0], split="train").predictions
    counts = [[int(count) for count in row[1:]] for row in rows]
    assert counts == sklearn_confusion_matrix(result.labels, result.top_classes[:, 0], labels=range(3)).tolist()
    assert [sum(row) for row in counts] == [10, 10, 12]
    with pytest.raises(ConfigurationError, match=r"confusion.csv exists already; choose another file, or add --force"):
        resolve(options)
    write_confusion(picture, np.array(counts), header[1:])
    with Image.open(picture) as image:
        assert image.format == "PNG"


def test_too_many_classes_are_refused_before_the_work(runs, tmp_path, monkeypatch):
    check_size(5000)
    message = "of 10184 classes would have 104 million cells; at most 5000 classes can be shown: write the predictions"
    with pytest.raises(ConfigurationError, match=message):
        check_size(10184)
    asked: list[int] = []
    monkeypatch.setattr(evaluation_options, "check_size", asked.append)
    resolve(EvaluateOptions(runs[:1], devices="cpu", confusion=tmp_path / "a.png"))
    resolve(EvaluateOptions(runs[:1], devices="cpu"))
    assert asked == [3]


def random_matrix(count: int) -> np.ndarray:
    matrix = np.random.default_rng(0).integers(0, 20, (count, count))
    matrix[1] = 0  # a class without images
    return matrix


@pytest.mark.parametrize(
    ("count", "has_numbers", "has_names"), [(20, True, True), (50, False, True), (51, False, False)]
)
def test_the_heat_map_shows_shares_of_the_true_class(count, has_numbers, has_names):
    matrix, names = random_matrix(count), [f"class {number}" for number in range(count)]
    axes = confusion_figure(matrix, names).axes[0]
    (image,) = axes.images
    totals = matrix.sum(axis=1)
    assert np.array(image.get_array()).sum(axis=1) == pytest.approx([100.0 if total else 0.0 for total in totals])
    assert image.get_array()[2, 3] == pytest.approx(100 * matrix[2, 3] / totals[2])
    shown = {(round(text.get_position()[1]), round(text.get_position()[0])): text.get_text() for text in axes.texts}
    expected = {place: str(number) for place, number in np.ndenumerate(matrix) if number}
    assert shown == (expected if has_numbers else {})
    for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
        assert ([label.get_text() for label in labels] == names) == has_names
    assert ("number" in axes.get_xlabel()) != has_names
    assert "predicted" in axes.get_xlabel()
    assert "true" in axes.get_ylabel()


def test_every_cell_of_a_thousand_classes_has_a_pixel():
    figure = confusion_figure(np.eye(1000, dtype=np.int64), [str(number) for number in range(1000)])
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110)
    box = figure.axes[0].get_window_extent()
    assert min(box.width, box.height) * 110 / figure.dpi >= 1000
    with Image.open(content) as picture:
        assert max(picture.size) < 3000


def test_any_name_can_be_drawn(tmp_path, recwarn):
    names = ["$\\frac$", "日本", "two\nlines", "bytes \udcff", "n" * 300]
    write_confusion(tmp_path / "a.png", np.eye(5, dtype=np.int64), names)
    assert not recwarn.list
    drawn = [label.get_text() for label in confusion_figure(np.eye(5, dtype=int), names).axes[0].get_yticklabels()]
    assert drawn == ["$\\frac$", "日本", "two\\nlines", "bytes \\udcff", "n" * 29 + "…"]
    write_confusion(tmp_path / "a.csv", np.eye(5, dtype=np.int64), names)
    header = next(csv.reader((tmp_path / "a.csv").open(errors="surrogateescape", newline="")))
    assert header == ["class", *names]

"""What a report says of a network, against its predictions."""

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import confusion_matrix as confusion_matrix_of_sklearn

import dataloading
from fastalex.evaluation.confusion import confusion_matrix
from fastalex.evaluation.ensemble import Predictions
from fastalex.evaluation.options import EvaluateOptions, resolve
from fastalex.reports.neighbours import HiddenLayer, nearest
from fastalex.reports.results import (
    choose_examples,
    choose_rows,
    class_names,
    collect,
    hardest,
    images_by_cell,
)
from tests.fastalex.reports.conftest import HERE


def predictions(labels: list[int], predicted: list[int], probabilities: list[float]) -> Predictions:
    """Predictions of which only the most probable class matters."""
    found, true = torch.tensor(predicted), torch.tensor(labels)
    none = torch.zeros(len(labels))
    shares = torch.tensor(probabilities).unsqueeze(1)
    return Predictions(true, found != true, none, found.unsqueeze(1), shares, none.double(), torch.zeros(1, 4))


def test_images_of_all_cells_take_turns_errors_and_sure_predictions_first():
    found = predictions([0, 0, 0, 0, 1, 1], [0, 0, 1, 1, 0, 1], [0.5, 0.9, 0.6, 0.7, 0.8, 0.99])
    matrix = confusion_matrix(found, 2)
    assert images_by_cell(found, matrix, 100) == {
        (0, 1): [(3, 70.0), (2, 60.0)],
        (1, 0): [(4, 80.0)],
        (0, 0): [(1, 90.0), (0, 50.0)],
        (1, 1): [(5, 99.0)],
    }
    few = images_by_cell(found, matrix, 5)
    assert [len(few[cell]) for cell in ((0, 1), (1, 0), (0, 0), (1, 1))] == [2, 1, 1, 1]
    assert [len(images) for images in images_by_cell(found, matrix, 1).values()] == [1, 0, 0, 0]


def test_examples_are_of_different_classes_as_far_as_there_are_any():
    labels = np.array([0] * 50 + [1] + [2])
    rows = choose_examples(labels, 8)
    assert len(set(rows)) == 8
    assert {0, 1, 2} == set(labels[rows[:3]].tolist())
    assert rows == choose_examples(labels, 8)
    assert sorted(choose_examples(labels[-2:], 8)) == [0, 1]


def test_searched_rows_are_a_random_choice_or_all():
    assert choose_rows(5, 5) == [0, 1, 2, 3, 4]
    rows = choose_rows(1000, 20)
    assert len(set(rows)) == 20
    assert rows == sorted(rows)
    assert rows[-1] > 500
    assert choose_rows(1000, 0) == []
    assert len(set(choose_rows(21, 20))) == 20


def test_the_hardest_images_have_the_highest_losses():
    assert hardest(np.array([1.0, 3.0, 0.0, 3.0, 2.0]), 3) == [1, 3, 4]


def test_classes_have_the_first_of_their_words(prepared):
    dataset = dataloading.Dataset(prepared)
    assert class_names(dataset) == ["blue", "green", "red"]
    dataset.words = ["crane", "tench, Tinca tinca", "crane, machine"]
    assert class_names(dataset) == ["crane (blue)", "tench", "crane (red)"]


def test_results_of_a_run(run, prepared):
    dataset = dataloading.Dataset(prepared)
    evaluation = resolve(EvaluateOptions((run,), devices="cpu", batch_size=7)).evaluation
    found = collect(HERE, evaluation, dataset, dataset, searched=20, images=10)
    predicted, labels = found.result.predictions, dataset.labels("val")
    assert np.array_equal(
        found.matrix, confusion_matrix_of_sklearn(labels, predicted.top_classes[:, 0], labels=range(3))
    )
    assert np.trace(found.matrix) == 7 - int(predicted.top1_misses.sum())
    assert (found.searched, found.training_images) == (20, 32)
    # Every example shows what was predicted for that file.
    files = [dataset.source("val", row) for row in range(7)]
    assert len(found.examples) == 7
    for example in found.examples:
        row = files.index(example.image.file)
        assert example.image.label == dataset.classes[labels[row]] == example.image.file.split("/")[1]
        assert [guess.name for guess in example.guesses] == [dataset.classes[c] for c in predicted.top_classes[row]]
        assert [guess.percent for guess in example.guesses] == pytest.approx(
            (100 * predicted.top_probabilities[row]).tolist()
        )
        assert example.is_right == example.guesses[0].is_true == (not predicted.top1_misses[row])
        assert sum(guess.is_true for guess in example.guesses) == 1
    # Neighbours are training images, nearest first.
    assert len(found.retrievals) == 5
    for retrieval in found.retrievals:
        distances = [neighbour.distance for neighbour in retrieval.neighbours]
        assert len(distances) == 6
        assert distances == sorted(distances)
        for neighbour in retrieval.neighbours:
            assert neighbour.image.file.startswith(f"train/{neighbour.image.label}/")
            assert neighbour.is_of_same_class == (neighbour.image.label == retrieval.image.label)
    layer, rows = HiddenLayer(HERE, evaluation, dataset), choose_rows(32, 20)
    query = files.index(found.retrievals[0].image.file)
    (features,) = layer.features(dataset, "val", [query], "image")
    _, nearest_rows = nearest(features, layer.features(dataset, "train", rows, "images"), 6)
    shown = [neighbour.image.file for neighbour in found.retrievals[0].neighbours]
    assert shown == [dataset.source("train", rows[place]) for place in nearest_rows[0]]
    losses = [hard.loss for hard in found.hardest]
    assert losses == sorted(predicted.losses.tolist(), reverse=True)
    kernels = found.kernels
    assert (kernels.layer, kernels.count, kernels.side, kernels.towers) == ("conv1", 8, 11, 2)
    assert decoded(kernels.uri, "image/png").size == (kernels.width, kernels.height)
    # The file of the first example has the colour of its class.
    pixels = np.asarray(decoded(found.examples[0].image.uri, "image/jpeg")).mean((0, 1))
    assert pixels.argmax() == 2 - dataset.classes.index(found.examples[0].image.label)


def decoded(uri: str, kind: str) -> Image.Image:
    head, content = uri.split(",", 1)
    assert head == f"data:{kind};base64"
    return Image.open(io.BytesIO(base64.b64decode(content)))

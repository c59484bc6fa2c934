"""What one trained network makes of a data set: errors, confusions, and the images that show them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dataloading import Dataset
from dataloading.sources.names import classes_in_words
from fastalex.errors import ConfigurationError
from fastalex.evaluation.confusion import confusion_matrix
from fastalex.evaluation.ensemble import Evaluation, EvaluationResult, Predictions, evaluate
from fastalex.evaluation.prediction_files import ClassErrors, errors_by_class
from fastalex.evaluation.trained_network import TrainedNetwork
from fastalex.network.weights import load_first_layer
from fastalex.parallel.world import World
from fastalex.pictures import kernel_picture
from fastalex.reports.neighbours import HiddenLayer, nearest
from fastalex.reports.thumbnails import png, thumbnail

EXAMPLES, RETRIEVALS, NEIGHBOURS, HARDEST = 8, 5, 6, 12
"""Images with their predictions and with their neighbours, neighbours of each, as in the paper; and hardest images."""

Cell = tuple[int, int]
"""True and predicted class."""


@dataclass(frozen=True)
class ShownImage:
    """An image of a data set on the page."""

    uri: str
    file: str
    label: str


@dataclass(frozen=True)
class Guess:
    """A predicted class; its probability in percent."""

    name: str
    percent: float
    is_true: bool


@dataclass(frozen=True)
class Example:
    """An image and its most probable classes."""

    image: ShownImage
    guesses: tuple[Guess, ...]
    is_right: bool


@dataclass(frozen=True)
class Neighbour:
    """A training image near to another image; the Euclidean distance of their features."""

    image: ShownImage
    distance: float
    is_of_same_class: bool


@dataclass(frozen=True)
class Retrieval:
    """An image and the training images nearest to it."""

    image: ShownImage
    neighbours: tuple[Neighbour, ...]


@dataclass(frozen=True)
class HardImage:
    """An image with a high loss (nats)."""

    image: ShownImage
    guess: Guess
    loss: float


@dataclass(frozen=True)
class Kernels:
    """A picture of the first layer's kernels."""

    layer: str
    uri: str
    width: int
    height: int
    count: int
    side: int
    towers: int


@dataclass(frozen=True, eq=False)
class Results:
    """The results of one network on one split, ready to be shown.

    Args:
        evaluation: what was evaluated.
        result: its predictions, and how long they took.
        by_class: the errors of every class that has images.
        matrix: C x C; entry (i, j) counts images of class i whose most probable class is j.
        cells: for each cell that is not empty, images to show, as row and probability of the predicted class in
            percent: fewer than the count where a page of all images would be too large.
        kernels: of the first layer.
        examples: a random choice of images.
        retrievals: for some of them, the nearest training images.
        hidden_layer: whose features are compared for that.
        searched, training_images: how many training images were searched, of how many.
        training_data: name of the data set that these are of.
        hardest: the images with the highest loss.
    """

    evaluation: Evaluation
    result: EvaluationResult
    by_class: tuple[ClassErrors, ...]
    matrix: NDArray[np.int64]
    cells: dict[Cell, list[tuple[int, float]]]
    kernels: Kernels
    examples: tuple[Example, ...]
    retrievals: tuple[Retrieval, ...]
    hidden_layer: str
    searched: int
    training_images: int
    training_data: str
    hardest: tuple[HardImage, ...]


def collect(
    world: World, evaluation: Evaluation, dataset: Dataset, training: Dataset, *, searched: int, images: int
) -> Results:
    """Evaluate one network, and look up the images to show.

    Args:
        world: this process alone.
        evaluation: of a single network, on one view of each image.
        dataset: its data set, opened.
        training: with the training images that the network has seen, opened.
        searched: how many training images are searched for neighbours, at most; a random choice of them.
        images: how many images to show behind the cells of the confusion matrix, at most.

    Raises:
        ConfigurationError: weights or predictions are not finite.
        Interrupted: a signal asked to stop.
        dataloading.DatasetError: an image is damaged.
    """
    kernels = kernels_of(evaluation.networks[0])
    result = evaluate(world, evaluation)
    assert result is not None  # this process is the first one
    predictions = result.predictions
    if not math.isfinite(predictions.metrics.loss):
        raise ConfigurationError(
            f"{evaluation.networks[0].weights} predicts probabilities that are infinite or NaN: its training has "
            "diverged; report on a run that has not"
        )
    show = _Images(dataset, evaluation.split)
    chosen = choose_examples(predictions.labels.numpy(), EXAMPLES)
    count = training.count("train") if "train" in training.splits else 0
    rows = choose_rows(count, searched)
    layer = HiddenLayer(world, evaluation, dataset)
    matrix = confusion_matrix(predictions, len(dataset.classes))
    return Results(
        evaluation,
        result,
        tuple(errors_by_class(predictions, dataset)),
        matrix,
        images_by_cell(predictions, matrix, images),
        kernels,
        tuple(_example(show, predictions, row) for row in chosen),
        _retrievals(layer, show, chosen[:RETRIEVALS], _Images(training, "train"), rows),
        layer.name,
        len(rows),
        count,
        training.name,
        tuple(
            HardImage(show(row), _guesses(show, predictions, row)[0], float(predictions.losses[row]))
            for row in hardest(predictions.losses.numpy(), HARDEST)
        ),
    )


def kernels_of(network: TrainedNetwork) -> Kernels:
    """The first layer's kernels as the paper's Figure 3.

    Raises:
        ConfigurationError: a weight is not finite, or the file is damaged.
    """
    layer = load_first_layer(network.weights)
    picture = kernel_picture(layer.weights, layer.towers)
    count, side = len(layer.weights), layer.weights.shape[-1]
    return Kernels(layer.name, png(picture), *picture.size, count, side, layer.towers)


def images_by_cell(
    predictions: Predictions, matrix: NDArray[np.int64], most: int
) -> dict[Cell, list[tuple[int, float]]]:
    """Images for each cell of a confusion matrix that is not empty: rows, with the prediction's probability in percent.

    The cells take turns until ``most`` images are chosen, errors before the diagonal and frequent cells first. Within a
    cell, the surest predictions come first.
    """
    labels, predicted = predictions.labels.numpy(), predictions.top_classes[:, 0].numpy()
    percent = 100 * predictions.top_probabilities[:, 0].double().numpy()
    by_cell: dict[Cell, list[tuple[int, float]]] = {}
    for row in np.argsort(-percent, kind="stable").tolist():
        by_cell.setdefault((int(labels[row]), int(predicted[row])), []).append((row, round(float(percent[row]), 1)))
    order = sorted(by_cell, key=lambda cell: (cell[0] == cell[1], -int(matrix[cell]), cell))
    turns = itertools.zip_longest(*(by_cell[cell] for cell in order))
    picked = ((cell, image) for turn in turns for cell, image in zip(order, turn, strict=True) if image is not None)
    chosen: dict[Cell, list[tuple[int, float]]] = {cell: [] for cell in order}
    for cell, image in itertools.islice(picked, most):
        chosen[cell].append(image)
    return chosen


def choose_examples(labels: NDArray[np.int64], count: int) -> list[int]:
    """Random rows, the same every time: one image of each class first, then any others."""
    order = np.random.default_rng(0).permutation(len(labels))
    _, first = np.unique(labels[order], return_index=True)
    leaders = order[np.sort(first)].tolist()
    others = [row for row in order.tolist() if row not in set(leaders)]
    return [*leaders, *others][:count]


def choose_rows(count: int, most: int) -> list[int]:
    """At most ``most`` of ``count`` rows, in ascending order: all of them, or a random choice, the same every time."""
    if count <= most:
        return list(range(count))
    chosen: list[int] = np.sort(np.random.default_rng(0).choice(count, most, replace=False)).tolist()
    return chosen


def hardest(losses: NDArray[np.float64], count: int) -> list[int]:
    """The rows with the highest losses, the highest first; of equal ones, the lower row."""
    rows: list[int] = np.argsort(-losses, kind="stable")[:count].tolist()
    return rows


def readable(name: str) -> str:
    """A name with bytes that are no text written out, as ``\\udcff``: half a character would not be valid in a page."""
    return name.encode("utf-8", "backslashreplace").decode()


def class_names(dataset: Dataset) -> list[str]:
    """The names of the classes as people read them, in words where the data set has them."""
    return [readable(name) for name in classes_in_words(dataset.classes, dataset.words)]


class _Images:
    """Looks up images of one split to show them."""

    def __init__(self, dataset: Dataset, split: str) -> None:
        self.dataset, self.split = dataset, split
        self.names = class_names(dataset)
        self.labels = dataset.labels(split).tolist() if split in dataset.splits else []

    def __call__(self, row: int) -> ShownImage:
        file = readable(self.dataset.source(self.split, row))
        return ShownImage(thumbnail(self.dataset, self.split, row), file, self.names[self.labels[row]])

    def class_of(self, row: int) -> str:
        """The class of an image by its name in the data set, not by its words, which another data set may lack."""
        return self.dataset.classes[self.labels[row]]


def _guesses(show: _Images, predictions: Predictions, row: int) -> tuple[Guess, ...]:
    pairs = zip(predictions.top_classes[row].tolist(), predictions.top_probabilities[row].tolist(), strict=True)
    label = show.labels[row]
    return tuple(Guess(show.names[predicted], 100 * share, predicted == label) for predicted, share in pairs)


def _example(show: _Images, predictions: Predictions, row: int) -> Example:
    return Example(show(row), _guesses(show, predictions, row), not bool(predictions.top1_misses[row]))


def _retrievals(
    layer: HiddenLayer, show: _Images, queries: Sequence[int], training: _Images, rows: Sequence[int]
) -> tuple[Retrieval, ...]:
    """The training images, of these rows, that are nearest to each query."""
    if not rows:
        return ()
    features = np.concatenate(list(layer.features(show.dataset, show.split, queries, "images")))
    searched = layer.features(training.dataset, "train", rows, "searching for neighbours")
    distances, found = nearest(features, searched, NEIGHBOURS)

    def neighbours(query: int, number: int) -> Iterator[Neighbour]:
        for distance, place in zip(distances[number].tolist(), found[number].tolist(), strict=True):
            row = rows[place]
            yield Neighbour(training(row), distance, training.class_of(row) == show.class_of(query))

    return tuple(Retrieval(show(query), tuple(neighbours(query, number))) for number, query in enumerate(queries))

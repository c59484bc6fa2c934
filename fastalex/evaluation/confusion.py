"""The confusion matrix of an evaluation, as CSV or as a heat map."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastalex.errors import ConfigurationError
from fastalex.evaluation.ensemble import Predictions
from fastalex.evaluation.prediction_files import as_csv
from fastalex.files import write_atomically
from fastalex.training.metrics_log import save_figure, without_backend

MOST_CLASSES = 5000
"""A larger matrix would take hundreds of megabytes, and its picture less than a pixel per cell."""

MOST_NAMES = 50
"""Classes that the heat map names. More would overlap; it numbers them."""

_MOST_NUMBERS = 20  # classes whose counts fit into the cells of the heat map
_LONGEST_NAME = 30  # characters
_DPI = 110  # of save_figure


def check_size(classes: int) -> None:
    """Check that a matrix of this many classes is not too large.

    Raises:
        ConfigurationError: it is.
    """
    if classes > MOST_CLASSES:
        raise ConfigurationError(
            f"a confusion matrix of {classes} classes would have {classes**2 / 1e6:.0f} million cells; at most "
            f"{MOST_CLASSES} classes can be shown: write the predictions instead"
        )


def confusion_matrix(predictions: Predictions, classes: int) -> NDArray[np.int64]:
    """How many images of each class get each class as their most probable one.

    Args:
        classes: C, the number of classes of the data set.

    Returns:
        C x C; entry (i, j) counts images of class i whose most probable class is j.
    """
    cells = predictions.labels.numpy() * classes + predictions.top_classes[:, 0].numpy()
    return np.bincount(cells, minlength=classes**2).reshape(classes, classes)


def write_confusion(path: Path, matrix: NDArray[np.int64], classes: Sequence[str]) -> None:
    """Write a confusion matrix as CSV, or as a picture if ``path`` ends with ``.png``.

    The header of the CSV is ``class`` and the names of all classes; each row is the name of a true class and its
    counts.

    Raises:
        OSError: it cannot be written.
    """
    if path.suffix == ".png":
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*[Gg]lyph")  # names in scripts that the font lacks get boxes
            save_figure(confusion_figure(matrix, classes), path)
    else:
        rows = ([name, *counts] for name, counts in zip(classes, matrix.tolist(), strict=True))
        write_atomically(path, as_csv([["class", *classes], *rows]))


def confusion_figure(matrix: NDArray[np.int64], classes: Sequence[str]) -> Any:
    """A heat map of a confusion matrix, as a matplotlib figure: true classes down, predicted classes across.

    The colour is the share of the true class's images, so classes of different sizes compare, on a cube-root scale, so
    one image in fifty shows. Up to 20 classes, the cells hold their counts; up to 50, the axes name the classes.
    """
    with without_backend():
        from matplotlib.colors import PowerNorm  # slow to import, and seldom needed
        from matplotlib.figure import Figure

    count = len(classes)
    names = [_short(name) for name in classes] if count <= MOST_NAMES else None
    # Room for names, or else two pixels per class as long as the picture is of a size that can be opened anywhere.
    side = max(4.0, 0.3 * count) if names else min(2.0 * count, 6000) / _DPI
    figure = Figure(figsize=(side + 2.5, side + 1.5), layout="constrained")
    axes = figure.subplots()
    shares = 100 * matrix / np.maximum(1, matrix.sum(axis=1, keepdims=True))
    image = axes.imshow(shares, cmap="magma_r", norm=PowerNorm(1 / 3, vmin=0, vmax=100), interpolation="nearest")
    bar = figure.colorbar(image, ax=axes, shrink=0.8, label="share of the true class's images (%)")
    bar.set_ticks([0, 1, 5, 10, 25, 50, 100])
    if names:
        axes.set_xticks(range(count), names, rotation=90, fontsize=8, parse_math=False)
        axes.set_yticks(range(count), names, fontsize=8, parse_math=False)
        axes.set(xlabel="predicted class", ylabel="true class")
    else:
        axes.set(xlabel="number of the predicted class", ylabel="number of the true class, from 0")
    if count <= _MOST_NUMBERS:
        for (row, column), number in np.ndenumerate(matrix):
            if number:
                colour = "white" if shares[row, column] > 20 else "black"
                axes.text(column, row, str(number), ha="center", va="center", fontsize=7, color=colour)
    return figure


def _short(name: str) -> str:
    """A name of at most 30 characters that can be drawn: what is not text, such as a line feed, is written out."""
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)
    return text if len(text) <= _LONGEST_NAME else f"{text[: _LONGEST_NAME - 1]}…"

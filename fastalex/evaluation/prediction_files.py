"""Predictions and per-class errors as tables and as CSV or NumPy files."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from fastalex.datasets import AnyDataset, open_prepared
from fastalex.evaluation.ensemble import Evaluation, EvaluationResult, Predictions
from fastalex.files import write_atomically
from fastalex.metrics import Metrics, has_top5


@dataclass(frozen=True)
class ClassErrors:
    """Errors on the images of one class.

    Args:
        name, words: of the class.
        images: their number.
        top1_error, top5_error: error rates in percent.
        confused_with: the wrong class that is predicted most often; empty if no prediction is wrong.
        confusions: how often it is predicted.
    """

    name: str
    words: str
    images: int
    top1_error: float
    top5_error: float
    confused_with: str
    confusions: int


def errors_by_class(predictions: Predictions, dataset: AnyDataset) -> list[ClassErrors]:
    """One entry per class that has images, in the order of the data set."""
    labels, top_classes = predictions.labels.numpy(), predictions.top_classes[:, 0].numpy()
    top1, top5 = predictions.top1_misses.numpy(), predictions.top5_misses.numpy()
    order = np.argsort(labels, kind="stable")
    result = []
    for label, rows in enumerate(np.split(order, np.searchsorted(labels[order], range(1, len(dataset.classes))))):
        if not len(rows):
            continue
        wrong = top_classes[rows][top_classes[rows] != label]
        classes, counts = np.unique(wrong, return_counts=True)
        most = counts.argmax() if len(counts) else None
        result.append(
            ClassErrors(
                dataset.classes[label],
                dataset.words[label] if dataset.words else "",
                len(rows),
                100 * float(top1[rows].mean()),
                100 * float(top5[rows].mean()),
                "" if most is None else dataset.classes[classes[most]],
                0 if most is None else int(counts[most]),
            )
        )
    return result


def worst_classes_table(errors: Sequence[ClassErrors], count: int, classes: int) -> Table:
    """The ``count`` classes with the highest top-1 error; of equal errors, the class with more images comes first.

    Args:
        classes: number of classes of the data set.
    """
    worst = sorted(errors, key=lambda entry: (-entry.top1_error, -entry.images))[:count]
    has_words = any(entry.words for entry in worst)
    table = Table(title=f"worst {len(worst)} of {len(errors)} classes", title_justify="left")
    for name in ("class", *(("words",) if has_words else ())):
        table.add_column(name, overflow="fold")
    top5 = ("top-5 error",) if has_top5(classes) else ()
    for name in ("images", "top-1 error", *top5):
        table.add_column(name, justify="right")
    table.add_column("most often confused with", overflow="fold")
    for entry in worst:
        confused_with = f"{entry.confused_with} ({entry.confusions})" if entry.confusions else ""
        shown = (f"{entry.top1_error:.1f} %", f"{entry.top5_error:.1f} %")[: 1 + len(top5)]
        table.add_row(entry.name, *((entry.words,) if has_words else ()), str(entry.images), *shown, confused_with)
    return table


def write_class_errors(path: Path, errors: Sequence[ClassErrors]) -> None:
    """Write the errors of all classes as CSV."""
    header = ("class", "words", "images", "top1_error", "top5_error", "most_often_taken_for", "times")
    rows = [
        (e.name, e.words, e.images, f"{e.top1_error:.4f}", f"{e.top5_error:.4f}", e.confused_with, e.confusions)
        for e in errors
    ]
    write_atomically(path, as_csv([header, *rows]))


def write_errors(path: Path, evaluation: Evaluation, result: EvaluationResult) -> None:
    """Write loss (nats) and error rates (percent) as JSON: of the ensemble, and of each network alone.

    A loss that is not finite becomes null.

    Raises:
        OSError: it cannot be written.
    """
    dataset = open_prepared(evaluation.data)
    networks = [
        {"weights": str(network.weights), "coefficient": coefficient} | _errors(Metrics.from_counts(counts))
        for network, coefficient, counts in zip(
            evaluation.networks, result.coefficients, result.predictions.network_counts.unbind(0), strict=True
        )
    ]
    about = {"data": dataset.name, "fingerprint": dataset.fingerprint, "classes": len(dataset.classes)}
    about |= {"split": evaluation.split, "views": evaluation.views, "seconds": round(result.seconds, 2)}
    content = about | _errors(result.predictions.metrics) | {"networks": networks}
    write_atomically(path, json.dumps(content, indent=1) + "\n")


def _errors(metrics: Metrics) -> dict[str, Any]:
    loss = metrics.loss if math.isfinite(metrics.loss) else None
    about = {"loss": loss, "top1_error": metrics.top1_error, "top5_error": metrics.top5_error}
    return about | {"images": metrics.images}


def write_predictions(path: Path, predictions: Predictions, dataset: AnyDataset, split: str) -> None:
    """Write each image's name, class and most probable classes as CSV, or as ``.npz`` if ``path`` ends so.

    The columns of the CSV are ``sample`` (in the prepared data set), ``file`` (in its source), ``class``, ``class_1``,
    ``probability_1``, ... The arrays are ``samples``, ``files``, ``labels`` (N), ``classes`` (all names),
    ``top_classes`` and ``top_probabilities`` (N x 5).
    """
    samples = [dataset.key(split, row) for row in range(len(predictions.labels))]
    files = [dataset.source(split, row) for row in range(len(predictions.labels))]
    if path.suffix == ".npz":
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer,
            samples=np.array(samples),
            files=np.array(files),
            classes=np.array(dataset.classes),
            labels=predictions.labels.numpy(),
            top_classes=predictions.top_classes.numpy(),
            top_probabilities=predictions.top_probabilities.numpy(),
        )
        write_atomically(path, buffer.getvalue())
    else:
        write_atomically(path, as_csv(list(_prediction_rows(predictions, dataset, samples, files))))


def _prediction_rows(
    predictions: Predictions, dataset: AnyDataset, samples: Sequence[str], files: Sequence[str]
) -> Iterator[Sequence[object]]:
    """The header, then one row per image."""
    ranks = range(1, predictions.top_classes.shape[1] + 1)
    yield ("sample", "file", "class", *(f"{name}_{rank}" for rank in ranks for name in ("class", "probability")))
    labels, top_classes = predictions.labels.tolist(), predictions.top_classes.tolist()
    columns = (samples, files, labels, top_classes, predictions.top_probabilities.tolist())
    for sample, file, label, classes, probabilities in zip(*columns, strict=True):
        pairs = zip(classes, probabilities, strict=True)
        texts = (text for predicted, p in pairs for text in (dataset.classes[predicted], f"{p:.6g}"))
        yield (sample, file, dataset.classes[label], *texts)


def as_csv(rows: Sequence[Sequence[object]]) -> bytes:
    """The content of a CSV file. Names that are not valid UTF-8 keep their bytes."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode("utf-8", "surrogateescape")

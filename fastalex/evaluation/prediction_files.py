"""Files and tables of what networks said about images: predictions, and errors by class."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.table import Table

from fastalex.datasets import AnyDataset
from fastalex.evaluation.ensemble import Predictions
from fastalex.files import write_atomically


@dataclass(frozen=True)
class ClassErrors:
    """How one class fared: error rates in percent, and what its images were most often taken for instead."""

    name: str
    words: str
    images: int
    top1_error: float
    top5_error: float
    taken_for: str
    times: int


def errors_by_class(predictions: Predictions, dataset: AnyDataset) -> list[ClassErrors]:
    """One entry for each class that has images, in the data set's order."""
    labels, guesses = predictions.labels.numpy(), predictions.top_classes[:, 0].numpy()
    top1, top5 = predictions.top1_misses.numpy(), predictions.top5_misses.numpy()
    order = np.argsort(labels, kind="stable")
    found = []
    for label, rows in enumerate(np.split(order, np.searchsorted(labels[order], range(1, len(dataset.classes))))):
        if not len(rows):
            continue
        wrong = guesses[rows][guesses[rows] != label]
        others, times = np.unique(wrong, return_counts=True)
        most = times.argmax() if len(times) else None
        found.append(
            ClassErrors(
                dataset.classes[label],
                dataset.words[label] if dataset.words else "",
                len(rows),
                100 * float(top1[rows].mean()),
                100 * float(top5[rows].mean()),
                "" if most is None else dataset.classes[others[most]],
                0 if most is None else int(times[most]),
            )
        )
    return found


def worst_classes_table(errors: Sequence[ClassErrors], count: int) -> Table:
    """The classes with the highest top-1 error; among equals, those with more images."""
    worst = sorted(errors, key=lambda entry: (-entry.top1_error, -entry.images))[:count]
    described = any(entry.words for entry in worst)
    table = Table(title=f"{len(worst)} of {len(errors)} classes, worst first", title_justify="left")
    for name in ("class", *(("words",) if described else ())):
        table.add_column(name, overflow="fold")
    for name in ("images", "top-1 error", "top-5 error"):
        table.add_column(name, justify="right")
    table.add_column("most often taken for", overflow="fold")
    for entry in worst:
        taken_for = f"{entry.taken_for} ({entry.times})" if entry.times else ""
        texts = (str(entry.images), f"{entry.top1_error:.1f} %", f"{entry.top5_error:.1f} %", taken_for)
        table.add_row(entry.name, *((entry.words,) if described else ()), *texts)
    return table


def write_class_errors(path: Path, errors: Sequence[ClassErrors]) -> None:
    """All classes as CSV."""
    rows = [
        (e.name, e.words, e.images, f"{e.top1_error:.4f}", f"{e.top5_error:.4f}", e.taken_for, e.times) for e in errors
    ]
    header = ("class", "words", "images", "top1_error", "top5_error", "most_often_taken_for", "times")
    write_atomically(path, _csv([header, *rows]))


def write_predictions(path: Path, predictions: Predictions, dataset: AnyDataset, split: str) -> None:
    """Each image's name, class and most probable classes: CSV, or NumPy's ``.npz`` by the name's ending.

    The columns of the CSV are ``sample`` (in the prepared data set), ``file`` (in its source), ``class``, ``class_1``,
    ``probability_1``, ... The arrays are ``samples``, ``files``, ``labels`` (N), ``classes`` (all names),
    ``top_classes`` and ``top_probabilities`` (N x 5).
    """
    names = [dataset.key(split, sample) for sample in range(len(predictions.labels))]
    files = [dataset.source(split, sample) for sample in range(len(predictions.labels))]
    if path.suffix == ".npz":
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer,
            samples=np.array(names),
            files=np.array(files),
            classes=np.array(dataset.classes),
            labels=predictions.labels.numpy(),
            top_classes=predictions.top_classes.numpy(),
            top_probabilities=predictions.top_probabilities.numpy(),
        )
        write_atomically(path, buffer.getvalue())
        return
    ranks = range(1, predictions.top_classes.shape[1] + 1)
    rows: list[Sequence[object]] = [
        ("sample", "file", "class", *(f"{name}_{rank}" for rank in ranks for name in ("class", "probability")))
    ]
    table = zip(
        names,
        files,
        predictions.labels.tolist(),
        predictions.top_classes.tolist(),
        predictions.top_probabilities.tolist(),
        strict=True,
    )
    for name, file, label, guesses, probabilities in table:
        pairs = zip(guesses, probabilities, strict=True)
        answers = (text for guess, p in pairs for text in (dataset.classes[guess], f"{p:.6g}"))
        rows.append((name, file, dataset.classes[label], *answers))
    write_atomically(path, _csv(rows))


def _csv(rows: Sequence[Sequence[object]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode("utf-8", "surrogateescape")

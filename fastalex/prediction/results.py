"""Predictions as lines of a table, as JSON and as CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from fastalex.prediction.trained import Prediction

Results = Mapping[Path, Prediction]


def as_lines(results: Results) -> list[str]:
    """One line per image, in columns: its name, and each class with its probability."""
    rows = [
        [
            str(path),
            *(f"{p:6.1%} {name}" for name, p in zip(prediction.names, prediction.probabilities, strict=True)),
        ]
        for path, prediction in results.items()
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def as_json(results: Results, weights: Sequence[Path]) -> str:
    """A JSON object: ``weights``, and for each of ``images`` its ``file`` and ``predictions``."""
    images = [
        {
            "file": str(path),
            "predictions": [
                {"class": label, "name": name, "index": index, "probability": probability}
                for label, name, index, probability in zip(
                    prediction.classes, prediction.names, prediction.indices, prediction.probabilities, strict=True
                )
            ],
        }
        for path, prediction in results.items()
    ]
    return json.dumps({"weights": [str(path) for path in weights], "images": images}, indent=1) + "\n"


def as_csv(results: Results) -> str:
    """Columns ``file``, ``class_1``, ``probability_1``, ...: as an evaluation writes them, without the labels."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    ranks = range(1, 1 + max(len(prediction.classes) for prediction in results.values()))
    table.writerow(("file", *(f"{name}_{rank}" for rank in ranks for name in ("class", "probability"))))
    for path, prediction in results.items():
        pairs = zip(prediction.classes, prediction.probabilities, strict=True)
        table.writerow((str(path), *(cell for name, p in pairs for cell in (name, f"{p:.6g}"))))
    return text.getvalue()

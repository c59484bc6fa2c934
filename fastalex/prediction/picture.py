"""Images with their five most probable classes as bars, as in the paper's figure 4."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from pathlib import Path

from fastalex.prediction.preprocessing import Preprocessing
from fastalex.prediction.trained import Prediction

_COLUMNS = 4
MOST_IMAGES = 64
"""Images that a picture can hold."""


def draw_predictions(results: Mapping[Path, Prediction], preprocess: Preprocessing) -> bytes:
    """A PNG file: each image as the network sees it, with the bars of its classes below.

    Args:
        results: at most :data:`MOST_IMAGES` images.
    """
    from matplotlib.figure import Figure  # takes half a second, and most predictions are not drawn

    columns = min(_COLUMNS, len(results))
    rows = math.ceil(len(results) / columns)
    figure = Figure(figsize=(3.2 * columns, 4.4 * rows), layout="constrained")
    axes = figure.subplots(2 * rows, columns, squeeze=False, height_ratios=[3, 1.4] * rows)
    for axis in axes.flat:
        axis.axis("off")
    for number, (path, prediction) in enumerate(results.items()):
        row, column = divmod(number, columns)
        image, bars = axes[2 * row, column], axes[2 * row + 1, column]
        size, margin = preprocess.record.crop_size, preprocess.record.stored_size - preprocess.record.crop_size
        first = margin // 2
        image.imshow(preprocess.stored(path)[first : first + size, first : first + size])
        image.set_title(path.name if len(path.name) <= 32 else f"{path.name[:29]}...", fontsize=9, parse_math=False)
        places = range(len(prediction.classes))
        bars.barh(places, prediction.probabilities, color="#e8a0a0", height=0.8)
        for place, name in zip(places, prediction.names, strict=True):
            bars.text(0.01, place, name, va="center", fontsize=9, parse_math=False, clip_on=True)
        bars.set(xlim=(0, 1), ylim=(len(prediction.classes) - 0.4, -0.6))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()

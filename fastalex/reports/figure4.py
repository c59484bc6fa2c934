"""The paper's figure 4 as a picture: images with their most probable classes, and those nearest to some of them."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

from PIL import Image

from fastalex.files import write_atomically
from fastalex.reports.results import Example, Results, Retrieval, ShownImage
from fastalex.training.metrics_log import save_figure, without_backend

COLUMNS, ROWS = 4, 2
"""Images of the left panel, as in the paper."""

_LONGEST_NAME = 24  # characters
_TRUE, _FALSE = "#e57373", "#a9c7e8"  # bars of the true class and of others


def write_figure4(results: Results, path: Path) -> None:
    """Write the figure as PNG to ``path``, and beside it as SVG and as JSON.

    Left: eight images as they are evaluated, the true class below, and the five most probable classes as bars. Right:
    five images in the first column, and in each row the six training images nearest to it in the last hidden layer.

    Raises:
        OSError: a file cannot be written.
    """
    figure = _draw(results)
    save_figure(figure, path)
    save_figure(figure, path.with_suffix(".svg"))
    write_atomically(path.with_suffix(".json"), json.dumps(_record(results), indent=1) + "\n")


def _draw(results: Results) -> Any:
    with without_backend():
        from matplotlib.figure import Figure  # a slow import, which only pictures need

    with_neighbours = bool(results.retrievals)
    figure = Figure(figsize=(15 if with_neighbours else 7.5, 6.2), layout="constrained")
    panels: Any = figure.subfigures(1, 2) if with_neighbours else [figure]
    axes = panels[0].subplots(2 * ROWS, COLUMNS, squeeze=False, height_ratios=[3, 2] * ROWS)
    for axis in axes.flat:
        axis.axis("off")
    for number, example in enumerate(results.examples[: ROWS * COLUMNS]):
        row, column = divmod(number, COLUMNS)
        _draw_example(axes[2 * row, column], axes[2 * row + 1, column], example)
    if with_neighbours:
        most = max(len(retrieval.neighbours) for retrieval in results.retrievals)
        grid = panels[1].subplots(len(results.retrievals), most + 1, squeeze=False)
        for places, retrieval in zip(grid, results.retrievals, strict=True):
            images = [retrieval.image, *(neighbour.image for neighbour in retrieval.neighbours)]
            for axis in places:
                axis.axis("off")
            for axis, image in zip(places, images, strict=False):
                axis.imshow(_pixels(image))
                axis.set_title(_short(image.label), fontsize=7, parse_math=False)
        panels[1].suptitle(f"nearest training images in {results.hidden_layer}", fontsize=10)
    return figure


def _draw_example(image: Any, bars: Any, example: Example) -> None:
    image.imshow(_pixels(example.image))
    bars.set_title(_short(example.image.label), fontsize=9, fontweight="bold", parse_math=False)
    places = range(len(example.guesses))
    colours = [_TRUE if guess.is_true else _FALSE for guess in example.guesses]
    bars.barh(places, [guess.percent for guess in example.guesses], color=colours, height=0.85)
    for place, guess in zip(places, example.guesses, strict=True):
        bars.text(1, place, _short(guess.name), va="center", fontsize=8, parse_math=False, clip_on=True)
    bars.set(xlim=(0, 100), ylim=(len(example.guesses) - 0.4, -0.6))


def _pixels(image: ShownImage) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(image.uri.partition(",")[2])))


def _short(name: str) -> str:
    """A name that fits; what is not text, such as a line feed, is written out."""
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)
    return text if len(text) <= _LONGEST_NAME else f"{text[: _LONGEST_NAME - 1]}…"


def _record(results: Results) -> dict[str, Any]:
    """What the figure shows, without the images."""

    def retrieval(found: Retrieval) -> dict[str, Any]:
        neighbours = [
            {"file": near.image.file, "class": near.image.label, "distance": near.distance} for near in found.neighbours
        ]
        return {"file": found.image.file, "class": found.image.label, "neighbours": neighbours}

    return {
        "images": [
            {
                "file": example.image.file,
                "class": example.image.label,
                "predictions": [{"class": guess.name, "percent": guess.percent} for guess in example.guesses],
            }
            for example in results.examples
        ],
        "layer": results.hidden_layer,
        "searched": results.searched,
        "training_images": results.training_images,
        "neighbours": [retrieval(found) for found in results.retrievals],
    }

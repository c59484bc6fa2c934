"""The options of ``python -m fastalex.show``, and what it does: a picture of a network's first kernels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from fastalex.cli import optional
from fastalex.console import console
from fastalex.files import check_new_file
from fastalex.network.weights import find_weights, load_first_layer
from fastalex.pictures import kernel_picture, write_png


@dataclass(frozen=True)
class ShowOptions:
    """Draw the kernels of a network's first convolution, as in Figure 3 of the paper.

    The kernels are in order, 16 to a row, and a wider gap separates the two towers of the networks that have them. Each
    kernel has a scale of its own, on which a weight of 0 is mid-grey.
    """

    run: Annotated[Positional[Path], arg(metavar="RUN")]
    """A run folder, or a .safetensors file of weights."""
    output: Annotated[Path | None, optional("FILE.png", "-o")] = None
    """The picture to write. Default: the layer's name, conv1.png."""
    weights: Literal["best", "last"] = "best"
    """Which weights of a run to use."""
    force: bool = False
    """Replace an existing file."""


def draw_and_report(options: ShowOptions) -> None:
    """Draw the kernels, and print what was written.

    Raises:
        ConfigurationError: there are no such weights, they cannot be drawn, or the file cannot be written.
        OSError: writing fails.
    """
    weights = find_weights(options.run, options.weights)
    layer = load_first_layer(weights)
    output = options.output or Path(f"{layer.name}.png")
    check_new_file(output, (".png",), overwrite=options.force, remedy="add --force")
    write_png(kernel_picture(layer.weights, layer.towers), output)
    count, channels, height, width = layer.weights.shape
    towers = f", {layer.towers} towers" if layer.towers > 1 else ""
    console().print(f"{count} kernels of {height} x {width} x {channels} ({layer.name} of {weights}{towers}): {output}")

"""The options of ``python -m fastalex.show``, and what it does: a picture of a network's first kernels."""

from __future__ import annotations

from fastalex.console import console
from fastalex.files import check_new_file
from fastalex.network.weights import find_weights, load_first_layer
from fastalex.options.show import ShowOptions
from fastalex.pictures import kernel_picture, write_png


def draw_and_report(options: ShowOptions) -> None:
    """Draw the kernels, and print what was written.

    Raises:
        ConfigurationError: there are no such weights, they cannot be drawn, or the file cannot be written.
        OSError: writing fails.
    """
    weights = find_weights(options.run, options.weights)
    layer = load_first_layer(weights)
    output = options.output or weights.with_name(f"{layer.name}-{weights.stem}.png")
    check_new_file(output, (".png",), overwrite=options.force, remedy="add --force")
    write_png(kernel_picture(layer.weights, layer.towers), output)
    count, channels, height, width = layer.weights.shape
    towers = f", {layer.towers} towers" if layer.towers > 1 else ""
    console().print(f"{count} kernels of {height} x {width} x {channels} ({layer.name} of {weights}{towers}): {output}")

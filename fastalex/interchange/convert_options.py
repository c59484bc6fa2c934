"""The options of ``python -m fastalex.convert``, and its report."""

from __future__ import annotations

from pathlib import Path

from dataloading.process import command
from fastalex.console import console, print_rows
from fastalex.errors import ConfigurationError
from fastalex.files import check_new_file
from fastalex.interchange.conversion import Conversion, MissingMean, convert
from fastalex.network.means import mean_colour
from fastalex.options.convert import ConvertOptions


def convert_and_report(options: ConvertOptions) -> None:
    """Convert, and print what was made.

    Raises:
        ConfigurationError: the file cannot be converted, or the new one cannot be written.
    """
    if options.output.exists() and options.file.exists() and options.output.samefile(options.file):
        raise ConfigurationError(f"{options.output} is the file to convert; choose another name for the new one")
    # Before hundreds of megabytes are read.
    check_new_file(options.output, (".safetensors",), overwrite=options.force, remedy="add --force")
    try:
        made = convert(
            options.file,
            options.output,
            mean=options.mean,
            classes=options.classes,
            channels=options.channels,
            overwrite=options.force,
        )
    except MissingMean as error:
        raise ConfigurationError(
            f"{error}; give Caffe's mean.binaryproto or ilsvrc_2012_mean.npy with --mean FILE, or the mean colour with "
            "--mean 123,117,104"
        ) from None
    print_rows(console(), _rows(made, options.output))


def _rows(made: Conversion, output: Path) -> dict[str, str]:
    network, record = made.network, made.record
    size = record.stored_size
    colour = ", ".join(f"{value:.4g}" for value in mean_colour(record.mean))
    kind = "colour" if record.mean.ndim == 1 else f"image of {size} x {size} pixels, on average"
    resized = "both sides become" if record.resize == "squash" else "the shorter side becomes"
    if network.classes:
        classes = f"{network.num_classes}, from {network.classes[0]} to {network.classes[-1]}"
    else:
        classes = f"{network.num_classes}, without names (--classes FILE gives them)"
    order = {"bgr": "blue, green, red in the file, now red, green, blue", "rgb": "red, green, blue"}
    rows = {
        "weights": f"{output}, from {made.source}",
        "network": network.summary(),
        "classes": classes,
        "colours": order[made.channels],
        "mean": f"{kind} {colour} (red, green, blue)",
        "images": f"{resized} {size} pixels, the network sees {record.crop_size} x {record.crop_size} of them",
    }
    if made.note:
        rows["note"] = made.note
    rows["evaluate"] = command("fastalex.evaluate", output, "DATA")
    rows["predict"] = command("fastalex.predict", output, "IMAGES")
    return rows

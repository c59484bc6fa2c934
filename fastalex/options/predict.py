"""The options of ``python -m fastalex.predict``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from dataloading.command_line import optional


@dataclass(frozen=True)
class PredictOptions:
    """The most probable classes of images that have no labels, by one network or by the mean of several.

    Files that cannot be used are named, the others are predicted, and the exit code is 2.
    """

    paths: Annotated[
        Positional[tuple[Path, ...]], arg(metavar="WEIGHTS [WEIGHTS ...] IMAGES [IMAGES ...]", help_behavior_hint="")
    ]
    """Run folders or .safetensors files; several form an ensemble, which averages softmax outputs. Then images of
    any size, folders of images, which are read in natural order with their subfolders, and text files (.txt) that list
    images, one per line."""
    top: int = 5
    """Classes per image."""
    crops: Literal[1, 10] = 1
    """1: the centre crop. 10: four corners and the centre, each also mirrored; softmax outputs are averaged."""
    json: Annotated[Path | None, optional("FILE.json")] = None
    """Write the predictions to this file; - prints them instead of the table."""
    csv: Annotated[Path | None, optional("FILE.csv")] = None
    """Write the predictions to this file; - prints them instead of the table."""
    picture: Annotated[Path | None, optional("FILE.png")] = None
    """Draw the images with their classes, as in the paper's figure 4."""
    mean: Annotated[str | None, optional("FILE|R,G,B")] = None
    """The mean of networks whose files do not hold it, as those of early versions: a .npy file (S x S x 3 is red,
    green, blue; 3 x S x S is Caffe's blue, green, red), Caffe's mean.binaryproto, weights that record it, or a
    colour."""
    exif: bool = False
    """Turn images by their EXIF orientation. Training images are not turned, unless they were prepared so."""
    background: Annotated[str | None, optional("R,G,B")] = None
    """The colour, 0 to 255, that transparent images are laid on. Default: the colours under the transparency."""
    force: bool = False
    """Replace existing files."""
    device: Annotated[str | None, optional("DEVICE")] = None
    """Where to compute: "0" or "cpu". Default: the first GPU if there is one, else the CPU."""
    batch_size: Annotated[int, arg(aliases=("-b",))] = 64
    """Images that are computed at a time."""

"""Pictures of tensors. Knows neither networks nor runs, so that training and evaluation can both draw."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from dataloading.files import write_atomically
from fastalex.errors import ConfigurationError

KERNELS_PER_ROW = 16
_KERNEL_SIDE = 64  # a kernel is enlarged by the whole number that brings it nearest to this many pixels
_GAP = 4  # pixels between kernels and around the picture
_TOWER_GAP = 24  # pixels between towers


def kernel_picture(weights: Tensor, towers: int = 1) -> Image.Image:
    """The kernels of a first convolution as a grid, as in Figure 3 of the paper.

    The kernels are in order, 16 to a row. Each tower begins a new row, below a wider gap: with the 96 kernels and two
    towers of 2012, kernels 1 to 48 (GPU 1) are above kernels 49 to 96 (GPU 2). Each weight is one square of pixels,
    its red, green and blue those of the image it multiplies, and each kernel has a scale of its own:

        value = 127.5 + 127.5 * w / max |w|, rounded

    So a weight of 0 is mid-grey (128), and weak kernels show as clearly as strong ones. The program of 2012
    (``shownet.py``) puts all kernels on one scale from the smallest weight to the largest instead.

    Args:
        weights: K x 3 x S x S, of any floating-point type.
        towers: number of equal groups of consecutive kernels; divides K.

    Returns:
        An RGB picture on white.

    Raises:
        ConfigurationError: a weight is not finite.
        ValueError: the shape is another one, or the towers do not divide the kernels.
    """
    if weights.ndim != 4 or weights.shape[1] != 3 or weights.shape[2] != weights.shape[3] or not weights.numel():
        raise ValueError(f"weights must be K x 3 x S x S, got {' x '.join(map(str, weights.shape))}")
    if towers < 1 or len(weights) % towers:
        raise ValueError(f"towers must divide the {len(weights)} kernels, got {towers}")
    kernels = _as_pixels(weights)
    # Every kernel has a cell, which ends with a gap. Towers have rows of their own.
    size = kernels.shape[1]
    per_tower = len(kernels) // towers
    columns = min(KERNELS_PER_ROW, per_tower)
    rows = math.ceil(per_tower / columns)
    cell = size + _GAP
    height = towers * rows * cell + _GAP + (towers - 1) * (_TOWER_GAP - _GAP)
    canvas = np.full((height, columns * cell + _GAP, 3), 255, dtype=np.uint8)
    for index, pixels in enumerate(kernels):
        tower, place = divmod(index, per_tower)
        row, column = divmod(place, columns)
        top = _GAP + (tower * rows + row) * cell + tower * (_TOWER_GAP - _GAP)
        left = _GAP + column * cell
        canvas[top : top + size, left : left + size] = pixels
    return Image.fromarray(canvas)


def _as_pixels(weights: Tensor) -> NDArray[np.uint8]:
    """The kernels, scaled one by one and enlarged: K x height x width x 3."""
    values = weights.detach().double().cpu().permute(0, 2, 3, 1).numpy()  # numpy has no bf16
    if not np.isfinite(values).all():
        raise ConfigurationError("the kernels cannot be drawn: some of their weights are infinite or NaN")
    largest = np.abs(values).max(axis=(1, 2, 3), keepdims=True)
    scaled = np.divide(values, largest, out=np.zeros_like(values), where=largest > 0)
    pixels = np.rint(127.5 + 127.5 * scaled).astype(np.uint8)
    zoom = max(1, round(_KERNEL_SIDE / pixels.shape[1]))
    return pixels.repeat(zoom, axis=1).repeat(zoom, axis=2)


def write_png(picture: Image.Image, path: Path) -> None:
    """Write a picture as PNG, whole or not at all, over an existing file.

    Raises:
        OSError: it cannot be written; the error names it.
    """
    content = io.BytesIO()
    picture.save(content, format="png", optimize=True)
    write_atomically(path, content.getvalue())

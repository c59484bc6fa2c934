"""Hand-crafted image descriptors: dense SIFT, and histograms of oriented gradients (HOG).

Both use OpenCV (the extra ``baseline``), which is imported on first use.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataloading.process import command
from fastalex.errors import ConfigurationError
from fastalex.optional_packages import require

PATCH, STEP, SCALES = 24, 6, 5
"""Side of a SIFT patch and distance between patches, in pixels; number of scales, each 1/sqrt(2) of the one before."""

SIFT_LENGTH = 128

_HOG_SIDE, _CELL = 256, 16

HOG_LENGTH = (_HOG_SIDE // _CELL - 1) ** 2 * 4 * 9
"""15 x 15 blocks of 2 x 2 cells with 9 orientations each."""


def opencv() -> Any:
    """The module ``cv2``.

    Raises:
        ConfigurationError: OpenCV is not installed, or its version lacks HOG.
    """
    cv2 = require("cv2", "baseline")
    if not hasattr(cv2, "HOGDescriptor"):
        raise ConfigurationError(
            f"OpenCV {cv2.__version__} has no HOG, but version 4 does; install it with: "
            f"{command('pip', 'install', 'opencv-python-headless<5')}"
        )
    return cv2


def dense_sift(grey: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Upright SIFT descriptors [Lowe 2004] on a regular grid, as in Sanchez and Perronnin (CVPR 2011).

    Args:
        grey: H x W, at least 24 x 24.

    Returns:
        Descriptors, T x 128, of norm about 1 (0 for a patch without contrast), and the vertical position of each
        patch's centre, T values from 0 (top) to 1. T is 2,767 for 256 x 256 pixels.
    """
    cv2 = opencv()
    # Smoothed by a sixth of a bin, as in VLFeat. OpenCV's default smoothing is meant for detected key points.
    sift = cv2.SIFT_create(nOctaveLayers=1, sigma=1.0)
    descriptors, heights = [], []
    for scaled in _scales(grey):
        grid, rows = _grid(*scaled.shape)
        descriptors.append(sift.compute(scaled, grid)[1] / np.float32(512))  # OpenCV scales descriptors by 512
        heights.append(rows)
    return np.concatenate(descriptors), np.concatenate(heights)


def hog(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Histograms of oriented gradients [Dalal and Triggs 2005]: 8,100 values, of norm 1.

    Args:
        image: H x W x 3; resized to 256 x 256. Cells have 16 x 16 pixels, blocks 2 x 2 cells.
    """
    cv2 = opencv()
    if image.shape[:2] != (_HOG_SIDE, _HOG_SIDE):
        image = cv2.resize(image, (_HOG_SIDE, _HOG_SIDE), interpolation=cv2.INTER_AREA)
    window, block, cell = (_HOG_SIDE, _HOG_SIDE), (2 * _CELL, 2 * _CELL), (_CELL, _CELL)
    values: NDArray[np.float32] = cv2.HOGDescriptor(window, block, cell, cell, 9).compute(image).ravel()
    return values / max(float(np.linalg.norm(values)), 1e-12)


def _scales(grey: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    """The image at every scale that is at least one patch large."""
    cv2 = opencv()
    for index in range(SCALES):
        height, width = (round(side * 0.5 ** (index / 2)) for side in grey.shape)
        if min(height, width) >= PATCH:
            yield grey if index == 0 else cv2.resize(grey, (width, height), interpolation=cv2.INTER_AREA)


@functools.lru_cache(maxsize=64)
def _grid(height: int, width: int) -> tuple[list[Any], NDArray[np.float32]]:
    """OpenCV key points every 6 pixels, and the vertical position of their centres, from 0 to 1."""
    rows, columns = (np.arange(PATCH / 2, side - PATCH / 2 + 1, STEP) for side in (height, width))
    # A bin is 3/2 of a key point's size: a patch of 24 pixels has 4 bins of 6 pixels.
    points = [opencv().KeyPoint(x, y, PATCH / 4 * 2 / 3, 0) for y in rows.tolist() for x in columns.tolist()]
    return points, np.repeat(rows / height, len(columns)).astype(np.float32)

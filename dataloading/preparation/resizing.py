"""Resize images as OpenCV does, which Krizhevsky's own preparation tool used.

To shrink an image, each pixel becomes the mean of the area of the source that it covers, with the fractions of pixels
at the border of that area (``INTER_AREA``). To enlarge it, pixels are interpolated from 4 x 4 of the source
(``INTER_CUBIC``). Pillow has neither: its BOX counts a pixel at the border of an area as a whole or not at all, and its
BICUBIC is a softer cubic.

All sums are of integers, and every pixel is rounded once, so the result is the same on every machine.
"""

import functools
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Size = tuple[int, int]  # width, height
Box = tuple[int, int, int, int]  # left, top, right, bottom

_COPIED = 2**24  # bytes of the source that are copied out of Pillow's image at a time
_SUMMED = 2**17  # bytes of the source that are summed at a time, which stay in the processor's cache
_ONE = 2048  # cubic weights are multiples of 1 / 2048, as in OpenCV: then sums over both axes fit into 32 bits


class _Axis(NamedTuple):
    """How pixels along one axis of the result follow from those of the source, in order.

    Pixel m is the sum over k of ``weights[m, k] / total * source[positions[m, k]]``.
    """

    positions: NDArray[np.int64]  # M x K
    weights: NDArray[np.int32]  # M x K
    total: int

    def part(self, first: int, last: int) -> tuple["_Axis", int, int]:
        """Return the pixels `first` to `last` - 1 of the result, and the range of the source that they need.

        Positions in the part count from the beginning of that range.
        """
        positions = self.positions[first:last]
        begin, end = int(positions[0, 0]), int(positions[-1, -1]) + 1
        return _Axis(positions - begin, self.weights[first:last], self.total), begin, end


def resize(image: Image.Image, size: Size, box: Box) -> NDArray[np.uint8]:
    """Return the part of a resized image that lies in a box.

    Along an axis on which n pixels become m <= n, pixel j is the mean of the source from j n / m to (j + 1) n / m. If
    m > n, it is the value of Keys' cubic interpolation (a = -0.75) at (j + 1/2) n / m; the pixels at the border go on
    beyond it. Results are rounded to the nearest integer, halves up, and limited to 0-255.

    Args:
        image: in mode RGB.
        size: width and height of the whole result.
        box: left, top, right and bottom of the part to return. The rest is not computed.

    Returns:
        uint8, height x width x 3.
    """
    left, top, right, bottom = box
    if image.size == size:
        return np.asarray(image.crop(box))
    columns, first, last = _axis(image.width, size[0]).part(left, right)
    rows = _axis(image.height, size[1])
    result = np.empty((bottom - top, right - left, 3), dtype=np.uint8)
    at_once = _rows_at_once(rows, last - first, _COPIED)
    for begin in range(top, bottom, at_once):
        end = min(begin + at_once, bottom)
        band, upper, lower = rows.part(begin, end)
        pixels = np.asarray(image.crop((first, upper, last, lower)))
        _resize_band(pixels, band, columns, result[begin - top : end - top])
    return result


def _rows_at_once(rows: _Axis, width: int, limit: int) -> int:
    """Return how many rows of the result to make at once, from about `limit` bytes of a source `width` pixels wide."""
    return max(8, limit // (rows.weights.shape[1] * width * 3))


def _resize_band(pixels: NDArray[np.uint8], rows: _Axis, columns: _Axis, result: NDArray[np.uint8]) -> None:
    """Write rows x columns x 3 pixels of the result, from the `pixels` of the source that they need."""
    height, width, _ = pixels.shape
    lines = pixels.reshape(height, -1)
    total = rows.total * columns.total
    # The absolute values of cubic weights add up to less than 1.4 on each axis, and 1.4 x 1.4 < 2.
    dtype = np.int32 if 2 * 255 * total < 2**31 else np.int64
    is_cubic = bool(rows.weights.min() < 0 or columns.weights.min() < 0)
    at_once = _rows_at_once(rows, width, _SUMMED)
    for begin in range(0, len(result), at_once):
        here = slice(begin, begin + at_once)
        down = _weighted_sums(lines, rows.positions[here], rows.weights[here], np.int32)
        # The other axis is summed as the first one, which is fast: rows x width x 3 becomes width x 3 x rows.
        across = np.ascontiguousarray(down.T).reshape(width, -1)
        sums = _weighted_sums(across, columns.positions, columns.weights, dtype)
        sums += total // 2
        sums //= total
        if is_cubic:  # the mean of an area needs no limits
            np.clip(sums, 0, 255, out=sums)
        result[here] = sums.astype(np.uint8).reshape(-1, 3, len(down)).transpose(2, 0, 1)


def _weighted_sums(
    source: NDArray[Any], positions: NDArray[np.int64], weights: NDArray[np.int32], dtype: type[np.signedinteger[Any]]
) -> NDArray[Any]:
    """Return sums of rows of `source`, M x N: row m is the sum over k of weights[m, k] * source[positions[m, k]]."""
    return np.einsum("mk,mkn->mn", weights, source.take(positions, axis=0), dtype=dtype)


@functools.lru_cache(maxsize=32)  # many originals have the same few sizes
def _axis(source: int, size: int) -> _Axis:
    """Return the weights that turn `source` pixels into `size`."""
    return _cubic(source, size) if size > source else _areas(source, size)


def _areas(source: int, size: int) -> _Axis:
    # In units of 1 / size pixel, a pixel of the source is `size` long and one of the result `source`: all borders are
    # integers, and so is what a pixel of the source shares with one of the result.
    begin = np.arange(size)[:, None] * source
    first, last = begin // size, (begin + source - 1) // size
    positions = first + np.arange((last - first).max() + 1)
    shared = np.minimum(begin + source, (positions + 1) * size) - np.maximum(begin, positions * size)
    return _Axis(np.minimum(positions, source - 1), np.maximum(shared, 0).astype(np.int32), source)


def _cubic(source: int, size: int) -> _Axis:
    neighbours = np.arange(-1, 3)
    # The centre of a pixel of the result is at the integer position `whole` of the source plus `rest` / (2 size).
    whole, rest = np.divmod((2 * np.arange(size) + 1) * source - size, 2 * size)
    distance = np.abs(rest[:, None] / (2 * size) - neighbours)
    near = (1.25 * distance - 2.25) * distance**2 + 1
    far = ((-0.75 * distance + 3.75) * distance - 6) * distance + 3
    weights = np.rint(_ONE * np.where(distance <= 1, near, far)).astype(np.int32)
    return _Axis(np.clip(whole[:, None] + neighbours, 0, source - 1), weights, _ONE)

"""Random crops, flips and colour noise: a function of (seed, epoch, sample), in plain NumPy.

Random words come from Philox4x32-10 [Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3",
SC 2011] with the seed as key and (sample, epoch, purpose) as counter. No draw depends on another one, so batch size,
threads, devices and restarts cannot change them.

The draws follow Krizhevsky's program of 2012:

- a crop at one of (256 - 224 + 1)^2 = 33 x 33 positions, and a horizontal flip with probability 1/2. In his program, 32
  consecutive images share one crop and flip (`crops_shared_by=32`); his program of 2014, and everybody since, draws
  them per image;
- colour noise: ``(image + coefficient * V (z * deviations)) / (1 + coefficient)`` with one z ~ N(0, 1)^3 per image.
  `deviations` are the standard deviations of the training pixels along their principal axes V, on the scale 0-255.
  (The paper's text says eigenvalues.) A coefficient of 0 leaves the image unchanged.

Instead of a crop at a random position, a random part of the image can be resized to the crop's size (`resized_crop`),
as later programs do [Szegedy et al., "Going deeper with convolutions", CVPR 2015; RandomResizedCrop of torchvision]: 8
to 100 % of the area, with an aspect ratio (width / height) of 3/4 to 4/3 whose logarithm is uniform. Sides are rounded.
A part that does not fit into the image is drawn again, nine times at most; then it is the largest central part with an
aspect ratio in that range.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dataloading.errors import DatasetError
from dataloading.seeds import check_seed

_CROP, _COLOR, _RESIZED_CROP = 1, 2, 16  # purposes: the last word of the counter; attempts take 16, 17, ...
_ATTEMPTS = 10
_AREAS, _RATIOS = (0.08, 1.0), (3 / 4, 4 / 3)
_MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL = 0x9E3779B9, 0xBB67AE85
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)


@dataclass(frozen=True)
class Augmentation:
    """How training images are varied.

    Args:
        flip: mirror each image left to right with probability 1/2.
        color_noise: coefficient of the colour noise; 0 switches it off. A callable maps an epoch (counted from 0) to
            its coefficient (the 2012 run switched the noise off for the last quarter); it must be a pure function.
        random_crop: crop at a random position; otherwise at the centre.
        resized_crop: crop a random part of random size and aspect ratio instead, and resize it; needs `random_crop`.
        crops_shared_by: number of consecutive images in the epoch's order that share one crop and one flip; Krizhevsky
            ran 32.

    Raises:
        DatasetError: `color_noise` is negative or not finite, `crops_shared_by` is less than 1, or `resized_crop` is
            without `random_crop`.
    """

    flip: bool = True
    color_noise: float | Callable[[int], float] = 0.1
    random_crop: bool = True
    crops_shared_by: int = 1
    resized_crop: bool = False

    def __post_init__(self) -> None:
        if self.resized_crop and not self.random_crop:
            raise DatasetError("resized_crop needs random_crop; switch both on, or resized_crop off")
        if self.crops_shared_by < 1:
            raise DatasetError(f"crops_shared_by must be at least 1, got {self.crops_shared_by}")
        if not callable(self.color_noise):
            self.color_noise_at(0)

    def color_noise_at(self, epoch: int) -> float:
        """Return the coefficient of the colour noise in `epoch`: at least 0."""
        noise = self.color_noise
        coefficient = float(noise(epoch) if callable(noise) else noise)
        if not 0 <= coefficient < float("inf"):
            raise DatasetError(f"color_noise must be finite and at least 0, got {coefficient} in epoch {epoch}")
        return coefficient


class Draws(NamedTuple):
    """The augmentation of N images.

    Attributes:
        top, left: upper left corner of the crop in pixels: int64, shape (N,).
        height, width: its sides in pixels before it is resized, if it is: int64, shape (N,).
        flip: whether to mirror the crop: bool, shape (N,).
        shift: colour to add to every pixel, on the scale 0-255: float32, shape (N, 3).
        divisor: what to divide every pixel by after that: float32, shape (N,).
    """

    top: NDArray[np.int64]
    left: NDArray[np.int64]
    height: NDArray[np.int64]
    width: NDArray[np.int64]
    flip: NDArray[np.bool_]
    shift: NDArray[np.float32]
    divisor: NDArray[np.float32]


def philox4x32(counter: NDArray[np.uint64], key: int) -> NDArray[np.uint64]:
    """Return Philox4x32-10 of `counter` (shape (4, N), 32-bit words in uint64) under the 64-bit `key`: same shape."""
    c0, c1, c2, c3 = counter
    k0, k1 = key & 0xFFFFFFFF, key >> 32
    for _ in range(10):
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c2 = (product1 >> _SHIFT) ^ c1 ^ np.uint64(k0), (product0 >> _SHIFT) ^ c3 ^ np.uint64(k1)
        c1, c3 = product1 & _LOW, product0 & _LOW
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3])


def _words(numbers: NDArray[np.int64], *, seed: int, epoch: int, purpose: int) -> NDArray[np.uint64]:
    """Return four random 32-bit words for each of `numbers`: uint64, shape (4, N)."""
    counter = np.empty((4, len(numbers)), dtype=np.uint64)
    counter[0] = numbers.astype(np.uint64) & _LOW
    counter[1] = numbers.astype(np.uint64) >> _SHIFT
    counter[2], counter[3] = epoch, purpose
    return philox4x32(counter, check_seed(seed))


def _below(words: NDArray[np.uint64], limit: NDArray[np.int64]) -> NDArray[np.int64]:
    """Map 32-bit words to 0 .. limit - 1. The values are equally likely, up to a relative error of limit / 2**32."""
    return ((words * limit.astype(np.uint64)) >> _SHIFT).astype(np.int64)


def _resized_crops(
    numbers: NDArray[np.int64], heights: NDArray[np.int64], widths: NDArray[np.int64], *, seed: int, epoch: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return top, left, height and width of a random part of each image, by the rule of the module docstring."""
    # The largest central part with an aspect ratio in the range, where no attempt fits.
    height = np.minimum(heights, np.rint(widths / _RATIOS[0]).astype(np.int64))
    width = np.minimum(widths, np.rint(heights * _RATIOS[1]).astype(np.int64))
    top, left = (heights - height) // 2, (widths - width) // 2

    open_ones = np.arange(len(numbers))
    for attempt in range(_ATTEMPTS):
        words = _words(numbers[open_ones], seed=seed, epoch=epoch, purpose=_RESIZED_CROP + attempt)
        unit = words[:2].astype(np.float64) / 2.0**32
        area = (heights * widths)[open_ones] * (_AREAS[0] + (_AREAS[1] - _AREAS[0]) * unit[0])
        ratio = np.exp(np.log(_RATIOS[0]) + np.log(_RATIOS[1] / _RATIOS[0]) * unit[1])
        h, w = (np.rint(np.sqrt(side)).astype(np.int64) for side in (area / ratio, area * ratio))
        fits = (h >= 1) & (w >= 1) & (h <= heights[open_ones]) & (w <= widths[open_ones])
        done, h, w = open_ones[fits], h[fits], w[fits]
        height[done], width[done] = h, w
        top[done] = _below(words[2, fits], heights[done] - h + 1)
        left[done] = _below(words[3, fits], widths[done] - w + 1)
        open_ones = open_ones[~fits]
    return top, left, height, width


def normals(samples: NDArray[np.int64], *, seed: int, epoch: int) -> NDArray[np.float64]:
    """Return three independent N(0, 1) numbers per sample by the Box-Muller transform: float64, shape (N, 3)."""
    unit = (_words(samples, seed=seed, epoch=epoch, purpose=_COLOR).astype(np.float64) + 0.5) / 2.0**32
    radius = np.sqrt(-2.0 * np.log(unit[:2]))
    angle = 2.0 * np.pi * unit[2:]
    return np.stack([radius[0] * np.cos(angle[0]), radius[0] * np.sin(angle[0]), radius[1] * np.cos(angle[1])], axis=1)


def draw(
    augmentation: Augmentation | None,
    *,
    seed: int,
    epoch: int,
    samples: NDArray[np.int64],
    positions: NDArray[np.int64],
    heights: NDArray[np.int64],
    widths: NDArray[np.int64],
    crop_size: int,
    color_deviations: NDArray[np.float64],
    color_vectors: NDArray[np.float64],
) -> Draws:
    """Draw the augmentation of N images.

    Args:
        augmentation: None means a centre crop and no other change.
        seed: 0 to 2**64 - 1.
        epoch: at least 0.
        samples: sample numbers: int64, shape (N,).
        positions: their positions in the epoch's order: int64, shape (N,); used only with `crops_shared_by` > 1.
        heights, widths: of the stored images in pixels: int64, shape (N,), each at least `crop_size`.
        crop_size: side of the square crop in pixels.
        color_deviations: standard deviations along the principal axes, scale 0-255: shape (3,).
        color_vectors: the principal axes, one per column: shape (3, 3).
    """
    count = len(samples)
    max_top, max_left = heights - crop_size, widths - crop_size
    draws = Draws(
        top=max_top // 2,
        left=max_left // 2,
        height=np.full(count, crop_size),
        width=np.full(count, crop_size),
        flip=np.zeros(count, dtype=np.bool_),
        shift=np.zeros((count, 3), dtype=np.float32),
        divisor=np.ones(count, dtype=np.float32),
    )
    if augmentation is None:
        return draws
    shared = augmentation.crops_shared_by
    numbers = samples if shared == 1 else positions // shared
    words = _words(numbers, seed=seed, epoch=epoch, purpose=_CROP)
    top, left, height, width, flip, shift, divisor = draws
    if augmentation.resized_crop:
        top, left, height, width = _resized_crops(numbers, heights, widths, seed=seed, epoch=epoch)
    elif augmentation.random_crop:
        top, left = _below(words[0], max_top + 1), _below(words[1], max_left + 1)
    if augmentation.flip:
        flip = words[2] >= np.uint64(2**31)
    coefficient = augmentation.color_noise_at(epoch)
    if coefficient > 0:
        scaled = normals(samples, seed=seed, epoch=epoch) * color_deviations
        # a sum, not a matrix product: its rounding must not depend on the number of samples in the batch
        axes = [scaled[:, i : i + 1] * color_vectors[:, i] for i in range(3)]
        shift = (coefficient * (axes[0] + axes[1] + axes[2])).astype(np.float32)
        divisor = np.full(count, 1 + coefficient, dtype=np.float32)
    return Draws(top, left, height, width, flip, shift, divisor)

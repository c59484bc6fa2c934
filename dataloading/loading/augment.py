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
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dataloading.errors import DatasetError
from dataloading.seeds import check_seed

_CROP, _COLOR = 1, 2  # purposes: the last word of the counter
_MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL = 0x9E3779B9, 0xBB67AE85
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)


@dataclass(frozen=True)
class Augmentation:
    """How training images are varied.

    Args:
        flip: mirror each image left to right with probability 1/2.
        color_noise: coefficient of the colour noise; 0 switches it off. A callable maps an epoch to its coefficient
            (the 2012 run switched the noise off for the last quarter); it must be a pure function.
        random_crop: crop at a random position; otherwise at the centre.
        crops_shared_by: number of consecutive images in the epoch's order that share one crop and one flip; Krizhevsky
            ran 32.

    Raises:
        DatasetError: `color_noise` is negative or not finite, or `crops_shared_by` is less than 1.
    """

    flip: bool = True
    color_noise: float | Callable[[int], float] = 0.1
    random_crop: bool = True
    crops_shared_by: int = 1

    def __post_init__(self) -> None:
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
        flip: whether to mirror the crop: bool, shape (N,).
        shift: colour to add to every pixel, on the scale 0-255: float32, shape (N, 3).
        divisor: what to divide every pixel by after that: float32, shape (N,).
    """

    top: NDArray[np.int64]
    left: NDArray[np.int64]
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
        flip=np.zeros(count, dtype=np.bool_),
        shift=np.zeros((count, 3), dtype=np.float32),
        divisor=np.ones(count, dtype=np.float32),
    )
    if augmentation is None:
        return draws
    shared = augmentation.crops_shared_by
    words = _words(samples if shared == 1 else positions // shared, seed=seed, epoch=epoch, purpose=_CROP)
    top, left, flip, shift, divisor = draws.top, draws.left, draws.flip, draws.shift, draws.divisor
    if augmentation.random_crop:
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
    return Draws(top, left, flip, shift, divisor)

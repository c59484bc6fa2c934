"""Crop, flip and colour draws: a function of (seed, epoch, sample), in plain NumPy.

Random words come from Philox4x32-10 [Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3",
SC 2011] with the seed as key and (sample, epoch, purpose) as counter. No draw depends on another one, so any
machine can make the draws of any sample at any time: batch size, threads, devices and restarts cannot change them.

What is drawn follows Krizhevsky's program of 2012:

- a crop at one of (256 - 224 + 1)^2 = 33 x 33 places, and a horizontal flip with probability 1/2. His program gave 32
  consecutive images the same crop and flip (`crops_shared_by=32`); his of 2014, like everybody since, draws per image;
- colour noise: ``image + coefficient * V (z * deviations)`` with one z ~ N(0, 1)^3 an image, then everything times
  ``1 / (1 + coefficient)``, and neither of the two where the coefficient is 0. `deviations` are the standard deviations
  of the training pixels along their principal axes V on the scale 0-255. (The paper's text says eigenvalues.)
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dataloading.errors import DatasetError
from dataloading.order import check_seed

_PLACE, _COLOR = 1, 2  # last counter word: what the random words are used for
_MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL = 0x9E3779B9, 0xBB67AE85
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)


@dataclass(frozen=True)
class Augmentation:
    """How training images are varied.

    Args:
        flip: mirror each image left to right with probability 1/2.
        color_noise: coefficient of the colour noise; 0 switches it off. A callable gets the epoch and returns the
            coefficient of that epoch (the 2012 run switched it off for the last quarter). It must be a pure function.
        random_crop: crop at a random place; otherwise at the centre.
        crops_shared_by: that many consecutive images of the epoch's order share one crop place and one flip; 1 draws
            them per image, 32 is what Krizhevsky ran.
    """

    flip: bool = True
    color_noise: float | Callable[[int], float] = 0.1
    random_crop: bool = True
    crops_shared_by: int = 1

    def __post_init__(self) -> None:
        if self.crops_shared_by < 1:
            raise DatasetError(f"crops_shared_by is {self.crops_shared_by}; it must be 1 or more")
        if not callable(self.color_noise):
            self.color_noise_at(0)

    def color_noise_at(self, epoch: int) -> float:
        """Return the colour noise coefficient of `epoch`: 0 or more."""
        noise = self.color_noise
        coefficient = float(noise(epoch) if callable(noise) else noise)
        if not 0 <= coefficient < float("inf"):
            raise DatasetError(f"color_noise is {coefficient} in epoch {epoch}; it must be 0 or more")
        return coefficient


class Draws(NamedTuple):
    """What happens to each of N images.

    `top`, `left` (int64, shape (N,)): the crop's upper left corner in pixels. `flip` (bool, shape (N,)). `shift`
    (float32, shape (N, 3)): added to every pixel, on the scale 0-255; `divisor` (float32, shape (N,)): then everything
    is divided by it.
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


def _words(which: NDArray[np.int64], *, seed: int, epoch: int, purpose: int) -> NDArray[np.uint64]:
    """Four random 32-bit words for each of `which`: shape (4, N)."""
    counter = np.empty((4, len(which)), dtype=np.uint64)
    counter[0] = which.astype(np.uint64) & _LOW
    counter[1] = which.astype(np.uint64) >> _SHIFT
    counter[2], counter[3] = epoch, purpose
    return philox4x32(counter, check_seed(seed))


def _below(words: NDArray[np.uint64], limit: NDArray[np.int64]) -> NDArray[np.int64]:
    """Map 32-bit words to 0 .. limit - 1; no value is likelier than another by more than limit / 2**32."""
    return ((words * limit.astype(np.uint64)) >> _SHIFT).astype(np.int64)


def normals(which: NDArray[np.int64], *, seed: int, epoch: int) -> NDArray[np.float64]:
    """Return three independent N(0, 1) numbers for each of `which` by Box and Muller's formula: shape (N, 3)."""
    unit = (_words(which, seed=seed, epoch=epoch, purpose=_COLOR).astype(np.float64) + 0.5) / 2.0**32
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
    """Return what happens to each of N images in `epoch`.

    Args:
        augmentation: None crops at the centre and changes nothing else.
        seed: 0 .. 2**64 - 1.
        epoch: 0 or more.
        samples: which samples, int64, shape (N,).
        positions: their places in the epoch's order, int64, shape (N,); only `crops_shared_by` > 1 looks at them.
        heights, widths: of the stored images in pixels, int64, shape (N,), each at least `crop_size`.
        crop_size: side of the square crop in pixels.
        color_deviations: standard deviations along the principal axes, scale 0-255, shape (3,).
        color_vectors: the principal axes in the columns, shape (3, 3).
    """
    count = len(samples)
    spare_rows, spare_columns = heights - crop_size, widths - crop_size
    draws = Draws(
        top=spare_rows // 2,
        left=spare_columns // 2,
        flip=np.zeros(count, dtype=np.bool_),
        shift=np.zeros((count, 3), dtype=np.float32),
        divisor=np.ones(count, dtype=np.float32),
    )
    if augmentation is None:
        return draws
    shared = augmentation.crops_shared_by
    words = _words(samples if shared == 1 else positions // shared, seed=seed, epoch=epoch, purpose=_PLACE)
    top, left, flip, shift, divisor = draws.top, draws.left, draws.flip, draws.shift, draws.divisor
    if augmentation.random_crop:
        top, left = _below(words[0], spare_rows + 1), _below(words[1], spare_columns + 1)
    if augmentation.flip:
        flip = words[2] >= np.uint64(2**31)
    coefficient = augmentation.color_noise_at(epoch)
    if coefficient > 0:
        scaled = normals(samples, seed=seed, epoch=epoch) * color_deviations
        # a sum written out, not a matrix product: its rounding must not depend on how many samples come together
        axes = [scaled[:, i : i + 1] * color_vectors[:, i] for i in range(3)]
        shift = (coefficient * (axes[0] + axes[1] + axes[2])).astype(np.float32)
        divisor = np.full(count, 1 + coefficient, dtype=np.float32)
    return Draws(top, left, flip, shift, divisor)

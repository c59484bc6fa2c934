"""Mean image and colour axes of the training set, from sums that any number of processes can make in any order."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass
class PixelSums:
    """Whole-number sums over the centre squares of images: exact, so adding them up in any order gives the same.

    `pixels`: int64, size x size x 3, sum of the images. `products`: int64, 3 x 3, sum over images and pixels of the
    products of each two colours.
    """

    size: int
    count: int = 0
    pixels: NDArray[np.int64] = field(init=False)
    products: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        self.pixels = np.zeros((self.size, self.size, 3), dtype=np.int64)
        self.products = np.zeros((3, 3), dtype=np.int64)

    def add_image(self, square: NDArray[np.uint8]) -> None:
        """Add one image, uint8, size x size x 3."""
        self.count += 1
        self.pixels += square
        # Exact: every partial sum is a whole number far below 2**53. No BLAS (`@`): its threads, one set in each worker
        # process, wait for one another many times longer than this takes.
        colors = square.reshape(-1, 3).T.astype(np.float64, order="C")
        for i in range(3):
            for j in range(i + 1):
                product = int(np.einsum("k,k->", colors[i], colors[j]))
                self.products[i, j] += product
                if i != j:
                    self.products[j, i] += product

    def add(self, other: "PixelSums") -> None:
        """Add the sums of another set of images."""
        self.count += other.count
        self.pixels += other.pixels
        self.products += other.products

    def mean_image(self) -> NDArray[np.float32]:
        """Return the mean image: float32, size x size x 3, 0-255."""
        return (self.pixels / self.count).astype(np.float32)

    def color_axes(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return deviations (shape (3,), ascending, 0-255) and principal axes (columns) of the pixels' colours.

        The axes are eigenvectors of the 3 x 3 covariance over all pixels of all images; each is turned so that its
        largest component is positive. Rounded to 5 decimals: the digits behind them depend on the LAPACK.
        """
        pixels = self.count * self.size * self.size
        mean = self.pixels.sum(axis=(0, 1)) / pixels
        covariance = self.products / pixels - np.outer(mean, mean)
        variances, axes = np.linalg.eigh(covariance)
        largest = axes[np.argmax(np.abs(axes), axis=0), range(3)]
        return np.round(np.sqrt(np.clip(variances, 0, None)), 5), np.round(axes * np.sign(largest), 5)

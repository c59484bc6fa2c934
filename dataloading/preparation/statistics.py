"""Mean image and colour statistics of the training set, from integer sums that workers can add in any order."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass
class PixelSums:
    """Sums over the centre squares of images. They are integers, hence exact in any order of addition.

    Attributes:
        size: side of the squares in pixels.
        count: number of images.
        pixels: int64, size x size x 3: sum of the images.
        products: int64, 3 x 3: sum, over all pixels of all images, of the outer product of a pixel's colour with
            itself.
    """

    size: int
    count: int = 0
    pixels: NDArray[np.int64] = field(init=False)
    products: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        self.pixels = np.zeros((self.size, self.size, 3), dtype=np.int64)
        self.products = np.zeros((3, 3), dtype=np.int64)

    def add_image(self, square: NDArray[np.uint8]) -> None:
        """Add one image: uint8, size x size x 3."""
        self.count += 1
        self.pixels += square
        # The float64 sums are exact: every partial sum is an integer far below 2**53. Not a matrix product, because
        # BLAS would start threads in every worker process, which slows this down many times.
        colors = square.reshape(-1, 3).T.astype(np.float64, order="C")
        for i in range(3):
            for j in range(i + 1):
                product = int(np.einsum("k,k->", colors[i], colors[j]))
                self.products[i, j] += product
                if i != j:
                    self.products[j, i] += product

    def add(self, other: "PixelSums") -> None:
        """Add the sums over other images."""
        self.count += other.count
        self.pixels += other.pixels
        self.products += other.products

    def mean_image(self) -> NDArray[np.float32]:
        """Return the mean image: float32, size x size x 3, 0-255."""
        return (self.pixels / self.count).astype(np.float32)

    def color_axes(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the principal component analysis of all pixels' colours.

        Returns:
            The standard deviations along the principal axes (shape (3,), ascending, 0-255), and the axes (shape (3, 3),
            one per column): the eigenvectors of the 3 x 3 covariance, with the sign that makes the largest component
            positive. Both are rounded to 5 decimals, because further digits depend on the LAPACK library.
        """
        pixels = self.count * self.size * self.size
        mean = self.pixels.sum(axis=(0, 1)) / pixels
        covariance = self.products / pixels - np.outer(mean, mean)
        variances, axes = np.linalg.eigh(covariance)
        largest = axes[np.argmax(np.abs(axes), axis=0), range(3)]
        return np.round(np.sqrt(np.clip(variances, 0, None)), 5), np.round(axes * np.sign(largest), 5)

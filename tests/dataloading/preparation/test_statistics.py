"""Mean image and principal axes of colours."""

import numpy as np
import pytest

from dataloading.preparation.statistics import PixelSums


def sums_of(squares: np.ndarray) -> PixelSums:
    sums = PixelSums(squares.shape[1])
    for square in squares:
        sums.add_image(square)
    return sums


def test_sums_are_exact_in_any_order():
    squares = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    colors = squares.reshape(-1, 3).astype(np.int64)
    whole, parts = sums_of(squares), sums_of(squares[3:])
    parts.add(sums_of(squares[:3]))
    for sums in (whole, parts):
        assert sums.count == 5
        assert np.array_equal(sums.pixels, squares.sum(axis=0, dtype=np.int64))
        assert np.array_equal(sums.products, colors.T @ colors)
    assert np.array_equal(whole.mean_image(), squares.mean(axis=0, dtype=np.float64).astype(np.float32))


@pytest.mark.parametrize("seed", range(5))
def test_axes_are_eigenvectors_with_a_positive_largest_component(seed):
    random = np.random.default_rng(seed)
    colors = random.normal(size=(4, 8, 8, 3)) @ random.normal(0, 30, size=(3, 3)) + 128
    squares = colors.clip(0, 255).astype(np.uint8)
    deviations, axes = sums_of(squares).color_axes()
    covariance = np.cov(squares.reshape(-1, 3).T, bias=True)
    for deviation, axis in zip(deviations, axes.T, strict=True):
        assert np.allclose(covariance @ axis, deviation**2 * axis, atol=0.1)
        assert abs(np.linalg.norm(axis) - 1) < 1e-4
        assert axis[np.argmax(np.abs(axis))] > 0
    assert (np.diff(deviations) > 0).all()
    for numbers in (deviations, axes):  # further digits depend on the LAPACK library
        assert np.array_equal(numbers, np.round(numbers, 5))


def test_grey_images_vary_along_one_axis_only():
    grey = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), dtype=np.uint8).repeat(3, axis=3)
    deviations, axes = sums_of(grey).color_axes()
    assert deviations.tolist() == [0, 0, np.round(np.sqrt(3) * grey[..., 0].std(), 5)]
    assert np.abs(axes[:, 2] - 1 / np.sqrt(3)).max() < 1e-5

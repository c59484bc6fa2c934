"""Dense SIFT and HOG."""

import sys

import numpy as np
import pytest

from fastalex.errors import ConfigurationError
from fastalex.handcrafted.descriptors import HOG_LENGTH, dense_sift, hog, opencv
from tests.fastalex.handcrafted.conftest import texture


def test_sift_patches_cover_the_image_at_five_scales():
    descriptors, heights = dense_sift(np.random.default_rng(0).integers(0, 256, (256, 256), dtype=np.uint8))
    sides = [256, 181, 128, 91, 64]
    assert descriptors.shape == (sum(((side - 24) // 6 + 1) ** 2 for side in sides), 128)
    assert descriptors.dtype == np.float32
    assert np.abs(np.linalg.norm(descriptors, axis=1) - 1).max() < 0.01
    assert heights[0] == np.float32(12 / 256)
    assert heights.max() <= 1 - 12 / 256


def test_sift_heights_are_those_of_the_patches_in_a_wide_image():
    image = np.full((64, 96), 7, dtype=np.uint8)
    image[32:] = np.random.default_rng(0).integers(0, 256, (32, 96))
    descriptors, heights = dense_sift(image)
    rows, columns = (64 - 24) // 6 + 1, (96 - 24) // 6 + 1
    lengths = np.linalg.norm(descriptors[: rows * columns], axis=1).reshape(rows, columns)  # of the first scale
    assert heights[: rows * columns].reshape(rows, columns) == pytest.approx(
        np.repeat((12 + 6 * np.arange(rows))[:, None] / 64, columns, 1)
    )
    assert not lengths[0].any()  # rows 0 to 24 are flat
    assert lengths[2:] == pytest.approx(1, abs=0.01)  # and rows 12 to 36 are not, which is where the third patch lies


def test_sift_tells_directions_and_not_brightness_or_contrast():
    upright = np.tile((120 + 60 * np.sin(np.arange(64))).astype(np.uint8), (64, 1))
    found, _ = dense_sift(upright)
    energy = (found**2).sum(0).reshape(16, 8).sum(0)  # bins of 45 degrees; stripes have gradients to left and right
    assert energy[[0, 4]].sum() > 0.99 * energy.sum()
    paler, _ = dense_sift(upright // 2 + 90)
    assert (found * paler).sum(1).mean() > 0.98
    flat, _ = dense_sift(np.full((64, 64), 7, dtype=np.uint8))
    assert not flat.any()


def test_hog_has_length_1_and_tells_directions():
    random = np.random.default_rng(0)
    first, second, other = (hog(np.repeat(texture(kind, random, 256)[..., None], 3, 2)) for kind in (0, 0, 1))
    assert first.shape == (HOG_LENGTH,)
    assert np.linalg.norm(first) == pytest.approx(1, abs=1e-5)
    assert first @ second > first @ other + 0.2
    assert not hog(np.zeros((64, 64, 3), dtype=np.uint8)).any()


def test_without_opencv_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ConfigurationError, match=r"OpenCV is not installed; install it with: .*fastalex\[baseline\]"):
        opencv()

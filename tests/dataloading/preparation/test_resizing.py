"""Resizing against definitions in float64, and against OpenCV, which Krizhevsky's own tool used."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dataloading.preparation import resizing
from dataloading.preparation.resizing import resize

# source, result; no side divides the other
SHRINKING = [((500, 375), (341, 256)), ((375, 500), (256, 341)), ((257, 300), (256, 299)), ((410, 333), (39, 32))]
ENLARGING = [((50, 37), (86, 64)), ((31, 30), (33, 32)), ((9, 1), (144, 16))]


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """Black, white and colours in random order: the hardest picture to resize."""
    levels = np.random.default_rng(seed).choice(np.array([0, 1, 90, 254, 255], dtype=np.uint8), (height, width, 3))
    return Image.fromarray(levels)


def whole(image: Image.Image, size: tuple[int, int]) -> np.ndarray:
    return resize(image, size, (0, 0, *size))


def applied(definition, image: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """Resize by a definition: (length, count) to the weights of `length` pixels in each of `count`."""
    columns, rows = definition(image.width, size[0]), definition(image.height, size[1])
    return np.einsum("mh,nw,hwc->mnc", rows, columns, np.asarray(image, dtype=np.float64), optimize=True)


def mean_of_area(length: int, count: int) -> np.ndarray:
    """Each pixel's share in the means: the integral of the flat pieces between borders, which np.interp gives."""
    borders = np.linspace(0, length, count + 1)
    integrals = [np.interp(borders, [pixel, pixel + 1], [0, 1]) for pixel in range(length)]
    return np.diff(integrals, axis=1).T * count / length


def keys_cubic(length: int, count: int) -> np.ndarray:
    """Keys' interpolation (IEEE ASSP 29(6), 1981, equation 4) with a = -0.75; the border goes on beyond itself."""

    def kernel(x: float, a: float = -0.75) -> float:
        if x <= 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0

    weights = np.zeros((count, length))
    for pixel in range(count):
        centre = (pixel + 0.5) * length / count - 0.5
        for neighbour in range(-3, length + 3):
            weights[pixel, min(max(neighbour, 0), length - 1)] += kernel(abs(centre - neighbour))
    return weights


@pytest.mark.parametrize(("source", "size"), SHRINKING)
def test_a_pixel_is_the_rounded_mean_of_its_area(source, size):
    image = noise(*source)
    assert np.abs(whole(image, size) - applied(mean_of_area, image, size)).max() <= 0.5 + 1e-9  # of the definition


@settings(max_examples=30)
@given(
    width=st.integers(1, 70),
    height=st.integers(1, 70),
    columns=st.integers(1, 70),
    rows=st.integers(1, 70),
    seed=st.integers(0, 99),
)
def test_any_size_shrinks_to_any_smaller_one(width, height, columns, rows, seed):
    size = min(columns, width), min(rows, height)
    image = noise(width, height, seed)
    assert np.abs(whole(image, size) - applied(mean_of_area, image, size)).max() <= 0.5 + 1e-9


@pytest.mark.parametrize(("source", "size"), ENLARGING)
def test_enlarging_interpolates_with_a_cubic(source, size):
    image = noise(*source)
    wanted = np.clip(applied(keys_cubic, image, size), 0, 255)
    # Four weights an axis are off by up to 1/4096 each; those of the other axis add up to 1.4 at most.
    tolerance = 0.5 + 255 * 2 * 1.4 * 4 / 4096
    assert np.abs(whole(image, size) - wanted).max() <= tolerance


@pytest.mark.parametrize(("source", "size"), [((9, 40), (30, 20)), ((40, 9), (20, 30))])
def test_one_axis_may_grow_while_the_other_shrinks(source, size):
    def by_axis(length: int, count: int) -> np.ndarray:
        return keys_cubic(length, count) if count > length else mean_of_area(length, count)

    image = noise(*source)
    wanted = applied(by_axis, image, size)
    assert wanted.min() < 0
    assert wanted.max() > 255
    assert np.abs(whole(image, size) - np.clip(wanted, 0, 255)).max() <= 0.5 + 255 * 4 / 4096


@pytest.mark.parametrize("size", [(3, 3), (7, 20), (16, 16), (17, 16), (61, 300)])
def test_an_even_picture_stays_as_it_is(size):
    for level in (0, 1, 128, 255):
        assert (whole(Image.new("RGB", (16, 16), (level,) * 3), size) == level).all()


@pytest.mark.parametrize(("source", "size"), [*SHRINKING, *ENLARGING])
def test_opencv_agrees(source, size):
    cv2 = pytest.importorskip("cv2")
    image = noise(*source)
    # It sums areas in float32 and may round halves down. Of cubic weights, it rounds the positions, too.
    interpolation, limit = (cv2.INTER_CUBIC, 0.1) if size > source else (cv2.INTER_AREA, 0.01)
    error = np.abs(whole(image, size) - cv2.resize(np.asarray(image), size, interpolation=interpolation).astype(int))
    assert error.max() <= 1
    assert error.mean() < limit


@pytest.mark.parametrize(("source", "size"), [*SHRINKING, *ENLARGING, ((40, 30), (40, 30))])
def test_a_box_is_cut_out_of_the_whole(source, size):
    image = noise(*source)
    left, top, right, bottom = size[0] // 3, size[1] // 4, size[0] - 1, size[1] // 2 + 1
    part = resize(image, size, (left, top, right, bottom))
    assert np.array_equal(part, whole(image, size)[top:bottom, left:right])


@pytest.mark.parametrize(("source", "size"), [SHRINKING[0], ENLARGING[0]])
def test_bands_leave_no_trace(source, size, monkeypatch):
    image = noise(*source)
    wanted = whole(image, size)
    monkeypatch.setattr(resizing, "_COPIED", 25 * image.width * 12)  # some rows at a time, not all equally many
    monkeypatch.setattr(resizing, "_SUMMED", 1)
    assert np.array_equal(whole(image, size), wanted)
    assert np.array_equal(resize(image, size, (0, 7, *size)), wanted[7:])


def test_sums_over_large_pictures_do_not_overflow():
    image = Image.new("RGB", (3000, 2900), "white")  # 255 x 3000 x 2900 > 2^31
    assert (resize(image, (17, 16), (8, 8, 9, 9)) == 255).all()

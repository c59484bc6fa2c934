"""Shapes are simple polygons within the unit circle, of a size that can be seen."""

import numpy as np
import pytest

from dataloading.standin import shapes

# Area as a share of the unit circle's.
AREAS = {
    "star": (0.3, 0.5),
    "heart": (0.4, 0.65),
    "arrow": (0.2, 0.6),
    "crescent": (0.2, 0.4),
    "gear": (0.55, 0.85),
    "flower": (0.4, 0.7),
    "cross": (0.3, 0.7),
    "bolt": (0.15, 0.35),
}


def area(corners: np.ndarray) -> float:
    """The area inside a polygon, by the shoelace formula."""
    x, y = corners.T
    return abs(float(x @ np.roll(y, 1) - y @ np.roll(x, 1))) / 2


@pytest.mark.parametrize("name", AREAS)
def test_a_shape_fills_its_share_of_the_circle(name):
    low, high = AREAS[name]
    found = [getattr(shapes, name)(np.random.default_rng(seed)) for seed in range(20)]
    for corners in found:
        assert 0.85 < np.hypot(*corners.T).max() <= 1.001
        assert low < area(corners) / np.pi < high
    assert name == "heart" or area(found[0]) != area(found[1])  # all but the heart vary


def test_shapes_are_symmetric_as_they_should_be():
    random = np.random.default_rng(3)

    def same(a, b):
        return all(np.abs(b - corner).sum(axis=1).min() < 0.01 for corner in a)

    mirrored = np.array([-1, 1])
    heart, arrow, cross, moon = (getattr(shapes, name)(random) for name in ("heart", "arrow", "cross", "crescent"))
    assert same(heart, heart * mirrored)
    assert not same(heart, -heart)
    assert same(arrow, arrow * -mirrored)
    assert not same(arrow, arrow * mirrored)
    assert same(cross, cross[:, ::-1])
    assert same(moon, moon * -mirrored)
    assert moon[:, 0].min() < -0.99  # its back
    assert np.hypot(*(moon - np.roll(moon, 1, axis=0)).T).max() < 0.2  # its two arcs meet at both tips
    assert not same(moon, moon * mirrored)

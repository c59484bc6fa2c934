"""Patterns repeat as their names say, whatever varies within the class."""

import math

import numpy as np
import pytest

from dataloading.standin import patterns

ROOT = math.sqrt(3)
# Shifts, in periods, that map a pattern to itself, and one that does not.
REPEATS = {
    "stripes": ([(1, 0), (0, 0.37)], (0.5, 0)),
    "checks": ([(1, 1), (2, 0)], (1, 0)),
    "dots": ([(1, 0), (0, 1)], (0.5, 0)),
    "waves": ([(2, 0), (0, 1)], (1, 0)),
    "zigzag": ([(2, 0), (0, 1)], (1, 0)),
    "bricks": ([(2, 0), (1, 1)], (0, 1)),
    "plaid": ([(1, 0), (0, 1)], (0, 0.5)),
    "grid": ([(1, 0), (0, 1)], (0, 0.5)),
    "honeycomb": ([(1, 0), (0.5, ROOT / 2)], (0.5, 0)),
    "shells": ([(1, 0), (0.5, 0.5)], (0, 0.5)),
    "basket": ([(3, 0), (1.5, 1.5)], (1.5, 0)),
    "triangles": ([(1, 0), (0.5, ROOT / 2)], (0.5, 0)),
}


def plane(count: int = 160) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates of a field of six by six periods."""
    line = np.linspace(-3, 3, count, dtype=np.float32) + 0.003
    return np.meshgrid(line, line)


def drawn(name: str, x: np.ndarray, y: np.ndarray, seed: int = 5) -> np.ndarray:
    found = getattr(patterns, name)(x.astype(np.float32), y.astype(np.float32), np.random.default_rng(seed))
    return np.asarray(found, dtype=np.float32)


def unlike(a: np.ndarray, b: np.ndarray) -> float:
    """The share of points that differ; rounding moves a few edges."""
    return float(np.mean(np.abs(a - b) > 1e-3))


@pytest.mark.parametrize("name", REPEATS)
def test_a_pattern_repeats(name):
    x, y = plane()
    shifts, other = REPEATS[name]
    here = drawn(name, x, y)
    for a, b in shifts:
        assert unlike(here, drawn(name, x + a, y + b)) < 0.01, (a, b)
    assert unlike(here, drawn(name, x + other[0], y + other[1])) > 0.05


def test_patterns_around_a_point():
    x, y = plane()
    radius, cos, sin = np.hypot(x, y), math.cos(0.7), math.sin(0.7)
    rings = drawn("rings", x, y)
    assert unlike(rings, drawn("rings", cos * x + sin * y, cos * y - sin * x)) < 0.01
    assert unlike(rings, drawn("rings", x * (1 + 1 / radius), y * (1 + 1 / radius))) < 0.01
    rays = drawn("rays", x, y)
    assert unlike(rays, drawn("rays", 3 * x, 3 * y)) < 0.01
    assert unlike(rays, drawn("rays", cos * x + sin * y, cos * y - sin * x)) > 0.05
    spiral = drawn("spiral", x, y)
    assert unlike(spiral, drawn("spiral", x * (1 + 1 / radius), y * (1 + 1 / radius))) < 0.01
    assert unlike(spiral, drawn("spiral", -x, y)) > 0.05  # it has a direction


@pytest.mark.parametrize("name", [*REPEATS, "rings", "rays", "spiral", "camouflage"])
def test_both_colours_are_seen(name):
    for seed in range(10):
        share = drawn(name, *plane(), seed)
        assert share.min() == 0
        assert share.max() == 1
        assert 0.1 < share.mean() < 0.9

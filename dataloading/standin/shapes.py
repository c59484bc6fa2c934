"""Shapes: outlines of single things, each the shape of one class.

A shape takes a random generator for what varies within the class and returns the corners of a polygon: float64,
corners x 2, within the unit circle.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Corners = NDArray[np.float64]
Shape = Callable[[np.random.Generator], Corners]


def star(random: np.random.Generator) -> Corners:
    """Five or six points."""
    points = int(random.integers(5, 7))
    return _polar(np.tile([1, random.uniform(0.38, 0.5)], points), 2 * points)


def heart(random: np.random.Generator) -> Corners:
    """A heart."""
    t = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    y = -13 * np.cos(t) + 5 * np.cos(2 * t) + 2 * np.cos(3 * t) + np.cos(4 * t)
    return np.stack([16 * np.sin(t) ** 3, y], axis=1) / 18


def arrow(random: np.random.Generator) -> Corners:
    """A shaft with a head."""
    shaft, neck = random.uniform(0.15, 0.3), random.uniform(-0.1, 0.3)
    half = [(1, 0), (neck, 0.7), (neck, shaft), (-0.95, shaft)]
    return np.array(half + [(x, -y) for x, y in half[:0:-1]])


def crescent(random: np.random.Generator) -> Corners:
    """A moon: a disc without a second one that is shifted."""
    shift = random.uniform(0.35, 0.6)
    # Both circles meet at these angles.
    tip = np.arccos(shift / 2)
    outer = np.linspace(tip, 2 * np.pi - tip, 40)
    inner = np.linspace(np.pi + tip, np.pi - tip, 40)
    return np.concatenate([_circle(outer), _circle(inner) + np.array([shift, 0])])


def gear(random: np.random.Generator) -> Corners:
    """A cogwheel of 8 to 12 teeth."""
    teeth = int(random.integers(8, 13))
    root = random.uniform(0.68, 0.78)
    return _polar(np.tile([1, 1, root, root], teeth), 4 * teeth)


def flower(random: np.random.Generator) -> Corners:
    """Five to seven round petals."""
    t = np.linspace(0, 2 * np.pi, 120, endpoint=False)
    petals, depth = random.integers(5, 8), random.uniform(0.25, 0.35)
    return (1 - depth + depth * np.cos(petals * t))[:, None] * _circle(t)


def cross(random: np.random.Generator) -> Corners:
    """Two bars of equal length."""
    a = random.uniform(0.2, 0.34)
    quarter = np.array([(0.94, -a), (0.94, a), (a, a)])
    turn = np.array([[0, 1], [-1, 0]])
    return np.concatenate([quarter @ np.linalg.matrix_power(turn, n) for n in range(4)])


def bolt(random: np.random.Generator) -> Corners:
    """A flash of lightning."""
    a = random.uniform(0.0, 0.15)
    return np.array([(0.25, -0.95), (-0.55, 0.15), (-a, 0.1), (-0.3, 0.95), (0.55, -0.2), (a, -0.15)])


def _circle(angles: NDArray) -> Corners:
    return np.stack([np.cos(angles), np.sin(angles)], axis=-1)


def _polar(radii: NDArray, count: int) -> Corners:
    """Corners at these distances, in equal steps around the centre."""
    return radii[:, None] * _circle(np.arange(count) * 2 * np.pi / count)

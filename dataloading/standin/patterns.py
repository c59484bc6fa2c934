"""Patterns that fill a region: functions of the plane, each the texture of one class.

A pattern takes coordinates `x` and `y` (float32, height x width, in periods of the pattern, rotated already, with the
origin near the middle of the picture) and a random generator for what varies within the class. It returns how much of
the first of two colours every pixel has: float or bool, 0 to 1.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Plane = NDArray[np.float32]
Pattern = Callable[[Plane, Plane, np.random.Generator], NDArray]


def stripes(x: Plane, y: Plane, random: np.random.Generator) -> NDArray:
    """Parallel stripes."""
    return x % 1 < random.uniform(0.3, 0.7)


def checks(x: Plane, y: Plane, random: np.random.Generator) -> NDArray:
    """A chessboard."""
    return (np.floor(x) + np.floor(y)) % 2


def dots(x: Plane, y: Plane, random: np.random.Generator) -> NDArray:
    """Discs on a square grid."""
    return np.hypot(x % 1 - 0.5, y % 1 - 0.5) < random.uniform(0.25, 0.38)


def rings(x: Plane, y: Plane, random: np.random.Generator) -> NDArray:
    """Concentric rings."""
    return np.hypot(x, y) % 1 < random.uniform(0.35, 0.65)


def spiral(x: Plane, y: Plane, random: np.random.Generator) -> NDArray:
    """A spiral of one to three arms, in either direction."""
    arms = random.integers(1, 4) * random.choice([-1, 1])
    return (np.hypot(x, y) + arms * _turns(x, y)) % 1 < 0.5


def rays(x: Plane, y: Plane, random: np.random.Generator) -> NDArray:
    """Rays from a point."""
    return random.integers(7, 16) * _turns(x, y) % 1 < 0.5


def waves(x: Plane, y: Plane, random: np.random.Generator) -> NDArray:
    """Wavy stripes."""
    return (y + random.uniform(0.3, 0.5) * np.sin(np.pi * x)) % 1 < 0.5


def zigzag(x: Plane, y: Plane, random: np.random.Generator) -> NDArray:
    """Stripes with sharp bends."""
    return (y + random.uniform(0.8, 1.2) * np.abs(x % 2 - 1)) % 1 < 0.5


def bricks(x: Plane, y: Plane, random: np.random.Generator) -> NDArray:
    """Rows of bricks with mortar between them, every other row shifted by half a brick."""
    mortar = random.uniform(0.1, 0.2)
    along = x / 2 + 0.5 * (np.floor(y) % 2)
    return (y % 1 > mortar) & (along % 1 > mortar / 2)


def plaid(x: Plane, y: Plane, random: np.random.Generator) -> NDArray:
    """Two sets of stripes, woven: the mean of the colours where only one of them runs."""
    share = random.uniform(0.4, 0.6)
    return ((x % 1 < share) + (y % 1 < share).astype(np.float32)) / 2


def grid(x: Plane, y: Plane, random: np.random.Generator) -> NDArray:
    """Thin lines in two directions."""
    line = random.uniform(0.12, 0.22)
    return (x % 1 < line) | (y % 1 < line)


def honeycomb(x: Plane, y: Plane, random: np.random.Generator) -> NDArray:
    """Hexagonal cells with walls."""
    root = np.sqrt(3, dtype=np.float32)
    # The centres of the cells are two rectangular grids. The nearer centre's cell holds the point.
    a_x, a_y = x % 1 - 0.5, y % root - root / 2
    b_x, b_y = (x - 0.5) % 1 - 0.5, (y - root / 2) % root - root / 2
    is_first = a_x**2 + a_y**2 < b_x**2 + b_y**2
    to_x, to_y = np.abs(np.where(is_first, a_x, b_x)), np.abs(np.where(is_first, a_y, b_y))
    return np.maximum(to_x, to_x / 2 + to_y * root / 2) < random.uniform(0.36, 0.44)


def shells(x: Plane, y: Plane, random: np.random.Generator) -> NDArray:
    """Rows of half discs made of arcs, every other row shifted by half a disc."""
    across = (x + 0.5 * (np.floor(2 * y) % 2)) % 1 - 0.5
    return 4 * np.hypot(across, y % 0.5) % 1 < random.uniform(0.4, 0.6)


def basket(x: Plane, y: Plane, random: np.random.Generator) -> NDArray:
    """Squares of three stripes each, in turn along either direction."""
    x, y = x / 1.5, y / 1.5
    is_across = (np.floor(x) + np.floor(y)) % 2 > 0
    return 3 * np.where(is_across, x, y) % 1 < 0.5


def triangles(x: Plane, y: Plane, random: np.random.Generator) -> NDArray:
    """The plane in equilateral triangles of two colours."""
    root = np.sqrt(3, dtype=np.float32)
    return (x + y / root) % 1 > 2 * y / root % 1


def camouflage(x: Plane, y: Plane, random: np.random.Generator) -> NDArray:
    """Irregular patches: smooth noise, cut at its mean."""
    cells = int(random.integers(9, 16))
    noise = Image.fromarray(random.random((cells, cells), dtype=np.float32))
    return np.asarray(noise.resize((x.shape[1], x.shape[0]), Image.Resampling.BICUBIC)) > 0.5


def _turns(x: Plane, y: Plane) -> Plane:
    """The direction from the origin, in turns."""
    return (np.arctan2(y, x) / (2 * np.pi)).astype(np.float32)

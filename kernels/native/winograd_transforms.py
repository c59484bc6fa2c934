"""The transform matrices of Winograd convolution, and their application to tiles.

A convolution of polynomials is a product of their values at enough points, from which the result is interpolated. The
matrices A, G and B of :mod:`kernels.native.winograd` evaluate and interpolate at n - 1 points and infinity, where the
value of a polynomial is its highest coefficient.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

# Rounding errors grow with the powers of the points, so there are few points, close to 1. In this order, the first five
# and the first six have the smallest errors.
_POINTS = tuple(map(Fraction, ("0", "1", "-1", "1/2", "-2", "2", "-1/2")))
MAX_TILE = len(_POINTS) + 1
FILTER_SIZES = (3, 5)


@dataclass(frozen=True)
class TransformMatrices:
    """The matrices of :mod:`kernels.native.winograd`: `results` is A, `weights` is G, `inputs` is B."""

    results: Tensor
    weights: Tensor
    inputs: Tensor


@functools.lru_cache(maxsize=8)
def transform_matrices(m: int, size: int, dtype: torch.dtype) -> TransformMatrices:
    """The matrices for m x m results of size x size filters, computed in fractions and rounded once.

    The polynomial with the tile's values as coefficients, in reverse order, is interpolated by Lagrange's formula. The
    denominators are in G. A power of two per row balances the magnitudes of G and B.
    """
    points = _POINTS[: m + size - 2]
    results = [[point**power for point in points] + [Fraction(power == m - 1)] for power in range(m)]
    weights, inputs = [], []
    for point in points:
        others = [other for other in points if other != point]
        denominator = math.prod(point - other for other in others)
        row, values = [*_with_roots(others), Fraction(0)], [point**power / denominator for power in range(size)]
        balance = Fraction(2) ** round(math.log2(max(map(abs, values)) / max(map(abs, row))) / 2)
        inputs.append([value * balance for value in row])
        weights.append([value / balance for value in values])
    inputs.append(_with_roots(points))
    weights.append([Fraction(power == size - 1) for power in range(size)])
    with torch.inference_mode(False):  # the cached tensors serve training too
        tensors = (
            torch.tensor([[float(x) for x in row] for row in rows], dtype=dtype) for rows in (results, weights, inputs)
        )
        return TransformMatrices(*tensors)


def _with_roots(roots: Sequence[Fraction]) -> list[Fraction]:
    """The coefficients, lowest first, of the product of all (x - root)."""
    coefficients = [Fraction(1)]
    for root in roots:
        shifted, scaled = [Fraction(0), *coefficients], [*(-root * c for c in coefficients), Fraction(0)]
        coefficients = [a + b for a, b in zip(shifted, scaled, strict=True)]
    return coefficients


def transform(matrix: Tensor, values: Tensor, half: Tensor, out: Tensor) -> Tensor:
    """matrix @ v @ matrix^T for each v of `values` (q x q x length), written to the beginning of `out`.

    Args:
        matrix: p x q.
        half: a flat buffer, overwritten with the first of the two products.
        out: a flat buffer.

    Returns:
        View of `out`, p x p x length.
    """
    p, q = matrix.shape
    length = values.numel() // q**2
    rows = torch.mm(matrix, values.view(q, q * length), out=half[: p * q * length].view(p, q * length))
    result = out[: p * p * length].view(p, p, length)
    return torch.bmm(matrix.expand(p, p, q), rows.view(p, q, length), out=result)

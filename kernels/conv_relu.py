"""Convolution, bias and ReLU.

y[n, o] = relu(bias[o] + sum over c of weight[o, c] * x[n, c])      (* is cross-correlation)
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from kernels import arguments, dispatch, native, reference


def conv2d_relu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int = 1,
    padding: int | Sequence[int] = 0,
    groups: int = 1,
    *,
    relu: bool = True,
) -> Tensor:
    """Two-dimensional convolution with a ReLU behind it, `torch.nn.functional.conv2d` otherwise.

    Args:
        x: N x C x H x W; float32, float16, bfloat16 or float64.
        weight: K x C/groups x KH x KW, in x's dtype unless autocast is on.
        bias: K values, or None.
        stride: at least 1, the same in both directions.
        padding: rows and columns of zeros: one int, (height, width) or (top, bottom, left, right).
        groups: divides C and K.
        relu: False leaves the ReLU out, for layers that normalise first.

    Returns:
        N x K x OH x OW, OH = (top + H + bottom - KH) // stride + 1 and OW likewise.

    Raises:
        TypeError, ValueError: an argument is not as described, or no window fits; raised before anything is computed.
    """
    sides = arguments.four_sided(padding)
    arguments.check_convolution(x, weight, bias, stride, sides, groups)
    chosen = reference if dispatch.implementation_for(x) == "reference" else native
    return chosen.conv2d_relu(x, weight, bias, stride, sides, groups, relu=relu)

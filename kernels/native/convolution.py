"""Convolution and ReLU on a CPU: Winograd convolution where it is faster, else PyTorch's operator."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kernels.gradient_sink import GradientSink
from kernels.native import winograd


def conv2d_relu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    sides: tuple[int, int, int, int],
    dilation: tuple[int, int],
    groups: int,
    *,
    relu: bool,
    gradient_sink: GradientSink | None = None,
) -> Tensor:
    """As :func:`kernels.conv2d_relu`, without the checks.

    Args:
        sides: padding above, below, left and right.
        gradient_sink: used by Winograd convolution; PyTorch's operator computes weight gradients within backward.
    """
    step = stride[0]
    if stride == (step, step) and dilation == (1, 1) and winograd.is_faster(x, weight, step, sides):
        return winograd.conv2d_relu(x, weight, bias, step, sides, groups, relu=relu, gradient_sink=gradient_sink)
    top, bottom, left, right = sides
    if top == bottom and left == right:
        y = F.conv2d(x, weight, bias, stride, (top, left), dilation, groups)
    else:
        y = F.conv2d(F.pad(x, (left, right, top, bottom)), weight, bias, stride, 0, dilation, groups)
    return y.relu_() if relu else y

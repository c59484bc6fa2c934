"""The operators in plain PyTorch: the definition that all other implementations are compared with.

Nothing here is optimised. Half precision is computed in fp32 and rounded once at the end. Arguments are those of the
public functions of the same names, which check them.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.memory_format import dense_as, is_channels_last
from kernels.philox import keep_mask


def _upcast(x: Tensor) -> Tensor:
    """x in fp32, or in fp64 for fp64."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _window_sums(x: Tensor, dim: int, size: int) -> Tensor:
    """Sums over the windows of `size` elements along one dimension; by slices, which every exporter to ONNX knows."""
    windows = [x.narrow(dim, first, x.shape[dim] - size + 1) for first in range(size)]
    return functools.reduce(torch.add, windows)


def _biased(x: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
    """x + bias and its ReLU, upcast."""
    y = _upcast(x)
    if bias is not None:
        y = y + bias.to(y.dtype).view(-1, 1, 1)
    return y.relu() if relu else y


def local_response_norm(
    x: Tensor,
    size: int,
    alpha: float,
    beta: float,
    k: float,
    *,
    groups: int,
    bias: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    values = _biased(x, bias, relu)
    grouped = values.unflatten(1, (groups, -1))
    squares = F.pad(grouped * grouped, (0, 0, 0, 0, size // 2, (size - 1) // 2))
    sums = _window_sums(squares, 2, size).flatten(1, 2)
    return _like(x, values / (k + alpha / size * sums) ** beta)


def same_map_norm(x: Tensor, size: int, alpha: float, beta: float, k: float) -> Tensor:
    values = _upcast(x)
    before, after = size // 2, (size - 1) // 2
    squares = F.pad(values * values, (before, after, before, after))
    sums = _window_sums(_window_sums(squares, 2, size), 3, size)
    return _like(x, values / (k + alpha / size**2 * sums) ** beta)


def max_pool2d(
    x: Tensor,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    *,
    ceil_mode: bool,
) -> Tensor:
    return _like(x, F.max_pool2d(_upcast(x), kernel, stride, padding, dilation, ceil_mode=ceil_mode))


def lrn_max_pool2d(
    x: Tensor,
    size: int,
    alpha: float,
    beta: float,
    k: float,
    *,
    groups: int,
    kernel_size: int,
    stride: int,
    bias: Tensor | None,
    relu: str | None,
) -> Tensor:
    y = _biased(x, bias, relu == "before")
    y = local_response_norm(y, size, alpha, beta, k, groups=groups)
    y = max_pool2d(y, (kernel_size,) * 2, (stride,) * 2, (0, 0), (1, 1), ceil_mode=False)
    if relu == "after":
        y = y.relu()
    return _like(x, y)


def same_map_norm_max_pool2d(
    x: Tensor, size: int, alpha: float, beta: float, k: float, *, kernel_size: int, stride: int
) -> Tensor:
    y = same_map_norm(_upcast(x), size, alpha, beta, k)
    return _like(x, max_pool2d(y, (kernel_size,) * 2, (stride,) * 2, (0, 0), (1, 1), ceil_mode=False))


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
) -> Tensor:
    top, bottom, left, right = sides
    y = F.conv2d(F.pad(x, (left, right, top, bottom)), weight, bias, stride, 0, dilation, groups)
    return y.relu() if relu else y


def dropout(x: Tensor, p: float, *, seed: Tensor, first_row: Tensor, training: bool, inverted: bool) -> Tensor:
    values = _upcast(x)
    if training:
        values = values * keep_mask(seed, first_row, x.shape[0], x.shape[1], p)
        return (values / (1 - p) if inverted else values).to(x.dtype)
    return (values if inverted else values * (1 - p)).to(x.dtype)


def bias_relu_dropout(
    x: Tensor, bias: Tensor, p: float, *, seed: Tensor, first_row: Tensor, training: bool, inverted: bool
) -> Tensor:
    values = _upcast(x)
    y = (values + bias.to(values.dtype)).relu()
    return dropout(y, p, seed=seed, first_row=first_row, training=training, inverted=inverted).to(x.dtype)


def cross_entropy(
    logits: Tensor, labels: Tensor, *, scale: float, ignore_index: int, label_smoothing: float
) -> tuple[Tensor, Tensor]:
    values = _upcast(logits)
    losses = F.cross_entropy(
        values, labels, ignore_index=ignore_index, label_smoothing=label_smoothing, reduction="none"
    )
    # The number of rows is a sum: copying it from the host would synchronise, and no CUDA graph captures a copy.
    valid = labels != ignore_index
    wrong = (missed & valid for missed in misses(values, labels.masked_fill(~valid, 0)))
    counted = (losses.detach(), *wrong, valid)
    return scale * losses.sum(), torch.stack([per_row.double().sum() for per_row in counted])


@torch.no_grad()
def misses(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Two bool vectors: which rows are top-1 errors, and which are top-5 errors (:func:`kernels.cross_entropy`)."""
    own = logits.gather(1, labels.unsqueeze(1))
    better = (~(logits < own)).sum(1) - 1
    # If the label's own score is NaN, `better` is classes - 1, which with five classes or fewer would not be an error.
    wrong = torch.isnan(own.squeeze(1))
    return (better >= 1) | wrong, (better >= 5) | wrong


@torch.no_grad()
def sgd_update_(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    velocities: Sequence[Tensor],
    *,
    learning_rates: Sequence[float] | Tensor,
    weight_decays: Sequence[float] | Tensor,
    momentum: float,
    copies: Sequence[Tensor | None] | None,
) -> None:
    for index, (weight, gradient, velocity) in enumerate(zip(weights, gradients, velocities, strict=True)):
        lr, decay = learning_rates[index], weight_decays[index]
        w, g, v = _upcast(weight), gradient.to(_upcast(weight).dtype), _upcast(velocity)
        new_v = momentum * v - decay * lr * w - lr * g
        new_w = w + new_v
        if isinstance(lr, Tensor):
            new_v, new_w = torch.where(lr == 0, v, new_v), torch.where(lr == 0, w, new_w)
        elif lr == 0:
            new_v, new_w = v, w
        velocity.copy_(new_v)
        weight.copy_(new_w)
        copy = None if copies is None else copies[index]
        if copy is not None:
            copy.copy_(new_w)


def _like(x: Tensor, y: Tensor) -> Tensor:
    """y in x's dtype and memory format."""
    return dense_as(y.to(x.dtype), is_channels_last(x))

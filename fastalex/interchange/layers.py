"""The layers of a network in words, to compare those of a file with those of an architecture.

Weights alone do not tell which network they belong to: BVLC's CaffeNet has the shapes of ``caffe``, but pools before it
normalises.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

from fastalex.errors import ConfigurationError
from fastalex.network.architecture import (
    Activation,
    Architecture,
    ConvBlock,
    LocalResponseNorm,
    MaxPool,
    Step,
    four_sided,
)

RELU = "ReLU"
LINEAR = "fully connected layer"

_SHOWN = 5


def convolution(
    kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], groups: int, dilation: Sequence[int] = ()
) -> str:
    """A convolution; without its channels, which the weights' shapes tell."""
    dilated = "" if all(step == 1 for step in dilation) else f", dilation {_text(dilation)}"
    grouped = f", {groups} groups" if groups != 1 else ""
    return f"convolution {_size(kernel)}, stride {_text(stride)}, padding {_text(padding)}{dilated}{grouped}"


def local_response_norm(size: int, alpha: float, beta: float, k: float) -> str:
    """Local response normalisation across channels; alpha is divided by the size."""
    return f"LRN {size}, alpha {alpha:g}, beta {beta:g}, k {k:g}"


def max_pooling(kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int] = ()) -> str:
    """Max-pooling."""
    padded = f", padding {_text(padding)}" if any(padding) else ""
    return f"max-pooling {_size(kernel)}, stride {_text(stride)}{padded}"


def layers_of(architecture: Architecture) -> list[str]:
    """The layers of an architecture in order, without dropout, which evaluation leaves out."""
    found = []
    for block in architecture.blocks:
        if isinstance(block, ConvBlock):
            kernel, padding = (block.kernel_size,), four_sided(block.padding)
            found.append(convolution(kernel, (block.stride,), padding, block.groups))
            found += [_step(step) for step in block.steps]
        else:
            found += [LINEAR, *([RELU] if block.activation else [])]
    return found


def check_layers(path: Path, found: Sequence[str], architecture: Architecture) -> None:
    """Check that a file holds the layers of an architecture.

    Raises:
        ConfigurationError: it does not; the message names the first five that differ.
    """
    pairs = enumerate(zip_longest(found, layers_of(architecture), fillvalue="nothing"), 1)
    wrong = [f"layer {number} is {one}, wanted {other}" for number, (one, other) in pairs if one != other]
    if wrong:
        more = f"; and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise ConfigurationError(
            f"{path} is another network than {architecture.name}: {'; '.join(wrong[:_SHOWN])}{more}"
        )


def closest(found: Sequence[str], architectures: Sequence[Architecture]) -> Architecture:
    """The architecture with the most layers in common with a file."""

    def common(architecture: Architecture) -> int:
        return sum(one == other for one, other in zip(found, layers_of(architecture), strict=False))

    return max(architectures, key=common)


def _step(step: Step) -> str:
    match step:
        case Activation():
            return RELU
        case LocalResponseNorm(size, alpha, beta, k):
            return local_response_norm(size, alpha, beta, k)
        case MaxPool(kernel, stride):
            return max_pooling((kernel,), (stride,))
        case _:
            return type(step).__name__


def _text(values: Sequence[int]) -> str:
    return "x".join(map(str, values[:1] if len(set(values)) == 1 else values))


def _size(values: Sequence[int]) -> str:
    return _text(values) if len(set(values)) > 1 else "x".join([str(values[0])] * 2) if values else "?"

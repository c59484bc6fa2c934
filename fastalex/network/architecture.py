"""A network as plain data, from the image to the logits, and the shapes that follow from it.

An :class:`Architecture` lists its blocks in order. A block is one layer with weights, followed by its steps:
activation, normalisation, pooling. The published AlexNets differ in the order of the steps: the 2012 run normalises
conv1's signed responses before pooling and ReLU; the paper's text and Caffe apply the ReLU first.

Sources: the paper (Krizhevsky, Sutskever, Hinton 2012); the source code released in 2025
(github.com/computerhistory/AlexNet-Source-Code), whose configuration 145 produced the paper's one-network numbers;
BVLC Caffe's ``models/bvlc_alexnet``; torchvision's ``alexnet``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from fastalex.errors import ConfigurationError

ActivationName = Literal["relu", "tanh"]
Precision = Literal["fp32", "tf32", "bf16"]
"""What modules compute in; :mod:`fastalex.network.precision` says how."""


@dataclass(frozen=True)
class Activation:
    """The network's nonlinearity (:attr:`Architecture.activation`), elementwise."""


@dataclass(frozen=True)
class LocalResponseNorm:
    """Local response normalisation across ``size`` neighbouring channels; ``alpha`` is divided by ``size``.

    The channels are split into ``towers`` equal groups, and each group is normalised separately. The 2012 run had two
    towers, one per GPU.
    """

    size: int = 5
    alpha: float = 1e-4
    beta: float = 0.75
    k: float = 2.0
    towers: int = 1


@dataclass(frozen=True)
class SameMapNorm:
    """Normalisation over a ``size`` x ``size`` window within each channel; ``alpha`` is divided by ``size * size``."""

    size: int = 5
    alpha: float = 1e-3
    beta: float = 0.75
    k: float = 1.0


@dataclass(frozen=True)
class MaxPool:
    """Max pooling. Output sizes are rounded up, so the last window may extend past the edge."""

    kernel_size: int = 3
    stride: int = 2


Step = Activation | LocalResponseNorm | SameMapNorm | MaxPool


@dataclass(frozen=True)
class ConvBlock:
    """A convolution and the steps that follow it, in order.

    ``padding`` is one number for all sides or (top, bottom, left, right). Weights are drawn from a normal distribution
    with standard deviation ``weight_std``, and all biases start at ``bias``. With ``weight_std=None`` both are drawn
    uniformly from ±1/sqrt(fan_in), PyTorch's default.
    """

    name: str
    out_channels: int
    kernel_size: int
    stride: int = 1
    padding: int | tuple[int, int, int, int] = 0
    groups: int = 1
    steps: tuple[Step, ...] = (Activation(),)
    weight_std: float | None = 0.01
    bias: float = 0.0


@dataclass(frozen=True)
class LinearBlock:
    """A fully connected layer with an optional activation and dropout.

    ``dropout`` applies to the layer's input (``before``), to its output (``after``), or nowhere. ``groups`` splits
    inputs and outputs into that many equal groups, each connected only to its counterpart. ``weight_std`` and ``bias``
    are those of :class:`ConvBlock`.
    """

    name: str
    out_features: int
    groups: int = 1
    activation: bool = True
    dropout: Literal["none", "before", "after"] = "after"
    weight_std: float | None = 0.01
    bias: float = 0.0


Block = ConvBlock | LinearBlock


@dataclass(frozen=True)
class Architecture:
    """A whole network.

    Args:
        name: the named architecture that this one is, or is a variation of.
        image_size: side of the square RGB crop, in pixels.
        blocks: conv blocks, then linear blocks; the last one has ``num_classes`` outputs.
        activation: the nonlinearity of every :class:`Activation` step.
        dropout: probability of dropping a feature.
        inverted_dropout: True scales the remaining features by 1/(1-p) in training (Caffe, PyTorch); False multiplies
            all features by 1-p in evaluation instead (2012).
        input_std: per-channel divisor of the images (0-255, mean subtracted); None applies no division.
        prepared_size: required shorter side of the prepared images, in pixels, for networks whose crops would otherwise
            show only parts of objects; None accepts any size.
    """

    name: str
    image_size: int
    blocks: tuple[Block, ...]
    activation: ActivationName = "relu"
    dropout: float = 0.5
    inverted_dropout: bool = False
    input_std: tuple[float, float, float] | None = None
    prepared_size: int | None = None

    @property
    def num_classes(self) -> int:
        """Number of outputs of the last block."""
        last = self.blocks[-1]
        assert isinstance(last, LinearBlock)
        return last.out_features

    @property
    def block_names(self) -> tuple[str, ...]:
        """Names of the blocks in order: conv1, ..., fc8."""
        return tuple(block.name for block in self.blocks)

    @property
    def first_layer_towers(self) -> int:
        """Number of towers of the first layer: 2 if the network of 2012 split it over two GPUs, else 1.

        Kernels are in different towers if different groups of the next layer read them, or if they are normalised
        separately.
        """
        first, second = self.blocks[:2]
        assert isinstance(first, ConvBlock)
        normalised = [step.towers for step in first.steps if isinstance(step, LocalResponseNorm)]
        return max([second.groups, *normalised])


@dataclass(frozen=True)
class BlockShape:
    """Size of one block, for one image.

    ``inputs`` is the number of input channels or features, ``output`` the shape after the last step, ``parameters`` the
    number of weights and biases, ``macs`` the number of multiply-accumulates of the convolution or matrix product.
    """

    name: str
    inputs: int
    output: tuple[int, ...]
    parameters: int
    macs: int


def four_sided(padding: int | tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """Padding as (top, bottom, left, right)."""
    return (padding,) * 4 if isinstance(padding, int) else padding


def block_shapes(architecture: Architecture) -> tuple[BlockShape, ...]:
    """Shape, parameters and multiply-accumulates of every block, in order.

    Raises:
        ConfigurationError: the image shrinks to nothing, or the groups or towers do not divide the channels.
    """
    shapes = []
    shape: tuple[int, ...] = (3, architecture.image_size, architecture.image_size)
    for block in architecture.blocks:
        block_shape = _conv_shape(block, shape) if isinstance(block, ConvBlock) else _linear_shape(block, shape)
        shapes.append(block_shape)
        shape = block_shape.output
    return tuple(shapes)


def _conv_shape(block: ConvBlock, shape: tuple[int, ...]) -> BlockShape:
    channels, height, width = shape
    if channels % block.groups or block.out_channels % block.groups:
        raise ConfigurationError(
            f"{block.name}: {block.groups} groups do not divide {channels} input and {block.out_channels} output "
            "channels; choose another width"
        )
    top, bottom, left, right = four_sided(block.padding)
    height = (height + top + bottom - block.kernel_size) // block.stride + 1
    width = (width + left + right - block.kernel_size) // block.stride + 1
    weights = block.out_channels * channels // block.groups * block.kernel_size**2
    macs = weights * height * width
    for step in block.steps:
        if isinstance(step, MaxPool):
            height = _pooled_size(height, step)
            width = _pooled_size(width, step)
        if isinstance(step, LocalResponseNorm) and block.out_channels % step.towers:
            raise ConfigurationError(f"{block.name}: {step.towers} towers do not divide {block.out_channels} channels")
    if height < 1 or width < 1:
        raise ConfigurationError(
            f"{block.name}: the output would be {height}x{width} pixels; use a larger image or fewer pooling layers"
        )
    output = (block.out_channels, height, width)
    return BlockShape(block.name, channels, output, weights + block.out_channels, macs)


def _pooled_size(size: int, step: MaxPool) -> int:
    return math.ceil((size - step.kernel_size) / step.stride) + 1


def _linear_shape(block: LinearBlock, shape: tuple[int, ...]) -> BlockShape:
    inputs = math.prod(shape)
    if inputs % block.groups or block.out_features % block.groups:
        raise ConfigurationError(
            f"{block.name}: {block.groups} groups do not divide {inputs} inputs and {block.out_features} outputs; "
            "choose another width"
        )
    weights = inputs // block.groups * block.out_features
    return BlockShape(block.name, inputs, (block.out_features,), weights + block.out_features, weights)


def describe_block(block: Block, architecture: Architecture) -> str:
    """A block in one line: layer, steps in order, and the shape of the output for one image.

    ``3 -> 96, 11x11, stride 4, padding (0, 3, 0, 3); 2-tower norm, pool 3/2, relu -> 96x27x27``. The 3/2 is the pooling
    window and its stride. Stride 1, no padding and one group are left out.
    """
    shape = next(shape for shape in block_shapes(architecture) if shape.name == block.name)
    groups = [f"groups {block.groups}"] if block.groups > 1 else []
    if isinstance(block, LinearBlock):
        dropout = [f"dropout {architecture.dropout:g}"] if block.dropout != "none" and architecture.dropout else []
        before, after = (dropout, []) if block.dropout == "before" else ([], dropout)
        steps = ([architecture.activation] if block.activation else []) + after
        layer = [f"{shape.inputs} -> {block.out_features}", *groups]
        return "; ".join(", ".join(part) for part in (before, layer, steps) if part)
    kernel = [f"{block.kernel_size}x{block.kernel_size}"] + ([f"stride {block.stride}"] if block.stride > 1 else [])
    padding = [f"padding {block.padding}"] if any(four_sided(block.padding)) else []
    layer = [f"{shape.inputs} -> {block.out_channels}", *kernel, *padding, *groups]
    steps = [_describe_step(step, architecture) for step in block.steps]
    return f"{'; '.join(', '.join(part) for part in (layer, steps) if part)} -> {'x'.join(map(str, shape.output))}"


def _describe_step(step: Step, architecture: Architecture) -> str:
    match step:
        case Activation():
            return architecture.activation
        case LocalResponseNorm(towers=towers):
            return f"{towers}-tower norm" if towers > 1 else "norm"
        case SameMapNorm():
            return "same-map norm"
        case MaxPool(kernel_size, stride):
            return f"pool {kernel_size}/{stride}"

"""The named architectures: configurations of the 2012 source, and the networks of later publications.

Sources are given with each function; the list is in :mod:`fastalex.network.architecture`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from fastalex.network.architecture import (
    Activation,
    Architecture,
    Block,
    ConvBlock,
    LinearBlock,
    LocalResponseNorm,
    MaxPool,
    SameMapNorm,
)


def krizhevsky() -> Architecture:
    """Configuration 145 of the 2012 source: the run behind the paper's "1 CNN" (40.7 % top-1, 18.2 % top-5 error).

    conv1 maps the 224-pixel crop to 55 x 55: the image, after subtracting the mean, is padded with three rows of zeros
    at the bottom and three columns at the right.
    """
    towers = LocalResponseNorm(towers=2)
    return Architecture(
        name="krizhevsky",
        image_size=224,
        blocks=(
            ConvBlock("conv1", 96, 11, 4, padding=(0, 3, 0, 3), steps=(towers, MaxPool(), Activation())),
            ConvBlock(
                "conv2", 256, 5, padding=2, groups=2, steps=(Activation(), towers, SameMapNorm(), MaxPool()), bias=1.0
            ),
            ConvBlock("conv3", 384, 3, padding=1, weight_std=0.03),
            ConvBlock("conv4", 384, 3, padding=1, groups=2, weight_std=0.03, bias=1.0),
            ConvBlock("conv5", 256, 3, padding=1, groups=2, steps=(MaxPool(), Activation()), weight_std=0.03, bias=1.0),
            *_fully_connected(hidden_bias=1.0),
        ),
    )


def ungrouped() -> Architecture:
    """``krizhevsky`` without groups: every kernel sees all channels of the layer below (62,378,344 parameters)."""

    def ungroup(block: Block) -> Block:
        if not isinstance(block, ConvBlock):
            return block
        steps = tuple(replace(step, towers=1) if isinstance(step, LocalResponseNorm) else step for step in block.steps)
        return replace(block, groups=1, steps=steps)

    architecture = krizhevsky()
    return replace(architecture, name="ungrouped", blocks=tuple(ungroup(block) for block in architecture.blocks))


def half() -> Architecture:
    """Configuration 145-half: the network that fits on one 2012 GPU (59,798,312 parameters).

    One tower of ``krizhevsky``, with conv5 and the fully connected layers at full width, so that the number of
    parameters stays about the same.
    """
    channels = {"conv1": 48, "conv2": 128, "conv3": 192, "conv4": 192, "conv5": 256}

    def halve(block: Block) -> Block:
        return replace(block, out_channels=channels[block.name]) if isinstance(block, ConvBlock) else block

    architecture = ungrouped()
    return replace(architecture, name="half", blocks=tuple(halve(block) for block in architecture.blocks))


def separate() -> Architecture:
    """Configuration 150: two towers that are joined only in the last layer (60,714,408 parameters).

    To make up for the missing connections, each tower has 160 kernels in conv2 and 4096 features in fc6. fc7 has 2048
    features per tower, as in ``krizhevsky``.
    """

    def separate_towers(block: Block) -> Block:
        if isinstance(block, ConvBlock):
            width = 320 if block.name == "conv2" else block.out_channels
            return replace(block, out_channels=width, groups=1 if block.name == "conv1" else 2)
        if block.name == "fc6":
            return replace(block, out_features=8192, groups=2)
        return replace(block, groups=2) if block.name == "fc7" else block

    architecture = krizhevsky()
    return replace(architecture, name="separate", blocks=tuple(separate_towers(block) for block in architecture.blocks))


def paper() -> Architecture:
    """The network as the paper's text describes it.

    LRN over all kernels of a layer, after the ReLU, with the plain sum of squares (alpha is 5 x 1e-4 when divided by
    the size). All weights start with standard deviation 0.01. The text does not say how 224 pixels become 55, but its
    neuron count requires 55, so the padding is taken from the source.
    """
    norm = LocalResponseNorm(alpha=5e-4)
    normalised = (Activation(), norm, MaxPool())
    return Architecture(
        name="paper",
        image_size=224,
        blocks=(
            ConvBlock("conv1", 96, 11, 4, padding=(0, 3, 0, 3), steps=normalised),
            ConvBlock("conv2", 256, 5, padding=2, groups=2, steps=normalised, bias=1.0),
            ConvBlock("conv3", 384, 3, padding=1),
            ConvBlock("conv4", 384, 3, padding=1, groups=2, bias=1.0),
            ConvBlock("conv5", 256, 3, padding=1, groups=2, steps=(Activation(), MaxPool()), bias=1.0),
            *_fully_connected(hidden_bias=1.0),
        ),
    )


def caffe() -> Architecture:
    """BVLC Caffe's ``bvlc_alexnet`` (57.1 % top-1 accuracy): 227 crops, k = 1, biases 0.1, inverted dropout."""
    norm = LocalResponseNorm(k=1.0)
    normalised = (Activation(), norm, MaxPool())
    return Architecture(
        name="caffe",
        image_size=227,
        blocks=(
            ConvBlock("conv1", 96, 11, 4, steps=normalised),
            ConvBlock("conv2", 256, 5, padding=2, groups=2, steps=normalised, bias=0.1),
            ConvBlock("conv3", 384, 3, padding=1),
            ConvBlock("conv4", 384, 3, padding=1, groups=2, bias=0.1),
            ConvBlock("conv5", 256, 3, padding=1, groups=2, steps=(Activation(), MaxPool()), bias=0.1),
            *_fully_connected(hidden_bias=0.1, hidden_std=0.005),
        ),
        inverted_dropout=True,
    )


def owt() -> Architecture:
    """The single-column network of "One weird trick" as in torchvision: 61,100,840 parameters, no LRN.

    Dropout before fc6 and fc7, PyTorch's default initialisation, images divided by torchvision's standard deviations.
    """
    pooled = (Activation(), MaxPool())
    return Architecture(
        name="owt",
        image_size=224,
        blocks=(
            ConvBlock("conv1", 64, 11, 4, padding=2, steps=pooled, weight_std=None),
            ConvBlock("conv2", 192, 5, padding=2, steps=pooled, weight_std=None),
            ConvBlock("conv3", 384, 3, padding=1, weight_std=None),
            ConvBlock("conv4", 256, 3, padding=1, weight_std=None),
            ConvBlock("conv5", 256, 3, padding=1, steps=pooled, weight_std=None),
            LinearBlock("fc6", 4096, dropout="before", weight_std=None),
            LinearBlock("fc7", 4096, dropout="before", weight_std=None),
            LinearBlock("fc8", 1000, activation=False, dropout="none", weight_std=None),
        ),
        inverted_dropout=True,
        input_std=(0.229 * 255, 0.224 * 255, 0.225 * 255),
    )


def four_layer() -> Architecture:
    """A four-layer network for 32-pixel images, for the comparison of activations in the paper's figure 1.

    The paper only gives the number of layers. This is the small CIFAR-10 network of Krizhevsky's cuda-convnet (conv
    layers of 32, 32 and 64 5x5 kernels and one fully connected layer), with max pooling throughout. No dropout, no
    normalisation.
    """
    return Architecture(
        name="four-layer",
        image_size=32,
        prepared_size=32,
        blocks=(
            ConvBlock("conv1", 32, 5, padding=2, steps=(MaxPool(), Activation()), weight_std=1e-4),
            ConvBlock("conv2", 32, 5, padding=2, steps=(Activation(), MaxPool())),
            ConvBlock("conv3", 64, 5, padding=2, steps=(Activation(), MaxPool())),
            LinearBlock("fc4", 1000, activation=False, dropout="none"),
        ),
    )


def _fully_connected(hidden_bias: float, hidden_std: float = 0.01) -> tuple[LinearBlock, ...]:
    """fc6, fc7 and fc8 of 2012."""
    return (
        LinearBlock("fc6", 4096, weight_std=hidden_std, bias=hidden_bias),
        LinearBlock("fc7", 4096, weight_std=hidden_std, bias=hidden_bias),
        LinearBlock("fc8", 1000, activation=False, dropout="none"),
    )


ARCHITECTURES: dict[str, Callable[[], Architecture]] = {
    f.__name__.replace("_", "-"): f for f in (krizhevsky, paper, caffe, owt, ungrouped, half, separate, four_layer)
}
"""Functions that build the named architectures for 1000 classes, by name."""

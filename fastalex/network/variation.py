"""Variations of the named architectures, and :func:`build_architecture`, which applies them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

from fastalex.errors import ConfigurationError
from fastalex.network.architecture import (
    ActivationName,
    Architecture,
    Block,
    ConvBlock,
    LinearBlock,
    LocalResponseNorm,
    MaxPool,
    SameMapNorm,
    block_shapes,
)
from fastalex.network.published import ARCHITECTURES

InitName = Literal["text", "scaled"]


@dataclass(frozen=True)
class Variation:
    """Changes to a named architecture; the defaults change nothing.

    Args:
        width: multiplies the channels of every conv layer and the hidden features (rounded to multiples of 4).
        lrn: False removes every normalisation (configuration 148).
        overlapping: False pools 2x2 with stride 2 and reduces the padding of conv2 and conv5 by one, so that the input
            of fc6 remains 6x6 pixels (configuration 147).
        activation: ``relu`` or ``tanh``; None keeps the architecture's.
        dropout: probability in [0, 1); None keeps the architecture's.
        without: conv layers to remove, with their activations and norms but not their pooling. A single name may be
            given as a string.
        conv6: adds a 3x3 conv layer after the last pooling, as in the pre-trained networks of 2012.
        bottleneck: number of features of an extra linear layer before the last one, which reduces the parameters for
            many classes: configuration 146.2011 had 2 x 1024 before 21,843 classes. None adds no layer.
        init: ``text`` draws all weights with standard deviation 0.01, as in the paper's text; ``scaled`` divides the
            architecture's standard deviations, except the first layer's, by the square root of ``width``, so that
            activations keep their magnitude in narrow networks. None keeps the architecture's.
    """

    width: float = 1.0
    lrn: bool = True
    overlapping: bool = True
    activation: ActivationName | None = None
    dropout: float | None = None
    without: tuple[str, ...] = ()
    conv6: bool = False
    bottleneck: int | None = None
    init: InitName | None = None

    def __post_init__(self) -> None:
        names = (self.without,) if isinstance(self.without, str) else tuple(self.without)
        object.__setattr__(self, "without", names)


def build_architecture(
    name: str = "krizhevsky", num_classes: int = 1000, variation: Variation | None = None
) -> Architecture:
    """The named architecture with ``num_classes`` outputs and the given variation.

    Raises:
        ConfigurationError: unknown name, invalid variation, or a variation that leaves no valid network.
    """
    if name not in ARCHITECTURES:
        raise ConfigurationError(f"unknown architecture {name!r}; choose one of {', '.join(ARCHITECTURES)}")
    if num_classes < 1:
        raise ConfigurationError(f"num_classes must be at least 1, got {num_classes}")
    architecture = _vary(ARCHITECTURES[name](), variation or Variation())
    last = architecture.blocks[-1]
    assert isinstance(last, LinearBlock)
    last = replace(last, out_features=num_classes)
    architecture = replace(architecture, blocks=(*architecture.blocks[:-1], last))
    block_shapes(architecture)  # raises if a size is invalid
    return architecture


def narrow_init_warning(architecture: Architecture, variation: Variation) -> str | None:
    """One-line warning that a narrow network may not learn from its initial weights, or None; ``init="scaled"`` helps.

    The standard deviations are chosen for full width. At a fraction w of the width, each layer but the first scales the
    signal by about sqrt(w). After seven such layers a tenth of it is left at half width, a hundredth at quarter width.
    """
    has_fixed_std = any(block.weight_std is not None for block in architecture.blocks)
    if variation.width >= 0.5 or variation.init == "scaled" or not has_fixed_std:
        return None
    return (
        f"width={variation.width:g}: the initial weights are sized for the full width and too small for this network, "
        "which may not learn"
    )


def _vary(architecture: Architecture, variation: Variation) -> Architecture:
    """Apply all changes, in a fixed order."""
    _check(variation)
    blocks = architecture.blocks
    if variation.conv6:
        blocks = _with_conv6(blocks)
    if variation.bottleneck is not None:
        blocks = _with_bottleneck(blocks, variation.bottleneck)
    if not variation.overlapping:
        blocks = tuple(_without_overlap(block) for block in blocks)
    for name in variation.without:
        blocks = _without_layer(blocks, name)
    if not variation.lrn:
        blocks = tuple(_without_norms(block) for block in blocks)
    if variation.width != 1.0:
        blocks = tuple(_with_width(block, variation.width) for block in blocks)
    if variation.init is not None:
        blocks = _with_init(blocks, variation.init, variation.width)
    dropout = architecture.dropout if variation.dropout is None else variation.dropout
    if not any(isinstance(block, LinearBlock) and block.dropout != "none" for block in blocks):
        dropout = 0.0
    activation = variation.activation or architecture.activation
    return replace(architecture, blocks=blocks, dropout=dropout, activation=activation)


def _check(variation: Variation) -> None:
    if not variation.width > 0:
        raise ConfigurationError(f"width must be positive, got {variation.width}")
    if variation.activation not in (None, "relu", "tanh"):
        raise ConfigurationError(f"unknown activation {variation.activation!r}; choose relu or tanh")
    if variation.dropout is not None and not 0 <= variation.dropout < 1:
        raise ConfigurationError(f"dropout must be at least 0 and less than 1, got {variation.dropout}")
    if variation.bottleneck is not None and variation.bottleneck < 1:
        raise ConfigurationError(f"bottleneck must be at least 1, got {variation.bottleneck}")
    if variation.init not in (None, "text", "scaled"):
        raise ConfigurationError(f"unknown init {variation.init!r}; choose text or scaled")


def _with_conv6(blocks: tuple[Block, ...]) -> tuple[Block, ...]:
    last_conv = max(i for i, block in enumerate(blocks) if isinstance(block, ConvBlock))
    conv5 = blocks[last_conv]
    assert isinstance(conv5, ConvBlock)
    initial: dict[str, Any] = {"weight_std": None} if conv5.weight_std is None else {"weight_std": 0.03, "bias": 1.0}
    conv6 = ConvBlock("conv6", conv5.out_channels, 3, padding=1, **initial)
    return (*blocks[: last_conv + 1], conv6, *blocks[last_conv + 1 :])


def _with_bottleneck(blocks: tuple[Block, ...], features: int) -> tuple[Block, ...]:
    last = blocks[-1]
    assert isinstance(last, LinearBlock)
    bottleneck = LinearBlock("bottleneck", features, activation=False, dropout="none", weight_std=last.weight_std)
    return (*blocks[:-1], bottleneck, last)


def _without_overlap(block: Block) -> Block:
    if not isinstance(block, ConvBlock):
        return block
    steps = tuple(MaxPool(2, 2) if isinstance(step, MaxPool) else step for step in block.steps)
    if block.name in ("conv2", "conv5"):
        assert isinstance(block.padding, int)
        return replace(block, steps=steps, padding=block.padding - 1)
    return replace(block, steps=steps)


def _without_layer(blocks: tuple[Block, ...], name: str) -> tuple[Block, ...]:
    names = [block.name for block in blocks if isinstance(block, ConvBlock)]
    if name not in names:
        raise ConfigurationError(f"no conv layer {name!r} to remove; choose from {', '.join(names)}")
    if len(names) == 1:
        raise ConfigurationError(f"{name} is the last conv layer and cannot be removed")
    index = names.index(name)
    removed = blocks[index]
    assert isinstance(removed, ConvBlock)
    pooling = tuple(step for step in removed.steps if isinstance(step, MaxPool))
    # The next layer now reads the image. It takes over the removed layer's geometry, so that later sizes do not change.
    if index == 0:
        geometry = {key: getattr(removed, key) for key in ("kernel_size", "stride", "padding", "groups")}
        following = blocks[1]
        assert isinstance(following, ConvBlock)
        return (replace(following, **geometry, steps=(*following.steps, *pooling)), *blocks[2:])
    previous = blocks[index - 1]
    assert isinstance(previous, ConvBlock)
    previous = replace(previous, steps=(*previous.steps, *pooling))
    return (*blocks[: index - 1], previous, *blocks[index + 1 :])


def _without_norms(block: Block) -> Block:
    if not isinstance(block, ConvBlock):
        return block
    norms = (LocalResponseNorm, SameMapNorm)
    return replace(block, steps=tuple(step for step in block.steps if not isinstance(step, norms)))


def _with_init(blocks: tuple[Block, ...], init: InitName, width: float) -> tuple[Block, ...]:
    if any(block.weight_std is None for block in blocks):
        raise ConfigurationError(
            f"init={init} needs an architecture that gives standard deviations; this one has none, and its initial "
            "weights fit any width: leave it out"
        )

    def std(block: Block) -> float:
        assert block.weight_std is not None
        if init == "text":
            return 0.01
        return block.weight_std if block is blocks[0] else block.weight_std / math.sqrt(width)

    return tuple(replace(block, weight_std=std(block)) for block in blocks)


def _with_width(block: Block, width: float) -> Block:
    def scale(channels: int) -> int:
        return max(4, round(channels * width / 4) * 4)

    if isinstance(block, ConvBlock):
        return replace(block, out_channels=scale(block.out_channels))
    return replace(block, out_features=scale(block.out_features))

"""TODO."""

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
    """Changes that any named architecture takes; the defaults change nothing.

    Args:
        width: multiplies the channels of every conv layer and the hidden features (rounded to multiples of 4).
        lrn: False removes every normalisation (configuration 148).
        overlapping: False pools 2x2 with stride 2, with conv2's and conv5's padding one less, so that 6x6 pixels still
            enter fc6 (configuration 147).
        activation: ``relu`` or ``tanh``; None keeps the architecture's.
        dropout: probability in [0, 1); None keeps the architecture's.
        without: conv layers to remove, with their activations and norms; their pooling stays behind. A single name is
            one layer: ``"conv3"`` is ``("conv3",)``.
        conv6: adds the 3x3 conv layer over the last pooling that the pre-trained networks of 2012 had.
        bottleneck: features of a linear layer before the last one, which keeps the weights of many classes few:
            configuration 146.2011 had 2 x 1024 before 21,843 classes. None has none.
        init: ``text`` draws all weights with standard deviation 0.01, as the paper's text says; ``scaled`` divides the
            architecture's own standard deviations, but the first layer's, by the square root of ``width``, so that
            signals keep their size in narrow networks. None leaves the architecture's own.
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
        if isinstance(self.without, str):
            object.__setattr__(self, "without", (self.without,))


def build_architecture(
    name: str = "krizhevsky", num_classes: int = 1000, variation: Variation | None = None
) -> Architecture:
    """The named architecture with ``num_classes`` outputs and the given variation.

    Raises:
        ConfigurationError: an unknown name, or a variation that makes no network.
    """
    if name not in ARCHITECTURES:
        raise ConfigurationError(f"unknown architecture {name!r}; choose one of {', '.join(ARCHITECTURES)}")
    if num_classes < 1:
        raise ConfigurationError(f"num_classes is {num_classes}; a classifier needs at least 1")
    architecture = _vary(ARCHITECTURES[name](), variation or Variation())
    last = architecture.blocks[-1]
    assert isinstance(last, LinearBlock)
    last = replace(last, out_features=num_classes)
    architecture = replace(architecture, blocks=(*architecture.blocks[:-1], last))
    block_shapes(architecture)  # raises if the variation makes no network
    return architecture


def narrow_init_warning(architecture: Architecture, variation: Variation) -> str | None:
    """One line that says why a network this narrow hardly starts to learn, or None.

    With standard deviations made for the whole width, each layer but the first passes on about its square root of the
    signal. Through the seven of 2012 a tenth of it is left at half the width, and a hundredth at a quarter.
    """
    own = any(block.weight_std is not None for block in architecture.blocks)
    if variation.width >= 0.5 or variation.init == "scaled" or not own:
        return None
    return (
        f"--width {variation.width:g}: initial weights made for the whole width are too small for so narrow a network, "
        "which may not learn at all; add --init scaled"
    )


def _vary(architecture: Architecture, variation: Variation) -> Architecture:
    if not variation.width > 0:
        raise ConfigurationError(f"width is {variation.width}; it multiplies layer sizes, so it must be positive")
    if variation.activation not in (None, "relu", "tanh"):
        raise ConfigurationError(f"unknown activation {variation.activation!r}; choose relu or tanh")
    if variation.dropout is not None and not 0 <= variation.dropout < 1:
        raise ConfigurationError(f"dropout is {variation.dropout}; a probability in [0, 1) is wanted")
    if variation.init not in (None, "text", "scaled"):
        raise ConfigurationError(f"unknown init {variation.init!r}; choose text or scaled")
    blocks = architecture.blocks
    if variation.conv6:
        blocks = _with_conv6(blocks)
    if variation.bottleneck is not None:
        blocks = _with_bottleneck(blocks, variation.bottleneck)
    if not variation.overlapping:
        blocks = tuple(_non_overlapping(block) for block in blocks)
    for name in variation.without:
        blocks = _without(blocks, name)
    if not variation.lrn:
        blocks = tuple(_without_norms(block) for block in blocks)
    if variation.width != 1.0:
        blocks = tuple(_scaled(block, variation.width) for block in blocks)
    if variation.init is not None:
        blocks = _initialised(blocks, variation.init, variation.width)
    dropout = architecture.dropout if variation.dropout is None else variation.dropout
    if not any(isinstance(block, LinearBlock) and block.dropout != "none" for block in blocks):
        dropout = 0.0
    activation = variation.activation or architecture.activation
    return replace(architecture, blocks=blocks, dropout=dropout, activation=activation)


def _with_conv6(blocks: tuple[Block, ...]) -> tuple[Block, ...]:
    last_conv = max(i for i, block in enumerate(blocks) if isinstance(block, ConvBlock))
    conv5 = blocks[last_conv]
    assert isinstance(conv5, ConvBlock)
    initial: dict[str, Any] = {"weight_std": None} if conv5.weight_std is None else {"weight_std": 0.03, "bias": 1.0}
    conv6 = ConvBlock("conv6", conv5.out_channels, 3, padding=1, **initial)
    return (*blocks[: last_conv + 1], conv6, *blocks[last_conv + 1 :])


def _with_bottleneck(blocks: tuple[Block, ...], features: int) -> tuple[Block, ...]:
    if features < 1:
        raise ConfigurationError(f"bottleneck is {features}; a layer needs at least 1 feature")
    last = blocks[-1]
    assert isinstance(last, LinearBlock)
    bottleneck = LinearBlock("bottleneck", features, activation=False, dropout="none", weight_std=last.weight_std)
    return (*blocks[:-1], bottleneck, last)


def _non_overlapping(block: Block) -> Block:
    if not isinstance(block, ConvBlock):
        return block
    steps = tuple(MaxPool(2, 2) if isinstance(step, MaxPool) else step for step in block.steps)
    if block.name in ("conv2", "conv5"):
        assert isinstance(block.padding, int)
        return replace(block, steps=steps, padding=block.padding - 1)
    return replace(block, steps=steps)


def _without(blocks: tuple[Block, ...], name: str) -> tuple[Block, ...]:
    names = [block.name for block in blocks if isinstance(block, ConvBlock)]
    if name not in names:
        raise ConfigurationError(f"there is no conv layer {name!r} to remove; there are {', '.join(names)}")
    if len(names) == 1:
        raise ConfigurationError(f"{name} is the last conv layer; a network keeps at least one")
    index = names.index(name)
    removed = blocks[index]
    assert isinstance(removed, ConvBlock)
    if index == 0:  # the next layer reads the image in its place, with its geometry, so that later sizes stay
        geometry = {key: getattr(removed, key) for key in ("kernel_size", "stride", "padding", "groups")}
        pooling = tuple(step for step in removed.steps if isinstance(step, MaxPool))
        follower = blocks[1]
        assert isinstance(follower, ConvBlock)
        return (replace(follower, **geometry, steps=(*follower.steps, *pooling)), *blocks[2:])
    before = blocks[index - 1]
    assert isinstance(before, ConvBlock)
    pooling = tuple(step for step in removed.steps if isinstance(step, MaxPool))
    before = replace(before, steps=(*before.steps, *pooling))
    return (*blocks[: index - 1], before, *blocks[index + 1 :])


def _without_norms(block: Block) -> Block:
    if not isinstance(block, ConvBlock):
        return block
    norms = (LocalResponseNorm, SameMapNorm)
    return replace(block, steps=tuple(step for step in block.steps if not isinstance(step, norms)))


def _initialised(blocks: tuple[Block, ...], init: InitName, width: float) -> tuple[Block, ...]:
    if any(block.weight_std is None for block in blocks):
        raise ConfigurationError(f"init {init} changes standard deviations, and this network's weights have none")

    def std(block: Block) -> float:
        assert block.weight_std is not None
        if init == "text":
            return 0.01
        return block.weight_std if block is blocks[0] else block.weight_std / math.sqrt(width)

    return tuple(replace(block, weight_std=std(block)) for block in blocks)


def _scaled(block: Block, width: float) -> Block:
    def scale(channels: int) -> int:
        return max(4, round(channels * width / 4) * 4)

    if isinstance(block, ConvBlock):
        return replace(block, out_channels=scale(block.out_channels))
    return replace(block, out_features=scale(block.out_features))

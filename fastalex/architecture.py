"""What a network is: plain data, from the image to the logits, and the named networks.

An :class:`Architecture` lists its blocks in order. A block is one layer with weights and everything that follows it up
to the next one, because the order of what follows is where the published AlexNets differ: the run of 2012 normalises
conv1's signed responses before pooling and ReLU, the paper's text and Caffe put the ReLU first.

Sources: the paper (Krizhevsky, Sutskever, Hinton 2012); the source code released in 2025
(github.com/computerhistory/AlexNet-Source-Code), whose configuration 145 produced the paper's one-network numbers;
BVLC Caffe's ``models/bvlc_alexnet``; torchvision's ``alexnet``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from fastalex.errors import ConfigurationError

ActivationName = Literal["relu", "tanh"]
InitName = Literal["text", "scaled"]


@dataclass(frozen=True)
class Activation:
    """The network's nonlinearity, elementwise."""


@dataclass(frozen=True)
class LocalResponseNorm:
    """Normalisation across ``size`` neighbouring channels; ``alpha`` is divided by ``size``.

    ``towers`` normalises that many equal runs of channels apart: the halves that sat on two GPUs in 2012.
    """

    size: int = 5
    alpha: float = 1e-4
    beta: float = 0.75
    k: float = 2.0
    towers: int = 1


@dataclass(frozen=True)
class SameMapNorm:
    """Normalisation over a ``size`` x ``size`` window of the same channel; ``alpha`` is divided by ``size``²."""

    size: int = 5
    alpha: float = 1e-3
    beta: float = 0.75
    k: float = 1.0


@dataclass(frozen=True)
class MaxPool:
    """Max-pooling; sizes round up, so the last window may hang over the edge."""

    kernel_size: int = 3
    stride: int = 2


Step = Activation | LocalResponseNorm | SameMapNorm | MaxPool


@dataclass(frozen=True)
class ConvBlock:
    """A convolution and the steps that follow it, in order.

    ``padding`` is one number for all sides or (top, bottom, left, right). ``weight_std`` is the standard deviation of
    the normal initialisation; None draws weights and biases uniformly in ±1/sqrt(fan_in), as PyTorch's layers do.
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
    """A fully connected layer; ``dropout`` says whether it drops its input, its output or nothing.

    ``groups`` divides inputs and outputs into as many equal runs that are connected among themselves only.
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
        name: the architecture that this one is, or was made from.
        image_size: side of the square RGB crop, in pixels.
        blocks: conv blocks, then linear blocks; the last one has ``num_classes`` outputs.
        activation: the nonlinearity of every :class:`Activation` step.
        dropout: probability that a feature is dropped.
        inverted_dropout: True scales kept features by 1/(1-p) in training (Caffe, PyTorch); False leaves training alone
            and multiplies by 1-p in evaluation (2012).
        input_std: the images (0-255, mean subtracted) are divided by this, per channel; None leaves them as they are.
        prepared_size: length of the prepared images' shorter side in pixels, where crops of others would not show
            whole objects; None takes any.
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
        """Outputs of the last block."""
        last = self.blocks[-1]
        assert isinstance(last, LinearBlock)
        return last.out_features

    @property
    def block_names(self) -> tuple[str, ...]:
        """Names of the blocks in order: conv1, ..., fc8."""
        return tuple(block.name for block in self.blocks)


@dataclass(frozen=True)
class BlockShape:
    """What one block computes for one image.

    ``inputs`` is the number of input channels or features, ``output`` the shape after the last step, ``parameters`` the
    weights and biases, ``macs`` the multiply-accumulates of its convolution or matrix product.
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
    """The shapes, parameters and arithmetic of every block, in order.

    Raises:
        ConfigurationError: the image shrinks to nothing, or groups do not divide channels.
    """
    shapes = []
    shape: tuple[int, ...] = (3, architecture.image_size, architecture.image_size)
    for block in architecture.blocks:
        described = _conv_shape(block, shape) if isinstance(block, ConvBlock) else _linear_shape(block, shape)
        shapes.append(described)
        shape = described.output
    return tuple(shapes)


def _conv_shape(block: ConvBlock, shape: tuple[int, ...]) -> BlockShape:
    channels, height, width = shape
    if channels % block.groups or block.out_channels % block.groups:
        raise ConfigurationError(
            f"{block.name}: {block.groups} groups do not divide {channels} input and {block.out_channels} output "
            "channels; choose a width that keeps both even"
        )
    top, bottom, left, right = four_sided(block.padding)
    height = (height + top + bottom - block.kernel_size) // block.stride + 1
    width = (width + left + right - block.kernel_size) // block.stride + 1
    weights = block.out_channels * channels // block.groups * block.kernel_size**2
    macs = weights * height * width
    for step in block.steps:
        if isinstance(step, MaxPool):
            height = _pooled(height, step)
            width = _pooled(width, step)
        if isinstance(step, LocalResponseNorm) and block.out_channels % step.towers:
            raise ConfigurationError(f"{block.name}: {step.towers} towers do not divide {block.out_channels} channels")
    if height < 1 or width < 1:
        raise ConfigurationError(f"{block.name}: its output would be {height}x{width} pixels; the image is too small")
    output = (block.out_channels, height, width)
    return BlockShape(block.name, channels, output, weights + block.out_channels, macs)


def _pooled(size: int, step: MaxPool) -> int:
    return math.ceil((size - step.kernel_size) / step.stride) + 1


def _linear_shape(block: LinearBlock, shape: tuple[int, ...]) -> BlockShape:
    inputs = math.prod(shape)
    if inputs % block.groups or block.out_features % block.groups:
        raise ConfigurationError(
            f"{block.name}: {block.groups} groups do not divide {inputs} inputs and {block.out_features} outputs; "
            "choose a width that keeps both even"
        )
    weights = inputs // block.groups * block.out_features
    return BlockShape(block.name, inputs, (block.out_features,), weights + block.out_features, weights)


# --- the named networks -----------------------------------------------------------------------------------------------


def krizhevsky() -> Architecture:
    """Configuration 145 of the 2012 source: the run behind the paper's "1 CNN" (40.7 % top-1, 18.2 % top-5 error).

    A 224 crop gives 55 x 55 in conv1 because the last window hangs three pixels over: zeros at the right and the
    bottom, after the mean was subtracted.
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
    """``krizhevsky`` as one tower of the same width: each kernel sees all maps below it (62,378,344 parameters)."""

    def joined(block: Block) -> Block:
        if not isinstance(block, ConvBlock):
            return block
        steps = tuple(replace(step, towers=1) if isinstance(step, LocalResponseNorm) else step for step in block.steps)
        return replace(block, groups=1, steps=steps)

    architecture = krizhevsky()
    return replace(architecture, name="ungrouped", blocks=tuple(joined(block) for block in architecture.blocks))


def half() -> Architecture:
    """Configuration 145-half: what fits on one GPU of 2012 (59,798,312 parameters).

    One tower of ``krizhevsky``, but conv5 and the fully connected layers keep their width, so that the number of
    parameters stays about the same.
    """
    channels = {"conv1": 48, "conv2": 128, "conv3": 192, "conv4": 192, "conv5": 256}

    def halved(block: Block) -> Block:
        return replace(block, out_channels=channels[block.name]) if isinstance(block, ConvBlock) else block

    architecture = ungrouped()
    return replace(architecture, name="half", blocks=tuple(halved(block) for block in architecture.blocks))


def separate() -> Architecture:
    """Configuration 150: two towers that meet in the last layer only.

    conv2 has 160 kernels a tower and fc6 4096 features, in place of the connections that are gone. fc7 has 2048 a
    tower, as ``krizhevsky`` does.
    """

    def parted(block: Block) -> Block:
        if isinstance(block, ConvBlock):
            width = 320 if block.name == "conv2" else block.out_channels
            return replace(block, out_channels=width, groups=1 if block.name == "conv1" else 2)
        if block.name == "fc6":
            return replace(block, out_features=8192, groups=2)
        return replace(block, groups=2) if block.name == "fc7" else block

    architecture = krizhevsky()
    return replace(architecture, name="separate", blocks=tuple(parted(block) for block in architecture.blocks))


def paper() -> Architecture:
    """The paper's text taken literally.

    LRN over all kernels of a layer, after the ReLU, with the plain sum of squares (so alpha is 5 x 1e-4 in the divided
    form), standard deviation 0.01 everywhere. The text does not say how 224 pixels become 55; its count of neurons
    needs 55, so the padding is the source's.
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
    """BVLC Caffe's ``bvlc_alexnet`` (57.1 % top-1 accuracy): 227 crop, k = 1, biases 0.1, inverted dropout."""
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
    """The single-column network of "One weird trick" as torchvision has it: 61,100,840 parameters, no LRN.

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
    """A network of four layers for 32-pixel images, as the paper's figure 1 compares activations on.

    The paper says no more about its network than the number of layers. This one is the small CIFAR-10 network of
    Krizhevsky's cuda-convnet (three conv layers of 32, 32 and 64 5x5 kernels, one fully connected one) with max-pooling
    throughout. No dropout, no normalisation.
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
    return (
        LinearBlock("fc6", 4096, weight_std=hidden_std, bias=hidden_bias),
        LinearBlock("fc7", 4096, weight_std=hidden_std, bias=hidden_bias),
        LinearBlock("fc8", 1000, activation=False, dropout="none"),
    )


ARCHITECTURES: dict[str, Callable[[], Architecture]] = {
    f.__name__.replace("_", "-"): f for f in (krizhevsky, paper, caffe, owt, ungrouped, half, separate, four_layer)
}


# --- variations -------------------------------------------------------------------------------------------------------


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


def faint_signal(architecture: Architecture, variation: Variation) -> str | None:
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

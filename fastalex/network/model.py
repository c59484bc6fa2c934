"""The network as PyTorch modules, built from an :class:`~fastalex.network.architecture.Architecture`.

    >>> model = AlexNet("krizhevsky", num_classes=1000)
    >>> logits = model(images)                                  # N x 3 x 224 x 224, 0-255 minus the mean
    >>> named = model.activations(images, ["conv3", "fc7"])     # {"conv3": N x 384 x 13 x 13, "fc7": N x 4096}

Blocks are modules named conv1 ... conv5, fc6 ... fc8 with ``weight`` and ``bias``, so a state dict reads
``conv1.weight``. All heavy work goes through the operators of :mod:`kernels`.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

import kernels
from fastalex.errors import ConfigurationError
from fastalex.network.architecture import (
    Architecture,
    ConvBlock,
    block_shapes,
)
from fastalex.network.blocks import Convolution, Linear
from fastalex.network.deferred_gradients import KeptFactors
from fastalex.network.precision import COMPUTE_DTYPES, Precision
from fastalex.network.variation import Variation, build_architecture


class AlexNet(nn.Module):
    """The network, whole.

    Args:
        architecture: a name (``krizhevsky``, ``paper``, ``caffe``, ``owt``, ...) or an :class:`Architecture`.
        num_classes: outputs of the last layer (ignored where an Architecture is given).
        seed: draws the initial weights; the same seed gives the same weights on any machine. None draws a seed from
            torch's default generator.
        variation: fields of :class:`~fastalex.network.variation.Variation`: ``width``, ``lrn``, ``overlapping``,
            ``activation``, ``dropout``, ``without``, ``conv6``, ``bottleneck``, ``init``.

    Raises:
        ConfigurationError: an unknown name or a variation that makes no network.
        TypeError: an option that there is not, or one beside an Architecture.
    """

    def __init__(
        self,
        architecture: str | Architecture = "krizhevsky",
        num_classes: int = 1000,
        *,
        seed: int | None = None,
        **variation: Any,
    ) -> None:
        super().__init__()
        if isinstance(architecture, str):
            _check_options(variation)
            architecture = build_architecture(architecture, num_classes, Variation(**variation))
        elif variation:
            raise TypeError("options go with a named architecture; vary the Architecture itself instead")
        self.architecture = architecture
        if seed is None:
            seed = int(torch.randint(2**31, ()))
        for block, shape in zip(architecture.blocks, block_shapes(architecture), strict=True):
            module = Convolution if isinstance(block, ConvBlock) else Linear
            self.add_module(block.name, module(block, shape.inputs, architecture, seed))  # type: ignore[arg-type]

    def forward(self, images: Tensor, *, seed: int | Tensor | None = None, first_row: int | Tensor = 0) -> Tensor:
        """Logits, N x num_classes.

        Args:
            images: N x 3 x S x S, any floating dtype, RGB 0-255 minus the mean.
            seed: key of the dropout masks in training; None draws one from torch's default generator.
            first_row: position of ``images[0]`` in the whole batch, so that micro-batches get the rows' own masks.

        Raises:
            ConfigurationError: images of another shape, or in integers.
        """
        if seed is None:
            seed = int(torch.randint(2**62, ())) if self.training else 0
        x = prepare_images(images, self.architecture, self.compute_dtype)
        for block in self.blocks():
            x = block(x, seed, first_row)
        return x

    def stage(self, names: Sequence[str]) -> Stage:
        """Consecutive blocks as one module that shares this network's parameters."""
        return Stage(self, names)

    def activations(self, images: Tensor, names: str | Iterable[str]) -> dict[str, Tensor]:
        """Named activations of one evaluation pass, in the order asked for; a single name is one activation.

        ``conv2`` is the block's output, after its norms and pooling; ``conv2.conv``, ``conv2.activation``,
        ``conv2.norm``, ``conv2.same_map_norm`` and ``conv2.pool`` are its steps as far as it has them (``fc6.linear``,
        ``fc6.activation`` for fully connected blocks). Dropout is off, whatever the module's mode; gradients flow where
        grad mode allows.

        Raises:
            ConfigurationError: a name that this network does not have, or images that it does not take.
        """
        wanted = [names] if isinstance(names, str) else list(names)
        was_training = self.training
        self.eval()
        try:
            x = prepare_images(images, self.architecture, self.compute_dtype)
            found = dict(named_steps(self.blocks(), x))
        finally:
            self.train(was_training)
        unknown = [name for name in wanted if name not in found]
        if unknown:
            raise ConfigurationError(f"no activation named {', '.join(unknown)}; there are {', '.join(found)}")
        return {name: found[name] for name in wanted}

    def blocks(self) -> Iterator[Convolution | Linear]:
        """The blocks in order."""
        for name in self.architecture.block_names:
            yield self.get_submodule(name)  # type: ignore[misc]

    @property
    def compute_dtype(self) -> torch.dtype:
        """The dtype that activations have, from the first block's to the last one's input."""
        return next(self.blocks()).compute_dtype

    def set_precision(self, precision: Precision) -> None:
        """Compute in ``fp32`` or ``tf32``, or in ``bf16`` with fp32 master weights and a bf16 copy beside each.

        tf32 is fp32 whose products a GPU rounds to ten bits of mantissa. That is a setting of the whole process
        (:func:`fastalex.network.precision.configure_libraries`); to the modules it is fp32.

        The copies are made here, from the weights as they are, and follow them when the optimizer updates them
        (:meth:`Stage.compute_copies`) and when a state dict is loaded. The last block computes in fp32 in any case:
        rounded to eight bits, logits tie so often that error rates would change by tenths of a percent.

        Raises:
            ConfigurationError: another precision.
        """
        if precision not in COMPUTE_DTYPES:
            raise ConfigurationError(f"there is no precision {precision!r}; choose from {', '.join(COMPUTE_DTYPES)}")
        *blocks, last = self.blocks()
        for block in blocks:
            block.set_precision(precision)
        last.set_precision("fp32")


def _check_options(given: Iterable[str]) -> None:
    """Each is a field of :class:`Variation`."""
    varied = [field.name for field in fields(Variation)]
    for name in given:
        if name not in varied:
            options = ["num_classes", "seed", *varied]
            near = difflib.get_close_matches(name, options, 1)
            hint = f"did you mean {near[0]!r}? There" if near else "there"
            raise TypeError(f"AlexNet has no option {name!r}; {hint} are {', '.join(options)}")


class Stage(nn.Module):
    """Consecutive blocks of a network: what one pipeline stage, or one device alone, runs.

    The first block's stage takes images, N x 3 x S x S. Between stages, what a convolutional block returns has shape
    N x H x W x C: as channels are last in memory, it is contiguous without a copy, which is what transports want.
    """

    def __init__(self, model: AlexNet, names: Sequence[str]) -> None:
        super().__init__()
        self.architecture = model.architecture
        self.compute_dtype = model.compute_dtype
        self.is_first = names[0] == model.architecture.block_names[0]
        self.is_last = names[-1] == model.architecture.block_names[-1]
        self.watch: Callable[[str, Tensor], None] | None = None  # told every activation's name and value in evaluation
        for name in names:
            self.add_module(name, model.get_submodule(name))
        self.train(model.training)

    def forward(self, x: Tensor, *, seed: int | Tensor = 0, first_row: int | Tensor = 0) -> Tensor:
        """The stage's output for images or for the previous stage's output; see :meth:`AlexNet.forward`."""
        if self.is_first:
            x = prepare_images(x, self.architecture, self.compute_dtype)
        if self.watch is not None and not self.training:
            value = x
            for name, value in named_steps(self.blocks(), x):
                self.watch(name, value)
            return value
        for block in self.blocks():
            x = block(x, seed, first_row)
        return x

    @property
    def input_dtype(self) -> torch.dtype:
        """What the input may be rounded to; images that are still to be divided by a deviation stay in fp32."""
        divided = self.is_first and self.architecture.input_std is not None
        return torch.float32 if divided else self.compute_dtype

    def blocks(self) -> Iterator[Convolution | Linear]:
        """The stage's blocks in order."""
        return iter(self.children())  # type: ignore[arg-type]

    def configure_deferral(self, micro_batches: int | None, *, convolutions: bool) -> None:
        """From now on make each fully connected weight gradient once a step instead of once a micro-batch, and of
        convolutions what need not be made more often, in steps that :meth:`begin_step` begins.

        Args:
            micro_batches: make it within the backward pass of a step's last micro-batch, of so many; None waits for
                :meth:`finish_gradients`, when the input's gradient is long on its way to the stage before.
            convolutions: leave the convolutions' weight gradients to :meth:`finish_gradients`, too. That saves no
                arithmetic, but the stage before gets its gradients sooner.
        """
        for block in self.blocks():
            if isinstance(block, Convolution):
                block.put_off = [] if convolutions else None
                block.kept = kernels.KeptTransforms(micro_batches)
            elif block.spec.groups == 1:
                block.kept = KeptFactors(micro_batches)

    def begin_step(self) -> None:
        """The weights stay as they are until :meth:`finish_gradients`, and what an unfinished step has left is dropped.

        Without it each micro-batch's convolutions are computed for themselves.
        """
        self.discard_deferred()
        for block in self.blocks():
            if isinstance(block, Convolution) and block.kept is not None:
                block.kept.begin()

    def finish_gradients(self) -> None:
        """Add the weight gradients that were put off."""
        for block in self.blocks():
            block.finish_gradient()

    @property
    def has_deferred(self) -> bool:
        """Whether :meth:`finish_gradients` has anything to do."""
        return any(
            bool(block.put_off)
            if isinstance(block, Convolution)
            else block.kept is not None and block.kept.micro_batches is None
            for block in self.blocks()
        )

    def discard_deferred(self) -> None:
        """Forget what an unfinished step has left behind."""
        for block in self.blocks():
            if isinstance(block, Convolution) and block.put_off is not None:
                block.put_off.clear()
            if block.kept is not None:
                block.kept.clear()

    def compute_copies(self) -> dict[nn.Parameter, Tensor]:
        """The low-precision copies by parameter, which the optimizer rewrites in its update; none in fp32."""
        return {parameter: copy for block in self.blocks() for parameter, copy in block.copies().items()}


def named_steps(blocks: Iterable[Convolution | Linear], x: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The names and values of all activations (:meth:`AlexNet.activations`) in evaluation, in order."""
    for block in blocks:
        for step, value in block.steps(x):
            yield f"{block.spec.name}.{step}", value
            x = value
        yield block.spec.name, x


def prepare_images(images: Tensor, architecture: Architecture, dtype: torch.dtype) -> Tensor:
    """Images in the layout, dtype and scale that the first block takes.

    Raises:
        ConfigurationError: not a dense floating-point tensor of shape N x 3 x image_size x image_size.
    """
    size = architecture.image_size
    found = None
    if not isinstance(images, Tensor):
        found = f"this is no tensor but {type(images).__name__}"
    elif images.layout != torch.strided:
        found = f"these have layout {images.layout}: call to_dense() first"
    elif images.dim() != 4 or images.shape[1:] != (3, size, size):
        found = f"these have shape {tuple(images.shape)}"
    elif not images.is_floating_point():
        found = f"these are {images.dtype}: subtract the mean image from images.float()"
    if found is not None:
        raise ConfigurationError(
            f"{architecture.name} takes floating-point images of shape N x 3 x {size} x {size}, RGB 0-255 minus the "
            f"mean; {found}"
        )
    if architecture.input_std is not None:
        images = images / _per_channel(architecture.input_std, images.device)
    return images.to(dtype=dtype, memory_format=torch.channels_last)


@functools.cache
def _per_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    # Kept for good: a copy to a GPU in every step would wait for it, and a CUDA graph cannot record it but reads it.
    with torch.inference_mode(False):
        return torch.tensor(values, device=device).view(1, -1, 1, 1)

"""The network as PyTorch modules, built from an :class:`~fastalex.network.architecture.Architecture`.

    >>> model = AlexNet("krizhevsky", num_classes=1000)
    >>> logits = model(images)                                  # N x 3 x 224 x 224, 0-255 minus the mean
    >>> named = model.activations(images, ["conv3", "fc7"])     # {"conv3": N x 384 x 13 x 13, "fc7": N x 4096}

Blocks are modules named conv1 ... conv5, fc6 ... fc8, each with ``weight`` and ``bias``, so the keys of a state dict
are ``conv1.weight`` and so on. In a hookable network their steps are modules, too: ``conv1.conv``, ``conv1.norm``.
"""

from __future__ import annotations

import difflib
import functools
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from typing import Any, Self

import torch
import torch.fx
from torch import Tensor, nn

from fastalex.errors import ConfigurationError
from fastalex.network.architecture import Architecture, ConvBlock, block_shapes
from fastalex.network.blocks import Convolution, Linear, Watch
from fastalex.network.precision import COMPUTE_DTYPES, Precision
from fastalex.network.variation import Variation, build_architecture

# Images of bytes minus their mean reach far beyond it. Scaled to 0-1 they stay below, also divided by their deviation.
_LARGEST_SCALED = 4.0


class AlexNet(nn.Module):
    """The whole network.

    Args:
        architecture: a name (``krizhevsky``, ``paper``, ``caffe``, ``owt``, ...) or an :class:`Architecture`.
        num_classes: outputs of the last layer (ignored if an Architecture is given).
        seed: seed of the initial weights; the same seed gives the same weights on any machine. None draws a seed from
            torch's default generator.
        hookable: make modules of all steps, as :meth:`hookable` does.
        variation: fields of :class:`~fastalex.network.variation.Variation`: ``width``, ``lrn``, ``overlapping``,
            ``activation``, ``dropout``, ``without``, ``conv6``, ``bottleneck``, ``init``.

    Raises:
        ConfigurationError: an unknown name, or a variation that leaves no valid network.
        TypeError: an unknown option, or options given together with an Architecture.
    """

    _is_range_checked = False

    def __init__(
        self,
        architecture: str | Architecture = "krizhevsky",
        num_classes: int = 1000,
        *,
        seed: int | None = None,
        hookable: bool = False,
        **variation: Any,
    ) -> None:
        super().__init__()
        if isinstance(architecture, str):
            _check_option_names(variation)
            architecture = build_architecture(architecture, num_classes, Variation(**variation))
        elif variation:
            raise TypeError(
                f"{', '.join(variation)} cannot be combined with an Architecture; name the architecture instead"
            )
        self.architecture = architecture
        if seed is None:
            seed = int(torch.randint(2**31, ()))
        for block, shape in zip(architecture.blocks, block_shapes(architecture), strict=True):
            module = Convolution if isinstance(block, ConvBlock) else Linear
            self.add_module(block.name, module(block, shape.inputs, architecture, seed))  # type: ignore[arg-type]
        if hookable:
            for made in self.blocks():
                made.make_hookable()

    def forward(self, images: Tensor, *, seed: int | Tensor | None = None, first_row: int | Tensor = 0) -> Tensor:
        """Logits, N x num_classes.

        In evaluation on a CPU, the first images are checked: a warning says if they look scaled to 0-1 or to unit
        variance.

        Args:
            images: N x 3 x S x S, any floating dtype, RGB 0-255 minus the mean.
            seed: key of the dropout masks in training; None draws one from torch's default generator.
            first_row: index of ``images[0]`` in the whole batch, so that a micro-batch gets the same dropout masks as
                its rows of the whole batch.

        Raises:
            ConfigurationError: images of another shape, or of an integer dtype.
        """
        seed = choose_seed(seed, self.training)
        x = prepare_images(images, self.architecture, self.compute_dtype)
        # First, so that a compiled graph does not depend on the other two.
        if not (torch.compiler.is_compiling() or self.training or self._is_range_checked):
            self._check_range(images, stacklevel=5)  # below it are this function, two of nn.Module's, and the caller
        for block in self.blocks():
            x = block(x, seed, first_row)
        return x

    def hookable(self) -> Self:
        """A network whose steps are modules, with this network's parameters, precision and mode.

        The modules have the names that :meth:`activations` uses: ``conv1.conv``, ``conv1.norm``, ``conv1.pool``,
        ``conv1.activation``, ``conv2.same_map_norm``, ``fc6.linear``, ``fc6.activation``, ``fc6.dropout``, ... They run
        one after the other, without fusion, so results differ by rounding and take longer. Forward hooks on them see
        what :meth:`activations` returns, and ``torch.fx`` traces each of them as one node.

        Both networks have the same parameter objects: training or loading weights changes both. Hooks are not copied. A
        later :meth:`set_precision` changes one of the two.
        """
        with torch.device("meta"):  # allocates nothing: all parameters are replaced
            twin = type(self)(self.architecture, seed=0, hookable=True)
        for block, own in zip(twin.blocks(), self.blocks(), strict=True):
            block.share_parameters(own)
        twin.training = self.training
        return twin

    def stage(self, names: Sequence[str]) -> Stage:
        """Consecutive blocks as one module that shares this network's parameters."""
        return Stage(self, names)

    def activations(self, images: Tensor, names: str | Iterable[str]) -> dict[str, Tensor]:
        """Named activations of one evaluation pass, in the given order; a single name may be given as a string.

        ``conv2`` is the output of the block, after normalisation and pooling. ``conv2.conv``, ``conv2.activation``,
        ``conv2.norm``, ``conv2.same_map_norm`` and ``conv2.pool`` are its steps, as far as it has them; fully connected
        blocks have ``fc6.linear``, ``fc6.activation`` and ``fc6.dropout``. Dropout is off in any mode. Gradients flow
        if grad mode is enabled. Hooks on the blocks are called, once each, and what they return takes the place of the
        activation. The first images are checked as in :meth:`forward`, also on a GPU.

        Raises:
            ConfigurationError: an unknown name, or images that the network does not accept.
        """
        wanted = [names] if isinstance(names, str) else list(names)
        was_training = self.training
        self.eval()
        try:
            x = prepare_images(images, self.architecture, self.compute_dtype)
            if not (torch.compiler.is_compiling() or self._is_range_checked):
                self._check_range(images, stacklevel=3, may_wait=True)
            found: dict[str, Tensor] = {}
            run_watched(self.blocks(), x, found.__setitem__)
        finally:
            self.train(was_training)
        unknown = [name for name in wanted if name not in found]
        if unknown:
            near = difflib.get_close_matches(unknown[0], found, 3)
            hint = f"did you mean {' or '.join(near)}? Choose" if near else "choose"
            hint = "separate names by spaces; choose" if "," in unknown[0] else hint
            raise ConfigurationError(f"no activation named {', '.join(unknown)}; {hint} from {', '.join(found)}")
        return {name: found[name] for name in wanted}

    def blocks(self) -> Iterator[Convolution | Linear]:
        """The blocks in order."""
        for name in self.architecture.block_names:
            yield self.get_submodule(name)  # type: ignore[misc]

    @property
    def compute_dtype(self) -> torch.dtype:
        """The dtype of the activations, from the input of the first block to the input of the last."""
        return next(self.blocks()).compute_dtype

    def set_precision(self, precision: Precision) -> None:
        """Compute in ``fp32`` or ``tf32``, or in ``bf16`` with fp32 master weights and a bf16 copy of each.

        In tf32 a GPU rounds the factors of fp32 products to ten bits of mantissa. It is a process-wide setting
        (:func:`fastalex.network.precision.configure_libraries`); the modules treat it as fp32.

        The copies are created here from the current weights. The optimizer updates them with the weights
        (:meth:`Stage.compute_copies`), and so does loading a state dict. The last block always computes in fp32: logits
        rounded to eight bits tie so often that error rates would change by tenths of a percent.

        Raises:
            ConfigurationError: an unknown precision.
        """
        if precision not in COMPUTE_DTYPES:
            raise ConfigurationError(f"unknown precision {precision!r}; choose from {', '.join(COMPUTE_DTYPES)}")
        *blocks, last = self.blocks()
        for block in blocks:
            block.set_precision(precision)
        last.set_precision("fp32")

    def extra_repr(self) -> str:
        """Architecture, input and size."""
        size, parameters = self.architecture.image_size, sum(parameter.numel() for parameter in self.parameters())
        return f"{self.architecture.name}: images 3 x {size} x {size}, {parameters:,} parameters"

    def _check_range(self, images: Tensor, stacklevel: int, may_wait: bool = False) -> None:
        """Warn once if images look scaled to 0-1 or to unit variance; images of zeros decide nothing.

        Args:
            may_wait: check images on a GPU, too, which waits for it.
        """
        if not isinstance(images, Tensor) or torch.jit.is_tracing():
            return
        if not (images.is_cpu or (may_wait and images.is_cuda and not torch.cuda.is_current_stream_capturing())):
            return
        try:
            low, high = (value.item() for value in images.detach().aminmax())
        except RuntimeError:  # no image, or no values: fake tensors, and those that a tracer has wrapped
            return
        largest = max(abs(low), abs(high))
        if largest == 0:
            return
        self._is_range_checked = True
        if largest <= _LARGEST_SCALED:
            warnings.warn(
                f"the images range from {low:.3g} to {high:.3g}, as if scaled to 0-1 or to unit variance; "
                f"{self.architecture.name} takes RGB 0-255 minus the mean: multiply by 255 and subtract the mean image",
                stacklevel=stacklevel,
            )


def _check_option_names(given: Iterable[str]) -> None:
    """Raise TypeError for names that are not fields of :class:`Variation`."""
    varied = [field.name for field in fields(Variation)]
    for name in given:
        if name not in varied:
            options = ["num_classes", "seed", "hookable", *varied]
            near = difflib.get_close_matches(name, options, 1)
            hint = f"did you mean {near[0]!r}? Choose" if near else "choose"
            raise TypeError(f"AlexNet has no option {name!r}; {hint} from {', '.join(options)}")


class Stage(nn.Module):
    """Consecutive blocks of a network: what one pipeline stage, or a single device, runs.

    The first stage takes images, N x 3 x S x S. Between stages, activations are N x C x H x W in channels_last after a
    convolutional block, N x F after a fully connected one.

    Attributes:
        watch: called with the name and value of every activation in evaluation, if set.
    """

    def __init__(self, model: AlexNet, names: Sequence[str]) -> None:
        super().__init__()
        self.architecture = model.architecture
        self.compute_dtype = model.compute_dtype
        self.is_first = names[0] == model.architecture.block_names[0]
        self.is_last = names[-1] == model.architecture.block_names[-1]
        self.watch: Watch | None = None
        for name in names:
            self.add_module(name, model.get_submodule(name))
        self.train(model.training)

    def forward(self, x: Tensor, *, seed: int | Tensor = 0, first_row: int | Tensor = 0) -> Tensor:
        """The output for images or for the previous stage's output; see :meth:`AlexNet.forward`."""
        if self.is_first:
            x = prepare_images(x, self.architecture, self.compute_dtype)
        if self.watch is not None and not self.training:
            return run_watched(self.blocks(), x, self.watch)
        for block in self.blocks():
            x = block(x, seed, first_row)
        return x

    @property
    def input_dtype(self) -> torch.dtype:
        """The dtype that the input may be rounded to: fp32 for images to be divided by ``input_std``, else
        :attr:`compute_dtype`."""
        divides = self.is_first and self.architecture.input_std is not None
        return torch.float32 if divides else self.compute_dtype

    def blocks(self) -> Iterator[Convolution | Linear]:
        """The blocks in order."""
        return iter(self.children())  # type: ignore[arg-type]

    def configure_deferral(self, micro_batches: int | None, *, convolutions: bool) -> None:
        """Defer weight gradients from now on.

        Fully connected weight gradients are computed once per step instead of once per micro-batch. Convolutions share
        per-step work between micro-batches, within steps that :meth:`begin_step` starts.

        Args:
            micro_batches: compute these within the backward pass of the last of this many micro-batches; None leaves
                them to :meth:`finish_gradients`, after the input's gradient has been sent to the previous stage.
            convolutions: leave all weight gradients of convolutions to :meth:`finish_gradients`, too. This saves no
                arithmetic, but the previous stage gets its gradients sooner.
        """
        for block in self.blocks():
            block.configure_deferral(micro_batches, convolutions=convolutions)

    def begin_step(self) -> None:
        """Start a step: the weights must not change until :meth:`finish_gradients`. Drops an unfinished step's
        leftovers.

        Without it, convolutions share no work between micro-batches.
        """
        for block in self.blocks():
            if block.gradient_sink is not None:
                block.gradient_sink.begin_step()

    def finish_gradients(self) -> None:
        """Add all deferred weight gradients to the parameters' gradients, and end the step."""
        for block in self.blocks():
            block.finish_gradient()

    @property
    def has_deferred(self) -> bool:
        """Whether any deferred weight gradient waits for :meth:`finish_gradients`."""
        return any(block.gradient_sink is not None and block.gradient_sink.has_deferred for block in self.blocks())

    def discard_deferred(self) -> None:
        """Drop all deferred weight gradients, and end the step."""
        for block in self.blocks():
            if block.gradient_sink is not None:
                block.gradient_sink.discard()

    def compute_copies(self) -> dict[nn.Parameter, Tensor]:
        """The low-precision copies by parameter, for the optimizer to update; empty in fp32."""
        return {parameter: copy for block in self.blocks() for parameter, copy in block.copies().items()}


def run_watched(blocks: Iterable[Convolution | Linear], x: Tensor, watch: Watch) -> Tensor:
    """The output of the blocks in evaluation; ``watch`` gets name and value of every activation, in order.

    See :meth:`AlexNet.activations`.
    """
    for block in blocks:
        prefix = f"{block.spec.name}."

        def watch_step(name: str, value: Tensor, prefix: str = prefix) -> None:
            watch(prefix + name, value)

        x = block(x, watch=watch_step)
        watch(block.spec.name, x)
    return x


def choose_seed(seed: int | Tensor | None, training: bool) -> int | Tensor:
    """The key of the dropout masks: the given one, or in training one from torch's default generator."""
    if seed is not None:
        return seed
    return int(torch.randint(2**62, ())) if training else 0


def prepare_images(images: Tensor, architecture: Architecture, dtype: torch.dtype) -> Tensor:
    """Images in the memory format, dtype and scale that the first block takes.

    Raises:
        ConfigurationError: not a dense floating-point tensor of shape N x 3 x image_size x image_size.
    """
    return check_and_convert(images, architecture.name, architecture.image_size, architecture.input_std, dtype)


def check_and_convert(
    images: Tensor, name: str, size: int, input_std: tuple[float, float, float] | None, dtype: torch.dtype
) -> Tensor:
    """:func:`prepare_images` with plain arguments, which ``torch.fx`` can write into a graph."""
    found = None
    if not isinstance(images, Tensor):
        found = f"a {type(images).__name__}"
    elif images.layout != torch.strided:
        found = f"layout {images.layout}; call to_dense() first"
    elif images.dim() != 4 or images.shape[1:] != (3, size, size):
        found = f"shape {tuple(images.shape)}"
    elif not images.is_floating_point():
        found = f"{images.dtype}; subtract the mean image from images.float()"
    if found is not None:
        raise ConfigurationError(
            f"{name} takes floating-point images of shape N x 3 x {size} x {size}, RGB 0-255 minus the "
            f"mean; got {found}"
        )
    if input_std is not None:
        precise = torch.promote_types(images.dtype, torch.float32)
        images = images / _per_channel(input_std, images.device, precise)
    return images.to(dtype=dtype, memory_format=torch.channels_last)


# One node each in a graph of torch.fx: what they look at is known at run time only.
torch.fx.wrap("check_and_convert")
torch.fx.wrap("choose_seed")


@functools.cache
def _per_channel(values: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    # Cached: copying to a GPU in every step would wait for it, and a CUDA graph can read the tensor but not create it.
    with torch.inference_mode(False):
        return torch.tensor(values, device=device, dtype=dtype).view(1, -1, 1, 1)

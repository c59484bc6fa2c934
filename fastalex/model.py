"""The network as PyTorch modules, built from an :class:`~fastalex.architecture.Architecture`.

    >>> model = AlexNet("krizhevsky", num_classes=1000)
    >>> logits = model(images)                                  # N x 3 x 224 x 224, 0-255 minus the mean
    >>> named = model.activations(images, ["conv3", "fc7"])     # {"conv3": N x 384 x 13 x 13, "fc7": N x 4096}

Blocks are modules named conv1 ... conv5, fc6 ... fc8 with ``weight`` and ``bias``, so a state dict reads
``conv1.weight``. All heavy work goes through the operators of :mod:`kernels`.
"""

from __future__ import annotations

import difflib
import functools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import kernels
from fastalex.architecture import (
    Activation,
    Architecture,
    Block,
    ConvBlock,
    LinearBlock,
    LocalResponseNorm,
    MaxPool,
    SameMapNorm,
    Step,
    Variation,
    block_shapes,
    build_architecture,
    four_sided,
)
from fastalex.errors import ConfigurationError
from kernels.autograd import no_double_backward

Precision = Literal["fp32", "tf32", "bf16"]
COMPUTE_DTYPES: dict[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
}


class AlexNet(nn.Module):
    """The network, whole.

    Args:
        architecture: a name (``krizhevsky``, ``paper``, ``caffe``, ``owt``, ...) or an :class:`Architecture`.
        num_classes: outputs of the last layer (ignored where an Architecture is given).
        seed: draws the initial weights; the same seed gives the same weights on any machine. None draws a seed from
            torch's default generator.
        variation: fields of :class:`~fastalex.architecture.Variation`: ``width``, ``lrn``, ``overlapping``,
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
        (:func:`fastalex.precision.configure_libraries`); to the modules it is fp32.

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
        elif x.dim() == 4:
            x = x.permute(0, 3, 1, 2)
        if self.watch is not None and not self.training:
            value = x
            for name, value in named_steps(self.blocks(), x):
                self.watch(name, value)
            return value if self.is_last else _to_send(value)
        for block in self.blocks():
            x = block(x, seed, first_row)
        return x if self.is_last else _to_send(x)

    @property
    def input_dtype(self) -> torch.dtype:
        """What the input may be rounded to; images that are still to be divided by a deviation stay in fp32."""
        divided = self.is_first and self.architecture.input_std is not None
        return torch.float32 if divided else self.compute_dtype

    def blocks(self) -> Iterator[Convolution | Linear]:
        """The stage's blocks in order."""
        return iter(self.children())  # type: ignore[arg-type]

    def defer_weight_gradients(self, micro_batches: int | None = None, *, convolutions: bool = False) -> None:
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
        self.drop_kept()
        for block in self.blocks():
            if isinstance(block, Convolution) and block.kept is not None:
                block.kept.begin()

    def finish_gradients(self) -> None:
        """Add the weight gradients that were put off."""
        for block in self.blocks():
            block.finish_gradient()

    def has_put_off(self) -> bool:
        """Whether :meth:`finish_gradients` has anything to do."""
        return any(
            bool(block.put_off)
            if isinstance(block, Convolution)
            else block.kept is not None and block.kept.micro_batches is None
            for block in self.blocks()
        )

    def drop_kept(self) -> None:
        """Forget what an unfinished step has left behind."""
        for block in self.blocks():
            if isinstance(block, Convolution) and block.put_off is not None:
                block.put_off.clear()
            if block.kept is not None:
                block.kept.clear()

    def compute_copies(self) -> dict[nn.Parameter, Tensor]:
        """The low-precision copies by parameter, which the optimizer rewrites in its update; none in fp32."""
        return {parameter: copy for block in self.blocks() for parameter, copy in block.copies().items()}


def _to_send(x: Tensor) -> Tensor:
    return (x.permute(0, 2, 3, 1) if x.dim() == 4 else x).contiguous()


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


class _WeightedBlock(nn.Module):
    """A weight, a bias, and how both are initialised and computed with."""

    weight: nn.Parameter
    bias: nn.Parameter
    weight_copy: Tensor | None
    bias_copy: Tensor | None

    def __init__(self, spec: Block, weight_shape: tuple[int, ...], architecture: Architecture, seed: int) -> None:
        super().__init__()
        self.architecture = architecture
        # A generator of its own per block: the weights do not depend on which stage, or which machine, draws them.
        kind = int(isinstance(spec, LinearBlock))  # conv6 and fc6 draw apart
        generator = torch.Generator().manual_seed(kernels.philox.derive_seed(seed, kind, _ordinal(spec.name)))
        if spec.weight_std is None:
            bound = 1 / math.sqrt(math.prod(weight_shape[1:]))
            weight = torch.empty(weight_shape).uniform_(-bound, bound, generator=generator)
            bias = torch.empty(weight_shape[0]).uniform_(-bound, bound, generator=generator)
        else:
            weight = torch.empty(weight_shape).normal_(0.0, spec.weight_std, generator=generator)
            bias = torch.full(weight_shape[:1], spec.bias)
        if weight.dim() == 4:
            weight = weight.contiguous(memory_format=torch.channels_last)
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(bias)
        self.register_buffer("weight_copy", None, persistent=False)
        self.register_buffer("bias_copy", None, persistent=False)
        self.register_load_state_dict_post_hook(_refresh_copies)

    @property
    def compute_dtype(self) -> torch.dtype:
        """The dtype that this block computes in."""
        return self.weight.dtype if self.weight_copy is None else self.weight_copy.dtype

    @torch.no_grad()
    def set_precision(self, precision: Precision) -> None:
        """Make the copies that ``precision`` needs, or drop them."""
        dtype = COMPUTE_DTYPES[precision]
        same = dtype == self.weight.dtype
        self.weight_copy = None if same else self.weight.detach().to(dtype)
        self.bias_copy = None if same else self.bias.detach().to(dtype)

    def copies(self) -> dict[nn.Parameter, Tensor]:
        """The low-precision copies by parameter; empty in fp32."""
        if self.weight_copy is None or self.bias_copy is None:
            return {}
        return {self.weight: self.weight_copy, self.bias: self.bias_copy}

    def compute_parameters(self) -> tuple[Tensor, Tensor]:
        """Weight and bias in the compute dtype, differentiable with respect to the master parameters."""
        if self.weight_copy is None:
            return self.weight, self.bias
        return _InPlaceOf.apply(self.weight, self.weight_copy), _InPlaceOf.apply(self.bias, self.bias_copy)


@torch.no_grad()
def _refresh_copies(block: nn.Module, _: Any) -> None:
    assert isinstance(block, _WeightedBlock)
    for parameter, copy in block.copies().items():
        copy.copy_(parameter)


class _InPlaceOf(torch.autograd.Function):
    """The ready-made low-precision copy stands in for the master weight; its gradient is the master's.

    A cast in the forward pass would read the fp32 weights again for every micro-batch: 244 MB for the whole network.
    """

    @staticmethod
    def forward(ctx: Any, master: Tensor, copy: Tensor) -> Tensor:
        ctx.dtype = master.dtype
        # A put-off gradient is None; as the zeros that autograd makes of it, it would be cast and added all the same.
        ctx.set_materialize_grads(False)
        return copy.view_as(copy)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, None]:
        (gradient,) = gradients
        return None if gradient is None else gradient.to(ctx.dtype), None


class Convolution(_WeightedBlock):
    """A conv layer with the steps that follow it.

    Neighbouring steps are handed to the fused operators of :mod:`kernels`: convolution + ReLU, and
    bias + ReLU + LRN + pooling in the orders that the networks of 2012 use.

    Attributes:
        put_off: what makes the weight's gradients of the micro-batches so far, where they are put off to the end of
            the step.
        kept: what the micro-batches of a step share, if anything.
    """

    put_off: list[Callable[[], Tensor | None]] | None = None
    kept: kernels.KeptTransforms | None = None

    def __init__(self, spec: ConvBlock, in_channels: int, architecture: Architecture, seed: int) -> None:
        kernel = (spec.kernel_size, spec.kernel_size)
        super().__init__(spec, (spec.out_channels, in_channels // spec.groups, *kernel), architecture, seed)
        self.spec = spec

    def forward(self, x: Tensor, seed: int | Tensor = 0, first_row: int | Tensor = 0) -> Tensor:
        weight, bias = self.compute_parameters()
        steps = self.spec.steps
        relu = self.architecture.activation == "relu"
        match steps:
            case (LocalResponseNorm() as norm, MaxPool() as pool, Activation(), *rest) if relu and self._fits(pool, x):
                x = _norm_and_pool(self._convolve(x, weight, None), norm, pool, bias, "after")
            case (Activation(), LocalResponseNorm() as norm, MaxPool() as pool, *rest) if relu and self._fits(pool, x):
                x = _norm_and_pool(self._convolve(x, weight, None), norm, pool, bias, "before")
            case (Activation(), *rest) if relu:
                x = self._convolve(x, weight, bias, relu=True)
            case (*rest,):
                x = self._convolve(x, weight, bias)
        for step in rest:
            x = self._run(step, x)
        return x

    def steps(self, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Each step's name and value, unfused."""
        x = self._convolve(x, *self.compute_parameters())
        yield "conv", x
        names = {Activation: "activation", LocalResponseNorm: "norm", SameMapNorm: "same_map_norm", MaxPool: "pool"}
        seen: Counter[str] = Counter()
        for step in self.spec.steps:
            x = self._run(step, x)
            name = names[type(step)]
            seen[name] += 1
            yield name if seen[name] == 1 else f"{name}{seen[name]}", x

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None, *, relu: bool = False) -> Tensor:
        spec = self.spec
        padding = four_sided(spec.padding)
        shares = self.kept is not None and self.kept.in_use and torch.is_grad_enabled()
        return kernels.conv2d_relu(
            x,
            weight,
            bias,
            spec.stride,
            padding,
            spec.groups,
            relu=relu,
            put_off=self.put_off,
            kept=self.kept if shares else None,
        )

    @torch.no_grad()
    def finish_gradient(self) -> None:
        """Add the weight gradients that were put off, in the order of their backward passes, and what was kept."""
        if self.put_off:
            self.add_gradients(self.put_off)
        if self.kept is not None:
            self._add(self.kept.take())

    @torch.no_grad()
    def add_gradients(self, put_off: list[Callable[[], Tensor | None]]) -> None:
        """Add what was put off, and empty the list; to what is kept, if anything is."""
        for gradient in put_off:
            self._add(gradient())
        put_off.clear()

    def _add(self, gradient: Tensor | None) -> None:
        if gradient is not None:
            made = gradient.to(self.weight.dtype)
            self.weight.grad = made if self.weight.grad is None else self.weight.grad.add_(made)

    def _fits(self, pool: MaxPool, x: Tensor) -> bool:
        """Whether pooling windows end with the convolution's output, as the fused operator's must."""
        spec = self.spec
        top, bottom, left, right = four_sided(spec.padding)
        for size, padding in ((x.shape[2], top + bottom), (x.shape[3], left + right)):
            convolved = (size + padding - spec.kernel_size) // spec.stride + 1
            if (convolved - pool.kernel_size) % pool.stride:
                return False
        return True

    def _run(self, step: Step, x: Tensor) -> Tensor:
        match step:
            case Activation():
                return _activate(x, self.architecture)
            case LocalResponseNorm(size, alpha, beta, k, towers):
                return kernels.local_response_norm(x, size, alpha, beta, k, groups=towers)
            case SameMapNorm(size, alpha, beta, k):
                return kernels.same_map_norm(x, size, alpha, beta, k)
            case MaxPool(kernel_size, stride):
                return kernels.max_pool2d(x, kernel_size, stride, ceil_mode=True)


class KeptFactors:
    """Inputs and output gradients of one fully connected layer, of the micro-batches since its last weight gradient.

    A weight gradient is a sum of products over rows. Made for every micro-batch apart, each product reads and writes
    the whole gradient (fc6: 151 MB in fp32); made once of all rows, it is written once.

    Args:
        micro_batches: after so many the gradient is made; None leaves that to :meth:`add_product_to`.
    """

    def __init__(self, micro_batches: int | None = None) -> None:
        self.micro_batches = micro_batches
        self._inputs: list[Tensor] = []
        self._gradients: list[Tensor] = []
        self._memory: Tensor | None = None

    def add(self, inputs: Tensor, gradients: Tensor) -> Tensor | None:
        """Keep a micro-batch's rows (N x in, N x out); return the weight gradient if these are the last ones."""
        self._inputs.append(inputs)
        self._gradients.append(gradients)
        if len(self._inputs) != self.micro_batches:
            return None
        inputs, gradients = self._take()
        return gradients.t() @ inputs

    @torch.no_grad()
    def add_product_to(self, weight: nn.Parameter) -> None:
        """Add the gradient of all rows kept to ``weight.grad``, in the order of their backward passes."""
        if not self._inputs:
            return
        inputs, gradients = self._take()
        if weight.grad is not None:
            weight.grad += gradients.t() @ inputs
            return
        # Last step's memory again: on a CPU, fresh pages for a gradient of this size cost more than the product.
        if self._memory is None or self._memory.device != weight.device:
            self._memory = torch.empty_like(weight)
        if inputs.dtype == weight.dtype:
            torch.mm(gradients.t(), inputs, out=self._memory)
        elif weight.is_cuda:  # sums in fp32 go to memory as they are, not rounded and widened again in a second pass
            torch.ops.aten.mm.dtype_out(gradients.t(), inputs, weight.dtype, out=self._memory)
        else:
            self._memory.copy_(gradients.t() @ inputs)
        weight.grad = self._memory

    def clear(self) -> None:
        """Drop what is kept."""
        self._inputs.clear()
        self._gradients.clear()

    def _take(self) -> tuple[Tensor, Tensor]:
        inputs, gradients = torch.cat(self._inputs), torch.cat(self._gradients)
        self.clear()
        return inputs, gradients


class _DeferredLinear(torch.autograd.Function):
    """x W' + b, whose backward pass leaves the weight's gradient to :class:`KeptFactors`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, kept: KeptFactors) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.kept = kept
        return _linear(x, weight, bias)

    @staticmethod
    @no_double_backward("a fully connected layer")
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        (gradient,) = gradients
        x, weight = ctx.saved_tensors
        of_x = _linear(gradient, weight.t(), None) if ctx.needs_input_grad[0] else None
        of_weight = ctx.kept.add(x, gradient) if ctx.needs_input_grad[1] else None
        of_bias = gradient.sum(0) if ctx.needs_input_grad[2] else None
        return of_x, of_weight, of_bias, None


class Linear(_WeightedBlock):
    """A fully connected layer with its activation and dropout. Takes N x F, or N x C x H x W, which it flattens."""

    kept: KeptFactors | None = None

    def __init__(self, spec: LinearBlock, in_features: int, architecture: Architecture, seed: int) -> None:
        super().__init__(spec, (spec.out_features, in_features // spec.groups), architecture, seed)
        self.spec = spec

    def forward(self, x: Tensor, seed: int | Tensor = 0, first_row: int | Tensor = 0) -> Tensor:
        weight, bias = self.compute_parameters()
        x = x.flatten(1).to(weight.dtype)
        spec, architecture = self.spec, self.architecture
        # Philox separates neighbouring keys completely, so a layer's own key is the step's plus the layer's number.
        drop: dict[str, Any] = {
            "p": architecture.dropout,
            "seed": seed + _ordinal(spec.name),
            "first_row": first_row,
            "training": self.training,
            "inverted": architecture.inverted_dropout,
        }
        if spec.dropout == "before":
            x = kernels.dropout(x, **drop)
        if spec.dropout == "after" and spec.activation and architecture.activation == "relu":
            return kernels.bias_relu_dropout(self._multiply(x, weight, None), bias, **drop)
        x = self._multiply(x, weight, bias)
        if spec.activation:
            x = _activate(x, architecture)
        if spec.dropout == "after":
            x = kernels.dropout(x, **drop)
        return x

    def finish_gradient(self) -> None:
        """Add the weight gradient of what was kept, unless a backward pass does."""
        if self.kept is not None and self.kept.micro_batches is None:
            self.kept.add_product_to(self.weight)

    def _multiply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.spec.groups > 1:
            parts = zip(x.chunk(self.spec.groups, 1), weight.chunk(self.spec.groups), strict=True)
            product = torch.cat([F.linear(inputs, weights) for inputs, weights in parts], 1)
            return product if bias is None else product + bias
        if self.kept is None:
            return _linear(x, weight, bias)
        return _DeferredLinear.apply(x, weight, bias, self.kept)

    def steps(self, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Each step's name and value in evaluation, unfused."""
        spec, architecture = self.spec, self.architecture
        scale = 1.0 if architecture.inverted_dropout or spec.dropout == "none" else 1.0 - architecture.dropout
        weight, bias = self.compute_parameters()
        x = x.flatten(1).to(weight.dtype)
        if spec.dropout == "before" and scale != 1.0:
            x = x * scale
        x = self._multiply(x, weight, bias)
        yield "linear", x
        if spec.activation:
            x = _activate(x, architecture)
            yield "activation", x
        if spec.dropout == "after" and scale != 1.0:
            yield "dropout", x * scale


_HAS_ONEDNN = torch.backends.mkldnn.is_available()


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x W' + b."""
    if x.is_cuda or x.dtype != torch.float32:
        return F.linear(x, weight, bias)
    if _HAS_ONEDNN and not (torch.is_grad_enabled() or torch.compiler.is_compiling()):  # it has no gradient of its own
        # oneDNN takes a fifth to a third less than MKL, which F.linear calls: with few rows it rearranges W faster.
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    # As W x': MKL rearranges the right-hand matrix, which for few rows takes longer than the product.
    y = (weight @ x.t()).t().contiguous()
    return y if bias is None else y + bias


def _ordinal(name: str) -> int:
    """The number in a block's name: 6 for fc6; 0 for one without, of which a network has one at most."""
    return int("".join(character for character in name if character.isdigit()) or 0)


def _activate(x: Tensor, architecture: Architecture) -> Tensor:
    return F.relu(x) if architecture.activation == "relu" else torch.tanh(x)


def _norm_and_pool(x: Tensor, norm: LocalResponseNorm, pool: MaxPool, bias: Tensor, relu: str) -> Tensor:
    return kernels.lrn_max_pool2d(
        x,
        norm.size,
        norm.alpha,
        norm.beta,
        norm.k,
        groups=norm.towers,
        kernel_size=pool.kernel_size,
        stride=pool.stride,
        bias=bias,
        relu=relu,
    )

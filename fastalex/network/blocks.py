"""TODO."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import kernels
from fastalex.network.architecture import (
    Activation,
    Architecture,
    Block,
    ConvBlock,
    LinearBlock,
    LocalResponseNorm,
    MaxPool,
    SameMapNorm,
    Step,
    four_sided,
)
from fastalex.network.deferred_gradients import KeptFactors, _DeferredLinear, _linear
from fastalex.network.precision import COMPUTE_DTYPES, Precision


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

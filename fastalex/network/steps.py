"""The steps of a block as modules, which run one after the other, without fusion.

A hookable network registers them under the names of its activations (``conv1.conv``, ``conv1.norm``, ``fc6.linear``,
...); :meth:`fastalex.network.model.AlexNet.activations` runs them in every network. They have no parameters: the block
owns these, and hands them over in each call. So a state dict has the same keys with and without these modules, and what
``torch.fx`` cuts out of a network takes the parameters along.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Proxy, Tracer

import kernels
from fastalex.network.architecture import (
    Activation,
    ActivationName,
    ConvBlock,
    LocalResponseNorm,
    MaxPool,
    SameMapNorm,
    Step,
    four_sided,
)
from fastalex.network.deferred_gradients import LinearGradientSink, linear


def _one_node(forward: Callable[..., Tensor]) -> Callable[..., Any]:
    """Decorator of a module's forward: ``torch.fx`` records a call as one node with the name of the module.

    It does so for PyTorch's own modules, and looks into all others, where the operators would refuse its proxies.
    """

    @functools.wraps(forward)
    def recorded(self: nn.Module, x: Tensor | Proxy, *others: Any) -> Any:
        if isinstance(x, Proxy) and isinstance(x.tracer, Tracer):
            return x.tracer.create_proxy("call_module", x.tracer.path_of_module(self), (x, *others), {})
        return forward(self, x, *others)

    return recorded


class ConvolutionStep(nn.Module):
    """The convolution of a block, with its bias."""

    def __init__(self, spec: ConvBlock) -> None:
        super().__init__()
        self.spec = spec

    @_one_node
    def forward(
        self, x: Tensor, weight: Tensor, bias: Tensor, gradient_sink: kernels.GradientSink | None = None
    ) -> Tensor:
        """N x C x H x W to N x K x OH x OW."""
        return convolve(self.spec, x, weight, bias, gradient_sink)


class LinearStep(nn.Module):
    """The matrix product of a fully connected block, in equal groups, with its bias."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    @_one_node
    def forward(
        self, x: Tensor, weight: Tensor, bias: Tensor, gradient_sink: LinearGradientSink | None = None
    ) -> Tensor:
        """N x in to N x out."""
        return multiply(x, weight, bias, self.groups, gradient_sink)

    def extra_repr(self) -> str:
        """The groups, if there are several."""
        return f"groups={self.groups}" if self.groups > 1 else ""


class DropoutStep(nn.Module):
    """Dropout of a fully connected block; the masks are those of :func:`kernels.dropout`.

    Args:
        p: probability of dropping a feature.
        inverted: as in :class:`~fastalex.network.architecture.Architecture`.
        number: of the block. Philox streams of neighbouring keys are independent, so each layer adds its number to the
            step's key.
    """

    def __init__(self, p: float, inverted: bool, number: int) -> None:
        super().__init__()
        self.p = p
        self.inverted = inverted
        self.number = number

    @_one_node
    def forward(self, x: Tensor, seed: int | Tensor = 0, first_row: int | Tensor = 0) -> Tensor:
        """N x F to N x F."""
        seed = seed + self.number
        return kernels.dropout(x, self.p, self.training, seed=seed, first_row=first_row, inverted=self.inverted)

    def extra_repr(self) -> str:
        """The probability."""
        return f"p={self.p:g}"


class LocalResponseNormStep(kernels.nn.LocalResponseNorm):
    """Local response normalisation across channels."""

    forward = _one_node(kernels.nn.LocalResponseNorm.forward)


class MaxPoolStep(kernels.nn.MaxPool2d):
    """Max pooling."""

    forward = _one_node(kernels.nn.MaxPool2d.forward)


class SameMapNormStep(nn.Module):
    """Normalisation over a window within each channel."""

    def __init__(self, spec: SameMapNorm) -> None:
        super().__init__()
        self.spec = spec

    @_one_node
    def forward(self, x: Tensor) -> Tensor:
        """N x C x H x W to the same."""
        spec = self.spec
        return kernels.same_map_norm(x, spec.size, spec.alpha, spec.beta, spec.k)

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{self.spec.size}, alpha={self.spec.alpha}, beta={self.spec.beta}, k={self.spec.k}"


_STEP_NAMES = {Activation: "activation", LocalResponseNorm: "norm", SameMapNorm: "same_map_norm", MaxPool: "pool"}


def named_steps_of(block: ConvBlock) -> Iterator[tuple[str, Step]]:
    """The steps that follow a convolution with their names: ``activation``, ``norm``, ``pool``; a second ``pool2``."""
    seen: Counter[str] = Counter()
    for step in block.steps:
        name = _STEP_NAMES[type(step)]
        seen[name] += 1
        yield name if seen[name] == 1 else f"{name}{seen[name]}", step


def step_module(step: Step, activation: ActivationName) -> nn.Module:
    """The module of a step that follows a convolution."""
    match step:
        case Activation():
            return activation_module(activation)
        case LocalResponseNorm(size, alpha, beta, k, towers):
            return LocalResponseNormStep(size, alpha, beta, k, groups=towers)
        case SameMapNorm():
            return SameMapNormStep(step)
        case MaxPool(kernel_size, stride):
            return MaxPoolStep(kernel_size, stride, ceil_mode=True)


def activation_module(activation: ActivationName) -> nn.Module:
    """The network's nonlinearity as a module."""
    return nn.ReLU() if activation == "relu" else nn.Tanh()


def convolve(
    spec: ConvBlock,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    gradient_sink: kernels.GradientSink | None,
    *,
    relu: bool = False,
) -> Tensor:
    """The convolution of a block, and on demand a ReLU."""
    return kernels.conv2d_relu(
        x,
        weight,
        bias,
        stride=spec.stride,
        padding=four_sided(spec.padding),
        groups=spec.groups,
        relu=relu,
        # The sink caches transformed weights for the current step; evaluation always uses the weights themselves.
        gradient_sink=gradient_sink if torch.is_grad_enabled() else None,
    )


def multiply(
    x: Tensor, weight: Tensor, bias: Tensor | None, groups: int, gradient_sink: LinearGradientSink | None
) -> Tensor:
    """The matrix product of a fully connected block: N x in to N x out."""
    if groups == 1:
        return linear(x, weight, bias, gradient_sink)
    pairs = zip(x.chunk(groups, 1), weight.chunk(groups), strict=True)
    product = torch.cat([F.linear(inputs, weights) for inputs, weights in pairs], 1)
    return product if bias is None else product + bias

"""The blocks of a network as modules: a convolution or a fully connected layer, with the steps that follow it.

All heavy work goes through the operators of :mod:`kernels`, fused where neighbouring steps allow it. A hookable block,
and one that is watched, runs its steps one by one instead (:mod:`fastalex.network.steps`).
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.fx
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
    describe_block,
    four_sided,
)
from fastalex.network.deferred_gradients import LinearGradientSink
from fastalex.network.precision import COMPUTE_DTYPES, Precision
from fastalex.network.steps import (
    ConvolutionStep,
    DropoutStep,
    LinearStep,
    activation_module,
    convolve,
    multiply,
    named_steps_of,
    step_module,
)

Watch = Callable[[str, Tensor], None]
"""Called with the name of a step and its result."""


_STEPS = ("conv", "linear", "activation", "norm", "same_map_norm", "pool", "dropout")


class WeightedBlock(nn.Module, abc.ABC):
    """Base class of blocks: weight and bias, their initial values, low-precision copies and deferred gradients.

    Attributes:
        gradient_sink: takes over the weight gradients of backward passes (:meth:`configure_deferral`); None computes
            them within each backward pass.
        step_names: names of the steps' modules in a hookable block, in order; empty in others.
    """

    spec: Block
    step_names: tuple[str, ...] = ()
    weight: nn.Parameter
    bias: nn.Parameter
    weight_copy: Tensor | None
    bias_copy: Tensor | None
    gradient_sink: kernels.GradientSink | LinearGradientSink | None

    def __init__(self, spec: Block, weight_shape: tuple[int, ...], architecture: Architecture, seed: int) -> None:
        super().__init__()
        self.spec = spec
        self.architecture = architecture
        self.gradient_sink = None
        # Every block has its own generator, so its weights do not depend on the stage or machine that draws them. The
        # kind separates conv6 from fc6.
        kind = int(isinstance(spec, LinearBlock))
        generator = torch.Generator().manual_seed(kernels.philox.derive_seed(seed, kind, _number_in(spec.name)))
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

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name not in _STEPS:
                raise
            path = f"{self.spec.name}.{name}"
            raise AttributeError(
                f"{path} is not a module: this network fuses the steps of a block; model.hookable().{path} is one, and "
                f"model.activations(images, [{path!r}]) returns its output"
            ) from None

    @property
    def compute_dtype(self) -> torch.dtype:
        """The dtype that this block computes in."""
        return self.weight.dtype if self.weight_copy is None else self.weight_copy.dtype

    @torch.no_grad()
    def set_precision(self, precision: Precision) -> None:
        """Create the low-precision copies that ``precision`` needs, or drop them."""
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
        if self.weight_copy is None or self.bias_copy is None:
            return self.weight, self.bias
        return use_copy(self.weight, self.weight_copy), use_copy(self.bias, self.bias_copy)

    @abc.abstractmethod
    def make_steps(self) -> dict[str, nn.Module]:
        """New modules of all steps by name, in order."""

    def make_hookable(self) -> None:
        """Register the modules of all steps, through which every call goes from now on."""
        steps = self.make_steps()
        for name, module in steps.items():
            self.add_module(name, module.train(self.training))
        self.step_names = tuple(steps)

    def run_steps(self, x: Tensor, seed: int | Tensor, first_row: int | Tensor, watch: Watch | None) -> Tensor:
        """The output of the block, step by step, and each step's result to ``watch`` if it is given."""
        if self.step_names:
            steps = {name: getattr(self, name) for name in self.step_names}
        else:
            steps = {name: module.train(self.training) for name, module in self.make_steps().items()}
        parameters = (*self.compute_parameters(), self.gradient_sink)
        arguments = {"conv": parameters, "linear": parameters, "dropout": (seed, first_row)}
        for name, step in steps.items():
            x = step(x, *arguments.get(name, ()))
            if watch is not None:
                watch(name, x)
        return x

    @torch.no_grad()
    def share_parameters(self, other: WeightedBlock) -> None:
        """Use another block's parameters and low-precision copies, in its mode."""
        self.weight, self.bias = other.weight, other.bias
        self.weight_copy, self.bias_copy = other.weight_copy, other.bias_copy
        self.train(other.training)

    def extra_repr(self) -> str:
        """Layer, steps and output, in one line."""
        return describe_block(self.spec, self.architecture)

    @abc.abstractmethod
    def configure_deferral(self, micro_batches: int | None, *, convolutions: bool) -> None:
        """Create the gradient sink; the arguments are those of ``Stage.configure_deferral``."""

    @torch.no_grad()
    def finish_gradient(self) -> None:
        """Add the deferred weight gradient to ``weight.grad``, and end the step."""
        gradient = None if self.gradient_sink is None else self.gradient_sink.finish()
        if gradient is None:
            return
        if self.weight.grad is None:
            self.weight.grad = gradient.to(self.weight.dtype)
        else:
            self.weight.grad.add_(gradient)


@torch.no_grad()
def _refresh_copies(block: nn.Module, _: Any) -> None:
    assert isinstance(block, WeightedBlock)
    for parameter, copy in block.copies().items():
        copy.copy_(parameter)


class _UseCopy(torch.autograd.Function):
    """Forward returns the existing low-precision copy; backward passes its gradient to the master weight.

    Casting in every forward pass would read the fp32 weights again for every micro-batch: 244 MB for the whole network.
    """

    @staticmethod
    def forward(ctx: Any, master: Tensor, copy: Tensor) -> Tensor:
        ctx.dtype = master.dtype
        # A deferred gradient is None. Autograd would replace it with zeros, and cast and add them.
        ctx.set_materialize_grads(False)
        return copy.view_as(copy)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, None]:
        (gradient,) = gradients
        return None if gradient is None else gradient.to(ctx.dtype), None


def use_copy(master: Tensor, copy: Tensor) -> Tensor:
    """The low-precision copy of a parameter, differentiable with respect to the parameter."""
    return _UseCopy.apply(master, copy)


torch.fx.wrap("use_copy")  # one node in a graph: torch.fx cannot trace autograd functions


class Convolution(WeightedBlock):
    """A conv layer with the steps that follow it: N x C x H x W to N x K x OH x OW, channels_last in memory.

    Uses the fused operators of :mod:`kernels` where the steps match: convolution + ReLU, bias + ReLU + LRN + pooling
    in the orders of the 2012 networks, and normalisation within a map + pooling.
    """

    spec: ConvBlock
    gradient_sink: kernels.GradientSink | None

    def __init__(self, spec: ConvBlock, in_channels: int, architecture: Architecture, seed: int) -> None:
        kernel = (spec.kernel_size, spec.kernel_size)
        super().__init__(spec, (spec.out_channels, in_channels // spec.groups, *kernel), architecture, seed)

    def configure_deferral(self, micro_batches: int | None, *, convolutions: bool) -> None:
        self.gradient_sink = kernels.GradientSink(defer=convolutions, micro_batches=micro_batches)

    def forward(
        self, x: Tensor, seed: int | Tensor = 0, first_row: int | Tensor = 0, *, watch: Watch | None = None
    ) -> Tensor:
        if self.step_names or watch is not None:
            return self.run_steps(x, seed, first_row, watch)
        weight, bias = self.compute_parameters()
        steps = self.spec.steps
        relu = self.architecture.activation == "relu"
        match steps:
            case (LocalResponseNorm() as norm, MaxPool() as pool, Activation(), *rest) if relu and self._windows_fit(
                pool, x
            ):
                x = _norm_and_pool(self._convolve(x, weight, None), norm, pool, bias, "after")
            case (Activation(), LocalResponseNorm() as norm, MaxPool() as pool, *rest) if relu and self._windows_fit(
                pool, x
            ):
                x = _norm_and_pool(self._convolve(x, weight, None), norm, pool, bias, "before")
            case (Activation(), LocalResponseNorm(size, alpha, beta, k, towers), *rest) if relu and _runs_on_gpu(x):
                x = self._convolve(x, weight, None)
                x = kernels.local_response_norm(x, size, alpha, beta, k, groups=towers, bias=bias, relu=True)
            case (Activation(), *rest) if relu:
                x = self._convolve(x, weight, bias, relu=True)
            case (*rest,):
                x = self._convolve(x, weight, bias)
        while rest:
            match rest:
                case (SameMapNorm(size, alpha, beta, k), MaxPool(kernel_size, stride), *rest) if _windows_end_at_edge(
                    x.shape[2:], kernel_size, stride
                ):
                    x = kernels.same_map_norm_max_pool2d(
                        x, size, alpha, beta, k, kernel_size=kernel_size, stride=stride
                    )
                case (step, *rest):
                    x = self._apply_step(step, x)
        return x

    def make_steps(self) -> dict[str, nn.Module]:
        activation = self.architecture.activation
        steps = {name: step_module(step, activation) for name, step in named_steps_of(self.spec)}
        return {"conv": ConvolutionStep(self.spec), **steps}

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None, *, relu: bool = False) -> Tensor:
        return convolve(self.spec, x, weight, bias, self.gradient_sink, relu=relu)

    def _windows_fit(self, pool: MaxPool, x: Tensor) -> bool:
        """:func:`_windows_end_at_edge` of the convolution's output, for its input ``x``."""
        spec = self.spec
        top, bottom, left, right = four_sided(spec.padding)
        sides = ((x.shape[2], top + bottom), (x.shape[3], left + right))
        output = [(size + padding - spec.kernel_size) // spec.stride + 1 for size, padding in sides]
        return _windows_end_at_edge(output, pool.kernel_size, pool.stride)

    def _apply_step(self, step: Step, x: Tensor) -> Tensor:
        match step:
            case Activation():
                return _activate(x, self.architecture)
            case LocalResponseNorm(size, alpha, beta, k, towers):
                return kernels.local_response_norm(x, size, alpha, beta, k, groups=towers)
            case SameMapNorm(size, alpha, beta, k):
                return kernels.same_map_norm(x, size, alpha, beta, k)
            case MaxPool(kernel_size, stride):
                return kernels.max_pool2d(x, kernel_size, stride, ceil_mode=True)


class Linear(WeightedBlock):
    """A fully connected layer with its activation and dropout. Takes N x F, or N x C x H x W, which it flattens."""

    spec: LinearBlock
    gradient_sink: LinearGradientSink | None

    def __init__(self, spec: LinearBlock, in_features: int, architecture: Architecture, seed: int) -> None:
        super().__init__(spec, (spec.out_features, in_features // spec.groups), architecture, seed)

    def configure_deferral(self, micro_batches: int | None, *, convolutions: bool) -> None:
        if self.spec.groups == 1:
            self.gradient_sink = LinearGradientSink(self.weight, micro_batches)

    def forward(
        self, x: Tensor, seed: int | Tensor = 0, first_row: int | Tensor = 0, *, watch: Watch | None = None
    ) -> Tensor:
        if self.step_names or watch is not None:
            return self.run_steps(x.flatten(1).to(self.compute_dtype), seed, first_row, watch)
        weight, bias = self.compute_parameters()
        x = x.flatten(1).to(weight.dtype)
        spec, architecture = self.spec, self.architecture
        dropout: dict[str, Any] = {
            "p": architecture.dropout,
            "seed": seed + _number_in(spec.name),  # as in DropoutStep
            "first_row": first_row,
            "training": self.training,
            "inverted": architecture.inverted_dropout,
        }
        if spec.dropout == "before":
            x = kernels.dropout(x, **dropout)
        if spec.dropout == "after" and spec.activation and architecture.activation == "relu":
            return kernels.bias_relu_dropout(self._multiply(x, weight, None), bias, **dropout)
        x = self._multiply(x, weight, bias)
        if spec.activation:
            x = _activate(x, architecture)
        if spec.dropout == "after":
            x = kernels.dropout(x, **dropout)
        return x

    def make_steps(self) -> dict[str, nn.Module]:
        spec, architecture = self.spec, self.architecture
        dropout = DropoutStep(architecture.dropout, architecture.inverted_dropout, _number_in(spec.name))
        has_dropout = architecture.dropout > 0
        steps: dict[str, nn.Module] = {}
        if spec.dropout == "before" and has_dropout:
            steps["dropout"] = dropout
        steps["linear"] = LinearStep(spec.groups)
        if spec.activation:
            steps["activation"] = activation_module(architecture.activation)
        if spec.dropout == "after" and has_dropout:
            steps["dropout"] = dropout
        return steps

    def _multiply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return multiply(x, weight, bias, self.spec.groups, self.gradient_sink)


def dropout_scale(block: LinearBlock, architecture: Architecture) -> float | None:
    """What dropout multiplies features by in evaluation: 1 - p in the networks of 2012, 1 with inverted dropout.

    None if the block has no dropout.
    """
    if block.dropout == "none" or not architecture.dropout:
        return None
    return 1.0 if architecture.inverted_dropout else 1.0 - architecture.dropout


def _number_in(name: str) -> int:
    """The number in a block's name: 6 for fc6; 0 without a number (a network has at most one such block)."""
    return int("".join(character for character in name if character.isdigit()) or 0)


def _activate(x: Tensor, architecture: Architecture) -> Tensor:
    return F.relu(x) if architecture.activation == "relu" else torch.tanh(x)


def _runs_on_gpu(x: Tensor) -> bool:
    """Whether the operators run as on a GPU. There, the kernels of LRN apply bias and ReLU, and the ReLU's mask.

    On a CPU, the convolution does so while its results are in the caches.
    """
    return kernels.dispatch.implementation_for(x) == "triton"


def _windows_end_at_edge(sides: Sequence[int], kernel_size: int, stride: int) -> bool:
    """Whether the last pooling window ends at the edge of a map, as the fused operators need."""
    return all(side >= kernel_size and (side - kernel_size) % stride == 0 for side in sides)


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

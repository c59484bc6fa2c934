"""Shared helpers of the convolution's tests: the network's layers, and comparison with PyTorch in fp64."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from comparing import DEVICE, guarded, laid_out, random_tensor
from torch import Tensor

import kernels
from kernels import arguments, launch_settings
from kernels.launch_settings import Direction, Problem, Settings

# The layers of the 2012 network: channels, side, filters, kernel, stride, padding, groups.
ALEXNET = [
    (3, 224, 96, 11, 4, (0, 3, 0, 3), 1),
    (96, 27, 256, 5, 1, 2, 2),
    (256, 13, 384, 3, 1, 1, 1),
    (384, 13, 384, 3, 1, 1, 2),
    (384, 13, 256, 3, 1, 1, 2),
]


@contextmanager
def launched_with(settings: Settings | None) -> Iterator[None]:
    """All three products use these settings, or those of the heuristic for None."""
    heuristic = launch_settings.heuristic

    def chosen(direction: Direction, problem: Problem) -> Settings:
        return heuristic(direction, problem) if settings is None else settings

    launch_settings.heuristic = chosen
    launch_settings.choose.cache_clear()
    try:
        yield
    finally:
        launch_settings.heuristic = heuristic
        launch_settings.choose.cache_clear()


def check_sums(found: Tensor, wanted: Tensor, magnitude: Tensor, terms: int, work: torch.dtype, what: str) -> None:
    """Check `found` against the fp64 `wanted`, up to the rounding of sums of `terms` products.

    The error of a sum of n products is at most n * u * (sum of their absolute values), where u is the rounding error of
    one operation and `magnitude` that sum. Rounding the result adds half a unit in the last place. TF32 first rounds
    both factors to 11 bits.
    """
    assert found.shape == wanted.shape, what
    allowed = (terms + 2) * torch.finfo(work).eps * magnitude + torch.finfo(found.dtype).eps * wanted.abs()
    # Subnormal results have a fixed absolute precision.
    allowed += torch.finfo(found.dtype).smallest_normal
    if DEVICE == "cuda" and found.dtype == torch.float32:
        allowed += 2**-9 * magnitude
    excess = ((found.double() - wanted).abs() - allowed).max() if wanted.numel() else torch.tensor(0.0)
    assert excess <= 0, f"{what}: error exceeds the bound for {terms} terms of {found.dtype} by {float(excess):.1e}"


def check_convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding, groups: int, relu: bool, gradient_layout: str,
    seed: int, work: torch.dtype,
) -> None:  # fmt: skip
    """Check the result and the gradients of the implementation in use, which accumulates in the dtype `work`."""
    ours = [None if t is None else guarded(t.detach()).requires_grad_() for t in (x, weight, bias)]
    y = kernels.conv2d_relu(*ours, stride, padding, groups=groups, relu=relu)
    grad = guarded(laid_out(random_tensor(y.shape, seed + 3, x.dtype), gradient_layout))
    y.backward(grad)
    # The sign for the ReLU comes from the result itself, because near 0 it depends on rounding.
    grad_z = grad.double() * (y > 0) if relu else grad.double()

    def linear(x: Tensor, weight: Tensor, bias: Tensor | None, grad: Tensor) -> list[Tensor]:
        inputs = [t.detach().double().requires_grad_() for t in (x, weight, bias) if t is not None]
        top, bottom, left, right = arguments.four_sided(padding)
        z = F.conv2d(F.pad(inputs[0], (left, right, top, bottom)), *inputs[1:], stride=stride, groups=groups)
        return [z.detach(), *torch.autograd.grad(z, inputs, grad)]

    wanted = linear(x, weight, bias, grad_z)
    magnitudes = linear(x.abs(), weight.abs(), None if bias is None else bias.abs(), grad_z.abs())
    wanted[0] = wanted[0].relu() if relu else wanted[0]
    pixels = y.shape[0] * y.shape[2] * y.shape[3]
    found = [y.detach(), *(t.grad for t in ours if t is not None)]
    terms = [weight[0].numel(), weight.numel() // weight.shape[1], pixels, pixels]
    names = ["the result", "grad_x", "grad_weight", "grad_bias"]
    for values in zip(found, wanted, magnitudes, terms, names, strict=False):
        check_sums(*values[:4], work, values[4])
    assert y.dtype == x.dtype

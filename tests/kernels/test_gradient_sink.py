"""Deferred weight gradients: the sink itself, and the convolution that hands them over."""

from __future__ import annotations

import pytest
import torch
from comparing import DEVICE, laid_out, random_tensor

import kernels
from kernels import GradientSink


class CountingSink(GradientSink):
    """Counts the functions that backward adds."""

    added = 0

    def add(self, compute) -> None:
        self.added += 1
        super().add(compute)


class StepState:
    """What an implementation may keep between the micro-batches of a step."""

    def __init__(self, gradient: torch.Tensor | None) -> None:
        self.gradient = gradient

    def take(self) -> torch.Tensor | None:
        gradient, self.gradient = self.gradient, None
        return gradient

    def clear(self) -> None:
        self.gradient = None


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize(
    ("implementation", "channels", "defers"),
    [("triton", 4, True), ("native", 32, DEVICE == "cpu"), ("native", 4, False)],
)
def test_a_weight_gradient_can_be_deferred(implementation: str, channels: int, defers: bool, relu: bool) -> None:
    """On a CPU, the native path computes 32 channels by minimal filtering; PyTorch's own operator defers nothing."""
    size = 32 if channels == 32 else 5
    x = laid_out(random_tensor((2, channels, size, size), 0, torch.float32), "channels_last").requires_grad_()
    weight = random_tensor((channels, channels, 3, 3), 1, torch.float32).requires_grad_()
    bias = random_tensor((channels,), 2, torch.float32).requires_grad_()
    sink = CountingSink(defer=True)
    with kernels.using(implementation):
        wanted = torch.autograd.grad(
            kernels.conv2d_relu(x, weight, bias, 1, 1, relu=relu).square().sum(), (x, weight, bias)
        )
        for _ in range(2):
            y = kernels.conv2d_relu(x, weight, bias, 1, 1, relu=relu, gradient_sink=sink)
            y.square().sum().backward()
    assert sink.added == 2 * defers
    assert sink.has_deferred == defers
    torch.testing.assert_close((x.grad, bias.grad), (2 * wanted[0], 2 * wanted[2]))
    if defers:
        assert weight.grad is None
        torch.testing.assert_close(sink.finish(), 2 * wanted[1])
    else:
        torch.testing.assert_close(weight.grad, 2 * wanted[1])
    assert sink.finish() is None
    with kernels.using(implementation):
        y = kernels.conv2d_relu(x, weight.detach(), bias, 1, 1, relu=relu, gradient_sink=sink)
        y.sum().backward()
    assert sink.added == 2 * defers  # no gradient is needed here
    if defers:
        sink.defer = False
        with kernels.using(implementation):
            y = kernels.conv2d_relu(x, weight, bias, 1, 1, relu=relu, gradient_sink=sink)
            y.square().sum().backward()
        assert sink.added == 2
        torch.testing.assert_close(weight.grad, wanted[1])


def test_finish_runs_deferred_functions_in_order_and_adds_up() -> None:
    sink, order = GradientSink(defer=True), []

    def later(number: int, gradient: torch.Tensor | None):
        return lambda: order.append(number) or gradient

    assert not sink.has_deferred
    for number, gradient in enumerate([torch.tensor([1.0, 2.0]), None, torch.tensor([10.0, 20.0])]):
        sink.add(later(number, gradient))
    assert sink.has_deferred
    assert sink.finish().tolist() == [11, 22]
    assert order == [0, 1, 2]
    assert not sink.has_deferred
    assert sink.finish() is None


def test_sums_of_half_precision_are_fp32() -> None:
    sink = GradientSink(defer=True)
    for value in (1.0, 2.0**-10, 2.0**-10):
        sink.add(lambda value=value: torch.tensor([value], dtype=torch.bfloat16))
    found = sink.finish()
    assert found.dtype == torch.float32
    assert found.item() == 1 + 2 * 2.0**-10


def test_a_step_ends_with_finish_and_its_state_is_taken() -> None:
    sink = GradientSink(micro_batches=3)
    assert (sink.defer, sink.micro_batches, sink.in_step, sink.step_state) == (False, 3, False, None)
    sink.begin_step()
    assert sink.in_step
    sink.step_state = StepState(torch.ones(2))
    sink.add(lambda: torch.ones(2))
    assert sink.finish().tolist() == [2, 2]
    assert not sink.in_step
    assert sink.finish() is None


@pytest.mark.parametrize("way", ["discard", "begin_step"])
def test_leftovers_of_an_unfinished_step_are_dropped(way: str) -> None:
    sink = GradientSink(defer=True)
    sink.begin_step()
    sink.step_state = StepState(torch.ones(2))
    sink.add(lambda: pytest.fail("a dropped function was called"))
    getattr(sink, way)()
    assert sink.in_step == (way == "begin_step")
    assert not sink.has_deferred
    assert sink.finish() is None

"""Weight gradients computed once per step against those of autograd."""

import itertools

import pytest
import torch

from fastalex import AlexNet
from fastalex.network.deferred_gradients import LinearGradientSink
from fastalex.network.model import Stage
from kernels.native import winograd
from tests.fastalex.network.inputs import images


@pytest.fixture
def winograd_everywhere(monkeypatch):
    """Winograd convolution in fp32, although the convolutions are too small to gain from it."""
    monkeypatch.setattr(winograd, "MIN_CHANNELS", 1)
    monkeypatch.setattr(winograd, "MIN_TILES", 1)


MICRO_BATCHES = 3


def gradients_of_two_steps(precision: str, deferral: dict | None, *, begun: bool) -> dict[str, torch.Tensor]:
    """The gradients of all parameters.

    Args:
        deferral: what `configure_deferral` takes, or None for the gradients of autograd.
        begun: whether each step begins with `begin_step`.
    """
    model = AlexNet("krizhevsky", 5, seed=1, width=1 / 16, lrn=False, dropout=0.0)
    model.set_precision(precision)
    stage = model.stage(model.architecture.block_names)
    convolutions = within_backward = False
    if deferral:
        stage.configure_deferral(**deferral)
        convolutions, within_backward = deferral["convolutions"], deferral["micro_batches"] is not None
    for step in range(2):  # the second step adds to the first one's gradients
        if begun:
            stage.begin_step()
        for part in images(6).split(6 // MICRO_BATCHES):
            stage(part).logsumexp(1).sum().backward()
        if convolutions and precision == "fp32":
            waiting = [name for name, block in stage.named_children() if block.gradient_sink.has_deferred]
            fully_connected = [] if within_backward else ["fc6", "fc7", "fc8"]
            assert waiting == ["conv1", "conv2", "conv3", "conv4", "conv5", *fully_connected]
            assert stage.has_deferred
        if precision == "fp32" and step == 0 and (not deferral or (begun and within_backward)):
            waiting = [name for name, parameter in stage.named_parameters() if parameter.grad is None]
            assert bool(waiting) == convolutions
        stage.finish_gradients()
        assert not stage.has_deferred
        with torch.no_grad():  # nothing of the first step's weights may be left
            for block in stage.blocks():
                block.weight.mul_(0.5)
                for parameter, copy in block.copies().items():
                    copy.copy_(parameter)
    return {name: parameter.grad for name, parameter in stage.named_parameters()}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_weight_gradients_made_once_a_step_are_those_of_autograd(precision, winograd_everywhere):
    expected = gradients_of_two_steps(precision, None, begun=False)
    rounding = 1e-5 if precision == "fp32" else 2e-2  # bf16 has 8 bits, and rounds one sum where autograd rounds three
    for micro_batches, convolutions, begun in itertools.product((None, MICRO_BATCHES), (False, True), (False, True)):
        deferral = {"micro_batches": micro_batches, "convolutions": convolutions}
        for name, gradient in gradients_of_two_steps(precision, deferral, begun=begun).items():
            scale = expected[name].abs().max().item()
            torch.testing.assert_close(
                gradient, expected[name], rtol=rounding, atol=rounding * scale, msg=f"{name}, {deferral}, {begun}"
            )


@pytest.mark.parametrize("convolutions", [False, True])
@pytest.mark.parametrize("end", [Stage.discard_deferred, Stage.begin_step])
def test_an_unfinished_step_leaves_nothing_to_the_next(end, convolutions, winograd_everywhere):
    model = AlexNet("krizhevsky", 5, seed=1, width=1 / 16, lrn=False)
    stage = model.stage(model.architecture.block_names)
    stage.configure_deferral(None, convolutions=convolutions)
    stage.begin_step()
    stage(images(2), seed=1).sum().backward()
    assert stage.has_deferred
    end(stage)
    assert not stage.has_deferred
    stage.finish_gradients()
    assert stage.conv3.weight.grad is None
    assert stage.fc6.weight.grad is None


def test_no_evaluation_reads_the_weights_of_an_unfinished_step(winograd_everywhere):
    model = AlexNet("krizhevsky", 5, seed=1, width=1 / 16, lrn=False)
    stage = model.stage(model.architecture.block_names)
    stage.configure_deferral(None, convolutions=False)
    stage.begin_step()
    stage(images(2), seed=1)
    with torch.no_grad():
        stage.conv3.weight.zero_()
        stage.conv3.bias.zero_()
        assert not model.activations(images(1), "conv3")["conv3"].any()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_deferred_gradient_reuses_the_memory_of_the_previous_step(precision):
    model = AlexNet("krizhevsky", 5, seed=1, width=1 / 16, lrn=False)
    model.set_precision(precision)
    stage = model.stage(model.architecture.block_names)
    stage.configure_deferral(None, convolutions=False)
    addresses = set()
    for _ in range(2):
        stage(images(2), seed=1).sum().backward()
        assert [n for n, p in stage.named_parameters() if p.grad is None] == [f"fc{i}.weight" for i in (6, 7, 8)]
        stage.finish_gradients()
        addresses.add(stage.get_parameter("fc6.weight").grad.data_ptr())
        stage.zero_grad()
    assert len(addresses) == 1


@pytest.mark.parametrize("has_onednn", [False, True])
@pytest.mark.parametrize("rows", [1, 6])
def test_fully_connected_products_are_those_of_either_library(monkeypatch, has_onednn, rows):
    """With and without autograd, and with a deferred weight gradient."""
    if has_onednn and not torch.backends.mkldnn.is_available():
        pytest.skip("this PyTorch has no oneDNN")
    monkeypatch.setattr("fastalex.network.deferred_gradients._HAS_ONEDNN", has_onednn)
    model = AlexNet("krizhevsky", 5, seed=2, width=1 / 16)
    block = model.get_submodule("fc8")
    with torch.no_grad():
        block.bias.copy_(torch.arange(5.0))
    x = torch.randn(rows, block.weight.shape[1], generator=torch.Generator().manual_seed(0), requires_grad=True)
    double = [tensor.detach().double().requires_grad_() for tensor in (x, block.weight, block.bias)]
    expected = torch.nn.functional.linear(*double)
    expected.square().sum().backward()
    with torch.no_grad():
        torch.testing.assert_close(block(x).double(), expected, rtol=1e-5, atol=1e-6)
    for sink in (None, LinearGradientSink(block.weight)):
        block.gradient_sink, x.grad = sink, None
        model.zero_grad()
        y = block(x)
        torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-6)
        y.square().sum().backward()
        block.finish_gradient()
        for found, wanted in zip((x, block.weight, block.bias), double, strict=True):
            torch.testing.assert_close(found.grad.double(), wanted.grad, rtol=1e-4, atol=1e-5)


def test_deferred_gradients_add_to_those_of_the_step_before():
    """Which may lie in the memory that is to be used again."""
    weight = torch.nn.Parameter(torch.zeros(2, 3))
    sink = LinearGradientSink(weight)
    x, grad_y = torch.arange(12.0).view(4, 3), torch.arange(8.0).view(4, 2)
    assert sink.finish() is None
    for rows in (slice(0, 1), slice(1, 4)):
        assert sink.add(x[rows], grad_y[rows]) is None
    weight.grad = sink.finish()
    assert torch.equal(weight.grad, grad_y.t() @ x)
    sink.add(x, grad_y)
    assert torch.equal(weight.grad + sink.finish(), 2 * grad_y.t() @ x)


def test_layers_with_groups_have_their_gradients_from_autograd():
    model = AlexNet("separate", 4, seed=0, width=1 / 16, lrn=False)
    stage = model.stage(["fc6", "fc7", "fc8"])
    stage.configure_deferral(None, convolutions=True)
    assert [block.gradient_sink is None for block in stage.blocks()] == [True, True, False]

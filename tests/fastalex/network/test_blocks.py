"""Blocks: initial weights, dropout, low-precision copies and named steps."""

import pytest
import torch
import torch.nn.functional as F

import kernels
from fastalex import AlexNet
from fastalex.network.architecture import LinearBlock
from fastalex.network.blocks import Linear
from fastalex.network.variation import build_architecture
from tests.fastalex.network.inputs import images, randomise


def test_initial_weights_and_biases():
    model = AlexNet("krizhevsky", 1000, seed=0)
    deviations = {"conv1": 0.01, "conv2": 0.01, "conv3": 0.03, "conv4": 0.03, "conv5": 0.03, "fc6": 0.01, "fc8": 0.01}
    for name, deviation in deviations.items():
        weight = model.get_submodule(name).weight
        assert weight.std().item() == pytest.approx(deviation, rel=0.02), name
    biases = {name: model.get_submodule(name).bias.unique().tolist() for name in model.architecture.block_names}
    ones = ("conv2", "conv4", "conv5", "fc6", "fc7")
    assert biases == {name: [1.0 if name in ones else 0.0] for name in biases}


def test_pytorchs_initial_weights_are_uniform_within_the_fan_in():
    model = AlexNet("owt", 1000, seed=0)
    for name, fan_in in {"conv1": 3 * 11 * 11, "conv3": 192 * 3 * 3, "fc6": 9216, "fc8": 4096}.items():
        block, bound = model.get_submodule(name), fan_in**-0.5
        for parameter in (block.weight, block.bias):
            assert 0.9 * bound < parameter.abs().max() <= bound, name
        assert block.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)


def test_two_layers_of_a_step_drop_different_features():
    model = AlexNet("krizhevsky", 4, seed=0, width=1 / 16)
    with torch.no_grad():
        masks = []
        for block in (model.fc6, model.fc7):
            block.weight.zero_()
            block.bias.fill_(1.0)
            masks.append(block(torch.zeros(8, block.weight.shape[1]), seed=3))
    assert set(masks[0].unique().tolist()) == {0.0, 1.0}
    assert 0.3 < (masks[0] == masks[1]).float().mean() < 0.7


def test_no_two_blocks_draw_from_one_stream():
    model = AlexNet("krizhevsky", 4, seed=8, width=0.0625, conv6=True)
    for name in ("fc6", "conv5", "conv1"):
        own, other = model.conv6.weight.flatten()[:500], model.get_submodule(name).weight.flatten()[:500]
        assert torch.corrcoef(torch.stack([own, other]))[0, 1].abs() < 0.3, name


@pytest.mark.parametrize("name", ["krizhevsky", "caffe", "owt"])
def test_dropout_follows_row_and_seed_not_the_micro_batch(name):
    model = AlexNet(name, 4, seed=0, width=0.0625, lrn=False)
    x = images(6, model.architecture.image_size)
    with torch.no_grad():
        whole = model(x, seed=11)
        parts = torch.cat([model(x[row : row + 2], seed=11, first_row=row) for row in (0, 2, 4)])
        torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-6)
        assert not torch.allclose(model(x, seed=12), whole)
        assert not torch.allclose(model(x[:1], seed=11, first_row=1), whole[:1])


def test_dropout_of_2012_scales_in_evaluation_and_inverted_dropout_does_not():
    for name, dropout, factor in (("krizhevsky", 0.5, 0.5), ("krizhevsky", 0.2, 0.8), ("caffe", 0.5, 1.0)):
        model = AlexNet(name, 4, seed=0, width=0.0625, lrn=False, dropout=dropout).eval()
        x = images(2, model.architecture.image_size)
        with torch.no_grad():
            found = model.activations(x, ["fc6.activation", "fc7.linear"])
            expected = F.linear(factor * found["fc6.activation"], model.fc7.weight, model.fc7.bias)
            torch.testing.assert_close(found["fc7.linear"], expected)
            torch.testing.assert_close(model.activations(x, ["fc8"])["fc8"], model(x), rtol=1e-4, atol=1e-6)


# Minimal filtering rounds more (tests/kernels/native/test_winograd.py), which moves maxima of pooling windows.
@pytest.mark.parametrize(("convolutions", "least"), [("direct", 0.98), ("minimal", 0.9)])
def test_bf16_computes_on_copies_and_gives_gradients_to_fp32_weights(convolutions, least, monkeypatch):
    monkeypatch.setenv("FASTALEX_BF16_CONV", convolutions)
    model = AlexNet("krizhevsky", 4, seed=0, width=0.125)
    randomise(model)
    x = images(4)
    exact = torch.autograd.grad(model(x, seed=1).square().mean(), list(model.parameters()))
    model.set_precision("bf16")
    logits = model(x, seed=1)
    assert logits.dtype == torch.float32  # rounded logits would tie
    assert model.activations(x, ["fc7"])["fc7"].dtype == torch.bfloat16
    rounded = torch.autograd.grad(logits.float().square().mean(), list(model.parameters()))
    for (name, _), a, b in zip(model.named_parameters(), exact, rounded, strict=True):
        assert b.dtype == torch.float32
        cosine = F.cosine_similarity(a.flatten(), b.flatten(), dim=0)
        assert cosine > least, name
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}


def test_bf16_copies_follow_a_loaded_state():
    model = AlexNet("krizhevsky", 4, seed=0, width=0.0625)
    model.set_precision("bf16")
    model.load_state_dict(AlexNet("krizhevsky", 4, seed=1, width=0.0625).state_dict())
    assert torch.equal(model.conv3.weight_copy, model.conv3.weight.bfloat16())


def test_a_block_with_two_poolings_names_both():
    found = AlexNet("krizhevsky", 4, seed=0, width=0.0625, without=("conv2",)).activations(
        images(1), ["conv1.pool", "conv1.pool2", "conv1"]
    )
    assert [tensor.shape[-1] for tensor in found.values()] == [27, 13, 13]


@pytest.mark.parametrize(("side", "times"), [(7, 1), (8, 0)])
def test_normalisation_within_a_map_and_pooling_are_fused_where_windows_end_at_the_edge(side, times, monkeypatch):
    block = AlexNet("krizhevsky", 4, seed=0, width=0.125).conv2
    calls, fused = [], kernels.same_map_norm_max_pool2d
    monkeypatch.setattr(
        kernels, "same_map_norm_max_pool2d", lambda *args, **options: calls.append(fused(*args, **options)) or calls[-1]
    )
    x = torch.randn(2, 12, side, side, generator=torch.Generator().manual_seed(0)).to(memory_format=torch.channels_last)
    with torch.no_grad():
        y = block(x)
        assert len(calls) == times
        torch.testing.assert_close(y, block(x, watch=lambda name, value: None))
    assert len(calls) == times


@pytest.mark.parametrize(("name", "block"), [("krizhevsky", "conv2"), ("paper", "conv2"), ("caffe", "conv1")])
def test_blocks_fused_as_on_a_gpu_compute_what_their_steps_do(name, block):
    """With maps whose last pooling window hangs over, so that normalisation and pooling stay separate."""
    found = []
    for implementation in ("triton", "reference"):
        module = AlexNet(name, 4, seed=0, width=0.125).get_submodule(block)
        side = {"conv1": 39, "conv2": 6}[block]  # becomes 8 and 6 pixels
        x = torch.randn(
            1, module.weight.shape[1] * module.spec.groups, side, side, generator=torch.Generator().manual_seed(0)
        )
        x = x.to(memory_format=torch.channels_last).requires_grad_()
        with kernels.using(implementation), torch.no_grad():
            module.bias.normal_(generator=torch.Generator().manual_seed(1))
        with kernels.using(implementation):
            y = module(x) if implementation == "triton" else module(x, watch=lambda name, value: None)
            y.square().sum().backward()
        found.append((y.detach(), x.grad, module.weight.grad, module.bias.grad))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


def test_dropout_may_follow_a_layer_without_activation():
    spec = LinearBlock("fc6", 64, activation=False, dropout="after")
    block = Linear(spec, 8, build_architecture("krizhevsky"), seed=0)
    y = block(images(4, 8)[:, 0, 0], seed=1)
    assert (y < 0).any()
    assert 0.3 < (y == 0).float().mean() < 0.7

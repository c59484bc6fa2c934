"""Variations of the named architectures: what each changes, and what is refused."""

from dataclasses import replace

import pytest
import torch

import kernels
from fastalex import AlexNet
from fastalex.errors import ConfigurationError
from fastalex.network.architecture import ConvBlock, LinearBlock, LocalResponseNorm, SameMapNorm, block_shapes
from fastalex.network.published import ARCHITECTURES
from fastalex.network.variation import Variation, build_architecture, narrow_init_warning
from fastalex.recipes.optimizer import KrizhevskySGD
from fastalex.recipes.published import build_recipe

ALEXNETS = [name for name in ARCHITECTURES if name != "four-layer"]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_without_a_variation_the_network_is_the_named_one(name):
    wanted = ARCHITECTURES[name]().blocks
    assert build_architecture(name).blocks == build_architecture(name, 1000, Variation()).blocks == wanted


def test_a_bottleneck_keeps_the_weights_of_many_classes_few():
    shapes = block_shapes(build_architecture("krizhevsky", 21_843, Variation(conv6=True, bottleneck=2048)))
    assert [shape.name for shape in shapes][-4:] == ["fc6", "fc7", "bottleneck", "fc8"]
    bottleneck = build_architecture("krizhevsky", 9, Variation(bottleneck=7)).blocks[-2]
    assert bottleneck == LinearBlock("bottleneck", 7, activation=False, dropout="none", weight_std=0.01)
    assert build_architecture("owt", 9, Variation(bottleneck=7)).blocks[-2].weight_std is None
    assert shapes[-1].parameters == 21_843 * 2049
    assert shapes[-2].parameters == 2048 * 4097


def test_a_head_of_21843_classes_trains():
    """As before the competition of 2012: a sixth conv layer, and a bottleneck before all of ImageNet's classes."""
    variation = {"width": 1 / 16, "lrn": False, "conv6": True, "bottleneck": 16, "init": "scaled", "dropout": 0.0}
    model = AlexNet("krizhevsky", 21_843, seed=0, **variation)
    optimizer = KrizhevskySGD(model, replace(build_recipe("krizhevsky"), lr=0.003))
    images = 60 * torch.randn(4, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 7_000, 14_000, 21_842])
    losses = []
    for step in range(12):
        loss, _ = kernels.cross_entropy(model(images, seed=step), labels, scale=1 / 4)
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
    assert losses[0] == pytest.approx(9.99, abs=0.05)  # ln 21,843
    assert losses[-1] < losses[0] - 1


def test_scaled_initial_weights_keep_the_signal_of_the_whole_width():
    stds = [block.weight_std for block in build_architecture(variation=Variation(width=0.25, init="scaled")).blocks]
    assert stds == [0.01, 0.02, 0.06, 0.06, 0.06, 0.02, 0.02, 0.02]
    text = build_architecture(variation=Variation(init="text")).blocks
    assert {block.weight_std for block in text} == {0.01}


@pytest.mark.parametrize(
    ("name", "variation", "warned"),
    [
        ("krizhevsky", Variation(width=0.49), True),
        ("krizhevsky", Variation(width=0.49, init="text"), True),
        ("krizhevsky", Variation(width=0.5), False),
        ("krizhevsky", Variation(width=0.125, init="scaled"), False),
        ("owt", Variation(width=0.125), False),  # its initial weights depend on the width
    ],
)
def test_a_network_too_narrow_for_its_initial_weights_is_warned_of(name, variation, warned):
    message = narrow_init_warning(build_architecture(name, variation=variation), variation)
    assert (message is not None) == warned
    if message is not None:
        assert message.startswith("width=0.49: ")
        assert message.endswith("which may not learn")


def test_sizes_without_overlap_are_those_of_configuration_147():
    # 55-28-26-13-13-13-11-6 before and after each pooling
    architecture = build_architecture("krizhevsky", variation=Variation(overlapping=False))
    assert [shape.output[1] for shape in block_shapes(architecture)[:5]] == [28, 13, 13, 13, 6]
    assert block_shapes(architecture)[5].inputs == 9216


def test_no_norm_is_left_with_lrn_off():
    for name in ARCHITECTURES:
        blocks = build_architecture(name, variation=Variation(lrn=False)).blocks
        steps = [step for block in blocks if isinstance(block, ConvBlock) for step in block.steps]
        assert not any(isinstance(step, LocalResponseNorm | SameMapNorm) for step in steps)


@pytest.mark.parametrize("name", ALEXNETS)
@pytest.mark.parametrize("removed", ["conv1", "conv2", "conv3", "conv4", "conv5"])
def test_any_conv_layer_can_be_removed_and_the_features_stay_6x6(name, removed):
    architecture = build_architecture(name, 10, Variation(without=(removed,)))
    assert removed not in architecture.block_names
    shapes = {shape.name: shape for shape in block_shapes(architecture)}
    last_conv = [shape for shape in shapes.values() if len(shape.output) == 3][-1]
    assert last_conv.output[1:] == (6, 6)


def test_several_layers_removed():
    architecture = build_architecture("krizhevsky", variation=Variation(without=("conv3", "conv4")))
    assert architecture.block_names == ("conv1", "conv2", "conv5", "fc6", "fc7", "fc8")


def test_a_single_name_is_one_layer_removed():
    assert Variation(without="conv3") == Variation(without=("conv3",))  # type: ignore[arg-type]
    architecture = build_architecture("krizhevsky", variation=Variation(without="conv3"))  # type: ignore[arg-type]
    assert architecture.block_names == ("conv1", "conv2", "conv4", "conv5", "fc6", "fc7", "fc8")


def test_conv6_has_the_size_of_the_pretrained_networks():
    shapes = {shape.name: shape for shape in block_shapes(build_architecture(variation=Variation(conv6=True)))}
    assert shapes["conv6"].parameters == 590_080
    assert shapes["conv6"].output == (256, 6, 6)
    for name, initial in (("krizhevsky", (0.03, 1.0)), ("owt", (None, 0.0))):
        conv6 = build_architecture(name, variation=Variation(conv6=True)).blocks[5]
        assert (conv6.name, conv6.weight_std, conv6.bias) == ("conv6", *initial)


def test_width_scales_hidden_layers_and_not_the_classes():
    architecture = build_architecture("krizhevsky", 7, Variation(width=0.5))
    assert [shape.output[0] for shape in block_shapes(architecture)] == [48, 128, 192, 192, 128, 2048, 2048, 7]
    # To the nearest multiple of 4, and at least 4.
    for width, expected in ((0.3, [28, 76, 116, 116, 76, 1228, 1228, 7]), (1e-3, [4] * 7 + [7])):
        shapes = block_shapes(build_architecture("krizhevsky", 7, Variation(width=width)))
        assert [shape.output[0] for shape in shapes] == expected


def test_dropout_is_the_variations_and_none_where_no_layer_has_any():
    assert build_architecture("krizhevsky").dropout == 0.5
    assert build_architecture("krizhevsky", variation=Variation(dropout=0.2)).dropout == 0.2
    assert build_architecture("four-layer").dropout == 0.0
    assert build_architecture("four-layer", variation=Variation(dropout=0.2)).dropout == 0.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "vgg"}, "unknown architecture 'vgg'; choose one of krizhevsky, paper, caffe, owt, ungrouped"),
        ({"num_classes": 0}, "num_classes must be at least 1, got 0"),
        ({"variation": Variation(width=0)}, "width must be positive, got 0"),
        ({"variation": Variation(width=float("nan"))}, "width must be positive, got nan"),
        ({"variation": Variation(dropout=1.0)}, "dropout must be at least 0 and less than 1, got 1.0"),
        ({"variation": Variation(without=("conv7",))}, "no conv layer 'conv7' to remove"),
        ({"variation": Variation(without="conv7")}, "no conv layer 'conv7' to remove"),  # type: ignore[arg-type]
        ({"variation": Variation(without=("conv1",) * 2)}, "no conv layer 'conv1' to remove"),
        ({"variation": Variation(without=tuple(f"conv{i}" for i in range(1, 6)))}, "is the last conv layer"),
        ({"variation": Variation(activation="gelu")}, "unknown activation 'gelu'"),  # type: ignore[arg-type]
        ({"variation": Variation(init="he")}, "unknown init 'he'; choose text or scaled"),  # type: ignore[arg-type]
        (
            {"name": "owt", "variation": Variation(init="text")},
            "init=text needs .* standard deviations",
        ),
        ({"variation": Variation(bottleneck=0)}, "bottleneck must be at least 1, got 0"),
    ],
)
def test_errors_name_the_value(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        build_architecture(**arguments)

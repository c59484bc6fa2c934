"""The named architectures against published tables: parameters, shapes, arithmetic, order of steps."""

import pytest

from fastalex.network.architecture import Activation, ConvBlock, LocalResponseNorm, MaxPool, SameMapNorm, block_shapes
from fastalex.network.published import ARCHITECTURES
from fastalex.network.variation import build_architecture

# Layer by layer from the 2012 network's geometry: weights + biases.
KRIZHEVSKY_PARAMETERS = {
    "conv1": 34_944,
    "conv2": 307_456,
    "conv3": 885_120,
    "conv4": 663_936,
    "conv5": 442_624,
    "fc6": 37_752_832,
    "fc7": 16_781_312,
    "fc8": 4_097_000,
}
KRIZHEVSKY_MMACS = (105.42, 223.95, 149.52, 112.14, 74.76, 37.75, 16.78, 4.10)


@pytest.mark.parametrize("name", ["krizhevsky", "paper", "caffe"])
def test_parameters_of_every_layer(name):
    shapes = block_shapes(build_architecture(name))
    assert {shape.name: shape.parameters for shape in shapes} == KRIZHEVSKY_PARAMETERS
    assert sum(shape.parameters for shape in shapes) == 60_965_224


# Published (half), or the sums of the layers that configurations 145 and 150 describe.
@pytest.mark.parametrize(
    ("name", "parameters"), [("half", 59_798_312), ("ungrouped", 62_378_344), ("separate", 60_714_408)]
)
def test_parameters_of_the_other_towers(name, parameters):
    assert sum(shape.parameters for shape in block_shapes(build_architecture(name))) == parameters


def test_separate_towers_meet_in_the_last_layer_only():
    blocks = build_architecture("separate").blocks
    assert [block.groups for block in blocks] == [1, 2, 2, 2, 2, 2, 2, 1]
    assert [shape.output[0] for shape in block_shapes(build_architecture("separate"))[:7]] == [
        96, 320, 384, 384, 256, 8192, 4096
    ]  # fmt: skip


def test_four_layers_on_images_of_32_pixels():
    assert [shape.output for shape in block_shapes(build_architecture("four-layer", 10))] == [
        (32, 16, 16), (32, 8, 8), (64, 4, 4), (10,)
    ]  # fmt: skip


def test_owt_has_torchvisions_parameter_count_and_arithmetic():
    shapes = block_shapes(build_architecture("owt"))
    assert sum(shape.parameters for shape in shapes) == 61_100_840
    assert sum(shape.macs for shape in shapes) / 1e6 == pytest.approx(714.2, abs=0.05)


def test_arithmetic_of_every_layer():
    macs = [shape.macs / 1e6 for shape in block_shapes(build_architecture("krizhevsky"))]
    assert macs == pytest.approx(KRIZHEVSKY_MMACS, abs=0.005)
    assert sum(macs) == pytest.approx(724.41, abs=0.005)


def test_krizhevsky_puts_norm_pool_and_relu_in_the_order_of_2012():
    conv1, conv2, _, _, conv5 = build_architecture("krizhevsky").blocks[:5]
    towers = LocalResponseNorm(size=5, alpha=1e-4, beta=0.75, k=2.0, towers=2)
    assert isinstance(conv1, ConvBlock)
    assert conv1.steps == (towers, MaxPool(3, 2), Activation())
    assert conv1.padding == (0, 3, 0, 3)
    assert isinstance(conv2, ConvBlock)
    assert conv2.steps == (Activation(), towers, SameMapNorm(5, 1e-3, 0.75, 1.0), MaxPool(3, 2))
    assert isinstance(conv5, ConvBlock)
    assert conv5.steps == (MaxPool(3, 2), Activation())


# Standard deviations of conv1 ... conv5, fc6 ... fc8 and their biases: the saved options of 2012, section 5 of the
# paper, and Caffe's bvlc_alexnet.
@pytest.mark.parametrize(
    ("name", "stds", "biases"),
    [
        ("krizhevsky", (0.01, 0.01, 0.03, 0.03, 0.03, 0.01, 0.01, 0.01), (0, 1, 0, 1, 1, 1, 1, 0)),
        ("paper", (0.01,) * 8, (0, 1, 0, 1, 1, 1, 1, 0)),
        ("caffe", (0.01, 0.01, 0.01, 0.01, 0.01, 0.005, 0.005, 0.01), (0, 0.1, 0, 0.1, 0.1, 0.1, 0.1, 0)),
        ("owt", (None,) * 8, (0,) * 8),
    ],
)
def test_initial_weights_and_biases(name, stds, biases):
    blocks = build_architecture(name).blocks
    assert tuple(block.weight_std for block in blocks) == stds
    assert tuple(block.bias for block in blocks) == biases


@pytest.mark.parametrize(("name", "alpha", "k"), [("paper", 5e-4, 2.0), ("caffe", 1e-4, 1.0)])
def test_norms_of_the_text_and_of_caffe_come_after_the_relu(name, alpha, k):
    for block in build_architecture(name).blocks[:2]:
        assert isinstance(block, ConvBlock)
        assert block.steps == (Activation(), LocalResponseNorm(5, alpha, 0.75, k, towers=1), MaxPool(3, 2))


def test_which_networks_scale_dropped_features_and_images():
    inverted = {name for name in ARCHITECTURES if build_architecture(name).inverted_dropout}
    assert inverted == {"caffe", "owt"}
    owt = build_architecture("owt")
    assert owt.input_std == pytest.approx(
        (58.395, 57.12, 57.375)
    )  # torchvision's 0.229, 0.224, 0.225 on the scale 0-255
    assert {name for name in ARCHITECTURES if build_architecture(name).input_std} == {"owt"}
    places = {name: [block.dropout for block in build_architecture(name).blocks[-3:]] for name in ("krizhevsky", "owt")}
    assert places == {"krizhevsky": ["after", "after", "none"], "owt": ["before", "before", "none"]}

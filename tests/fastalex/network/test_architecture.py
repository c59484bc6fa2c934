"""The networks against published tables: parameters, shapes, arithmetic."""

import pytest

from fastalex.errors import ConfigurationError
from fastalex.network.architecture import Activation, ConvBlock, LocalResponseNorm, MaxPool, SameMapNorm, block_shapes
from fastalex.network.published import ARCHITECTURES
from fastalex.network.variation import Variation, build_architecture, narrow_init_warning

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
ALEXNETS = [name for name in ARCHITECTURES if name != "four-layer"]
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


def test_a_bottleneck_keeps_the_weights_of_many_classes_few():
    shapes = block_shapes(build_architecture("krizhevsky", 21_843, Variation(conv6=True, bottleneck=2048)))
    assert [shape.name for shape in shapes][-4:] == ["fc6", "fc7", "bottleneck", "fc8"]
    assert shapes[-1].parameters == 21_843 * 2049
    assert shapes[-2].parameters == 2048 * 4097


def test_scaled_initial_weights_keep_the_signal_of_the_whole_width():
    stds = [block.weight_std for block in build_architecture(variation=Variation(width=0.25, init="scaled")).blocks]
    assert stds == [0.01, 0.02, 0.06, 0.06, 0.06, 0.02, 0.02, 0.02]
    text = build_architecture(variation=Variation(init="text")).blocks
    assert {block.weight_std for block in text} == {0.01}


@pytest.mark.parametrize(
    ("name", "variation", "faint"),
    [
        ("krizhevsky", Variation(width=0.49), True),
        ("krizhevsky", Variation(width=0.49, init="text"), True),
        ("krizhevsky", Variation(width=0.5), False),
        ("krizhevsky", Variation(width=0.125, init="scaled"), False),
        ("owt", Variation(width=0.125), False),  # its initial weights depend on the width
    ],
)
def test_a_network_too_narrow_for_its_initial_weights_is_named(name, variation, faint):
    assert (narrow_init_warning(build_architecture(name, variation=variation), variation) is not None) == faint


def test_owt_has_torchvisions_parameter_count_and_arithmetic():
    shapes = block_shapes(build_architecture("owt"))
    assert sum(shape.parameters for shape in shapes) == 61_100_840
    assert sum(shape.macs for shape in shapes) / 1e6 == pytest.approx(714.2, abs=0.05)


def test_arithmetic_of_every_layer():
    macs = [shape.macs / 1e6 for shape in block_shapes(build_architecture("krizhevsky"))]
    assert macs == pytest.approx(KRIZHEVSKY_MMACS, abs=0.005)
    assert sum(macs) == pytest.approx(724.41, abs=0.005)


def test_sizes_without_overlap_are_those_of_configuration_147():
    # 55-28-26-13-13-13-11-6 before and after each pooling
    architecture = build_architecture("krizhevsky", variation=Variation(overlapping=False))
    assert [shape.output[1] for shape in block_shapes(architecture)[:5]] == [28, 13, 13, 13, 6]
    assert block_shapes(architecture)[5].inputs == 9216


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


def test_width_scales_hidden_layers_and_not_the_classes():
    architecture = build_architecture("krizhevsky", 7, Variation(width=0.5))
    assert [shape.output[0] for shape in block_shapes(architecture)] == [48, 128, 192, 192, 128, 2048, 2048, 7]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "vgg"}, "unknown architecture 'vgg'; choose one of krizhevsky, paper, caffe, owt, ungrouped"),
        ({"num_classes": 0}, "num_classes is 0"),
        ({"variation": Variation(width=0)}, "width is 0"),
        ({"variation": Variation(width=float("nan"))}, "width is nan"),
        ({"variation": Variation(dropout=1.0)}, "dropout is 1.0"),
        ({"variation": Variation(without=("conv7",))}, "no conv layer 'conv7' to remove"),
        ({"variation": Variation(without="conv7")}, "no conv layer 'conv7' to remove"),  # type: ignore[arg-type]
        ({"variation": Variation(without=("conv1",) * 2)}, "no conv layer 'conv1' to remove"),
        ({"variation": Variation(without=tuple(f"conv{i}" for i in range(1, 6)))}, "is the last conv layer"),
        ({"variation": Variation(activation="gelu")}, "unknown activation 'gelu'"),  # type: ignore[arg-type]
        ({"variation": Variation(init="he")}, "unknown init 'he'; choose text or scaled"),  # type: ignore[arg-type]
        ({"name": "owt", "variation": Variation(init="text")}, "init text changes standard deviations"),
        ({"variation": Variation(bottleneck=0)}, "bottleneck is 0"),
    ],
)
def test_errors_name_the_value(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        build_architecture(**arguments)

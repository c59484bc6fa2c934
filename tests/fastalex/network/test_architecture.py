"""Shapes that follow from an architecture, and architectures that have none."""

from dataclasses import replace

import pytest

from fastalex.errors import ConfigurationError
from fastalex.network.architecture import (
    Architecture,
    ConvBlock,
    LinearBlock,
    LocalResponseNorm,
    MaxPool,
    block_shapes,
    four_sided,
)
from fastalex.network.variation import Variation, build_architecture

CONV = ConvBlock("conv1", 8, 3, stride=2, padding=(0, 1, 2, 3), groups=1, steps=(MaxPool(3, 2),))
SMALL = Architecture("small", 10, (CONV, LinearBlock("fc2", 6, groups=2), LinearBlock("fc3", 4)))


def test_shapes_parameters_and_arithmetic():
    conv1, fc2, fc3 = block_shapes(SMALL)
    # (10 + 1 - 3) // 2 + 1 = 5 rows and (10 + 5 - 3) // 2 + 1 = 7 columns, pooled to 2 x 3
    assert (conv1.inputs, conv1.output) == (3, (8, 2, 3))
    assert (conv1.parameters, conv1.macs) == (8 * 27 + 8, 8 * 27 * 5 * 7)
    assert (fc2.inputs, fc2.output, fc2.parameters, fc2.macs) == (48, (6,), 48 * 6 // 2 + 6, 48 * 6 // 2)
    assert (fc3.inputs, fc3.parameters) == (6, 28)
    assert SMALL.num_classes == 4
    assert SMALL.block_names == ("conv1", "fc2", "fc3")


def test_pooled_sizes_round_up():
    architecture = replace(SMALL, image_size=12, blocks=(replace(CONV, padding=0, steps=(MaxPool(2, 2),)),))
    assert block_shapes(architecture)[0].output == (8, 3, 3)  # 5 x 5 before pooling


def test_padding_of_one_number_is_that_of_all_sides():
    assert four_sided(2) == (2, 2, 2, 2)
    assert four_sided((0, 1, 2, 3)) == (0, 1, 2, 3)


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ((replace(CONV, groups=2),), "conv1: 2 groups do not divide 3 input and 8 output channels"),
        ((replace(CONV, steps=(LocalResponseNorm(towers=3),)),), "conv1: 3 towers do not divide 8 channels"),
        ((replace(CONV, kernel_size=20),), r"conv1: the output would be .* pixels"),
        ((CONV, LinearBlock("fc2", 5, groups=2)), "fc2: 2 groups do not divide 48 inputs and 5 outputs"),
    ],
)
def test_what_has_no_shape_is_refused(blocks, message):
    with pytest.raises(ConfigurationError, match=message):
        block_shapes(replace(SMALL, blocks=blocks))


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ((replace(CONV, groups=3),), "conv1: 3 groups do not divide 3 input and 8 output channels"),
        ((CONV, LinearBlock("fc2", 5, groups=5)), "fc2: 5 groups do not divide 48 inputs and 5 outputs"),
        ((replace(CONV, kernel_size=12, padding=(0, 0, 2, 2), steps=()),), "conv1: the output would be 0x2 pixels"),
        ((replace(CONV, kernel_size=12, padding=(2, 2, 0, 0), steps=()),), "conv1: the output would be 2x0 pixels"),
    ],
)
def test_one_of_two_that_does_not_fit_is_enough_to_refuse(blocks, message):
    with pytest.raises(ConfigurationError, match=message):
        block_shapes(replace(SMALL, blocks=blocks))


def test_an_output_of_one_pixel_is_a_shape():
    (shape,) = block_shapes(replace(SMALL, blocks=(replace(CONV, kernel_size=10, padding=0, steps=()),)))
    assert shape.output == (8, 1, 1)


@pytest.mark.parametrize(
    ("name", "variation", "towers"),
    [
        *((name, {}, 2) for name in ("krizhevsky", "paper", "caffe", "separate")),
        *((name, {}, 1) for name in ("owt", "ungrouped", "half", "four-layer")),
        ("krizhevsky", {"lrn": False}, 2),  # conv2 has two groups
        ("krizhevsky", {"without": ("conv2",)}, 2),  # conv1 is normalised in two parts
        ("paper", {"without": ("conv2",)}, 1),  # conv3 sees all kernels, and so does the normalisation
        ("krizhevsky", {"width": 1 / 16}, 2),
    ],
)
def test_the_first_layer_has_the_towers_of_2012(name, variation, towers):
    assert build_architecture(name, 10, Variation(**variation)).first_layer_towers == towers

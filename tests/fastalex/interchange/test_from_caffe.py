"""BVLC's AlexNet for Caffe, in files that the protobuf package writes."""

import numpy as np
import pytest
import torch

from fastalex.errors import ConfigurationError
from fastalex.interchange.conversion import MissingMean, convert
from fastalex.interchange.from_caffe import read_caffemodel
from fastalex.network.weights import load_model
from fastalex.network.weights_record import load_record
from tests.fastalex.interchange.networks import (
    LAYERS,
    MEAN,
    NARROW,
    SCHEMAS,
    blob,
    caffe_input,
    caffe_scores,
    caffemodel,
    our_scores,
    random_weights,
)

WEIGHTS = random_weights("caffe")


def written(path, **settings):
    path.write_bytes(caffemodel(WEIGHTS, **settings).SerializeToString())
    return path


@pytest.mark.parametrize(
    "settings",
    [
        {"version": 1, "legacy": True},  # BVLC's
        {"version": 2},
        {"version": 2, "packed": False},
        {"version": 2, "doubles": True},
        {"version": 1, "doubles": True, "packed": False},
    ],
)
def test_weights_are_read_from_every_version(tmp_path, settings):
    found = read_caffemodel(written(tmp_path / "a.caffemodel", **settings), NARROW)
    assert (found.network.architecture, found.network.num_classes, found.channels) == ("caffe", 7, "bgr")
    assert found.source == "a caffemodel (AlexNet)"
    for name, weight in WEIGHTS.items():
        assert torch.equal(found.weights[name], weight), name


def test_the_scores_are_caffes(tmp_path):
    """Caffe subtracts an image of blue, green and red planes, and its first convolution reads these planes."""
    path, output = written(tmp_path / "a.caffemodel", version=1, legacy=True), tmp_path / "w.safetensors"
    (tmp_path / "mean.binaryproto").write_bytes(blob(MEAN, legacy=True).SerializeToString())
    made = convert(path, output, mean=str(tmp_path / "mean.binaryproto"), variation=NARROW)
    expected = caffe_scores(WEIGHTS, caffe_input())
    assert (expected.max() - expected.min()) > 1
    # Sums of 864 products or fewer, in another order.
    assert torch.allclose(our_scores(output), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    record = load_record(output)
    assert np.array_equal(record.mean, MEAN[::-1].transpose(1, 2, 0))
    assert (record.stored_size, record.crop_size, record.resize) == (256, 227, "squash")
    assert not made.network.channel_means


def test_a_mean_colour_serves_instead_of_the_mean_image(tmp_path):
    path, output = written(tmp_path / "a.caffemodel"), tmp_path / "w.safetensors"
    made = convert(path, output, mean="123,117,104", variation=NARROW)
    colour = np.array([104, 117, 123], np.float32)[:, None, None]  # blue first
    expected = caffe_scores(WEIGHTS, caffe_input(colour))
    assert torch.allclose(our_scores(output), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    assert made.network.channel_means
    assert made.record.stored_size == 256


def test_the_order_of_the_colours_can_be_given(tmp_path):
    path = written(tmp_path / "a.caffemodel")
    for channels, expected in (("bgr", WEIGHTS["conv1.weight"].flip(1)), ("rgb", WEIGHTS["conv1.weight"])):
        output = tmp_path / f"{channels}.safetensors"
        convert(path, output, mean="123,117,104", channels=channels, variation=NARROW)
        assert torch.equal(load_model(output)[0].conv1.weight, expected)


def test_a_mean_is_needed(tmp_path):
    with pytest.raises(MissingMean, match=r"a.caffemodel does not hold the mean of its training images"):
        convert(written(tmp_path / "a.caffemodel"), tmp_path / "w.safetensors", variation=NARROW)
    assert not (tmp_path / "w.safetensors").exists()


def refused(path, message):
    with pytest.raises(ConfigurationError, match=f"^{path}{message}") as error:
        read_caffemodel(path, NARROW)
    assert "\n" not in str(error.value)


def test_caffenet_is_refused_although_its_weights_have_the_same_shapes(tmp_path):
    """It pools before it normalises."""
    swapped = list(LAYERS)
    for index in (3, 7):
        swapped[index : index + 2] = swapped[index + 1], swapped[index]
    path = written(tmp_path / "a.caffemodel", layers=tuple(swapped))
    refused(
        path,
        " is another network than caffe: layer 3 is max-pooling 3x3, stride 2, wanted LRN 5, alpha 0.0001, beta 0.75, "
        "k 1; layer 4 is LRN .*; layer 7 is .*; layer 8 is [^;]*$",
    )


def test_a_layer_too_many_is_refused(tmp_path):
    path = written(tmp_path / "a.caffemodel", layers=(*LAYERS, ("relu8", "ReLU")))
    refused(path, " is another network than caffe: layer 21 is ReLU, wanted nothing$")


def changed(path, change, layer=1, **settings):
    net = caffemodel(WEIGHTS, **settings)
    change(net.layer[layer])
    path.write_bytes(net.SerializeToString())
    return path


@pytest.mark.parametrize(
    ("layer", "change", "found"),
    [
        (1, lambda layer: layer.convolution.stride.append(2), "convolution 11x11, stride 4x2, padding 0"),
        (1, lambda layer: layer.convolution.pad.append(2), "convolution 11x11, stride 4, padding 2"),
        (1, lambda layer: layer.convolution.dilation.append(2), "convolution 11x11, .*, dilation 2"),
        (9, lambda layer: setattr(layer.convolution, "group", 3), "convolution 3x3, stride 1, padding 1, 3 groups"),
        (2, lambda layer: setattr(layer.relu, "negative_slope", 0.5), "ReLU with slope 0.5"),
        (3, lambda layer: setattr(layer.lrn, "k", 2), "LRN 5, alpha 0.0001, beta 0.75, k 2"),
        (3, lambda layer: layer.lrn.ClearField("alpha"), "LRN 5, alpha 1, beta 0.75, k 1"),
        (3, lambda layer: setattr(layer.lrn, "norm_region", 1), "LRN within each channel"),
        (4, lambda layer: setattr(layer.pooling, "pool", 1), "pooling that is no max-pooling"),
        (4, lambda layer: setattr(layer.pooling, "stride", 3), "max-pooling 3x3, stride 3"),
        (16, lambda layer: setattr(layer, "type", "Scale"), r"Scale \(fc6\)"),
    ],
)
def test_other_settings_are_refused(tmp_path, layer, change, found):
    path = changed(tmp_path / "a.caffemodel", change, layer)
    refused(path, rf" is another network than caffe: layer {layer if layer < 18 else layer - 1} is {found}, wanted ")


def test_another_network_is_refused_by_its_weights(tmp_path):
    net = SCHEMAS[True]["Net"](name="GoogleNet")
    for index in range(10):
        layer = net.layer.add(name=f"inception_{index}", type="Convolution")
        layer.blobs.append(blob(np.zeros((2, 3, 5, 5), np.float32)))
    (tmp_path / "a.caffemodel").write_bytes(net.SerializeToString())
    refused(
        tmp_path / "a.caffemodel",
        r": these are not the weights of caffe width=0.1: conv1.weight: \(2, 3, 5, 5\), wanted \(8, 3, 11, 11\); "
        r"conv1.bias: missing.*, and \d+ more$",
    )


def test_a_network_that_is_not_trained_on_imagenet_may_rename_its_last_layer(tmp_path):
    path = changed(tmp_path / "a.caffemodel", lambda layer: setattr(layer, "name", "fc8_flickr"), 22)
    assert torch.equal(read_caffemodel(path, NARROW).weights["fc8.weight"], WEIGHTS["fc8.weight"])


def test_the_format_before_2014_is_named(tmp_path):
    net = SCHEMAS[True]["Net"](name="AlexNet")
    net.layers.add().layer.name = "conv1"
    (tmp_path / "a.caffemodel").write_bytes(net.SerializeToString())
    refused(tmp_path / "a.caffemodel", " has the format that Caffe had before 2014; upgrade it")


def test_damaged_files_are_named(tmp_path):
    path = written(tmp_path / "a.caffemodel")
    whole = path.read_bytes()
    for length in (len(whole) - 1, len(whole) // 2, 3000, 12):
        path.write_bytes(whole[:length])
        refused(path, " is damaged, or no caffemodel: ")
    path.write_bytes(b"\x0a\x07AlexNet")
    refused(path, " is no caffemodel: it has no layers")
    path.write_bytes(b"just some text, long enough")
    refused(path, " is damaged, or no caffemodel: ")
    path.write_bytes(b"")
    refused(path, " is empty")
    path.unlink()
    with pytest.raises(ConfigurationError, match=f"no such file: {path}"):
        read_caffemodel(path)

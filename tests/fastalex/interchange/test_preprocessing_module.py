"""What an exported network says of its images."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import fastalex
from fastalex import ConfigurationError
from fastalex.interchange.preprocessing_module import StoredPreprocessing, describe, mean_image
from fastalex.network.weights import NetworkSpec
from fastalex.network.weights_record import Origin, load_record
from tests.fastalex.interchange.exported_networks import CLASSES, record, save

SPEC = NetworkSpec("four-layer", 3, classes=CLASSES)


@pytest.mark.parametrize(("stored", "first"), [(40, 4), (45, 6), (32, 0)])
@pytest.mark.parametrize("kind", ["image", "colour"])
def test_the_centre_crop_minus_the_mean(stored, first, kind):
    about = record(stored, 32, kind)
    images = np.random.default_rng(0).integers(0, 256, (2, stored, stored, 3), dtype=np.uint8)
    expected = (images - about.mean_image())[:, first : first + 32, first : first + 32]
    found = StoredPreprocessing(about, 32)(torch.from_numpy(images).permute(0, 3, 1, 2))
    assert found.dtype == torch.float32
    assert np.array_equal(found.permute(0, 2, 3, 1).numpy(), expected)


def test_stored_images_smaller_than_the_crop_are_refused():
    with pytest.raises(ConfigurationError, match="stored in 30 pixels, the network takes crops of 32"):
        StoredPreprocessing(record(30, 32), 32)


def test_the_mean_image_in_the_networks_layout():
    about = record(40, 32)
    assert np.array_equal(mean_image(about)[1], about.mean[:, :, 1])
    assert mean_image(record(40, 32, "colour")) is None
    assert mean_image(None) is None


def test_a_description():
    origin = Origin("clothes", "0123abcd", "small", 3, 41.5, "0.1.0")
    about = replace(record(40, 32), origin=origin)
    values = describe(SPEC, about, with_preprocessing=False, mean_file="x.npy")
    assert values["input"]["size"] == [32, 32]
    assert values["output"]["name"] == "logits"
    preparation = values["preparation"]
    assert preparation["mean"] == {"kind": "image", "file": "x.npy", "shape": [3, 40, 40], "scale": "0 to 255"}
    assert (preparation["stored_size"], preparation["crop_size"], preparation["resize"]) == (40, 32, "shorter")
    assert preparation["steps"] == [
        "decode to RGB, 0 to 255; resize the shorter side to 40 pixels and take the centre 40 x 40 square",
        "convert to float32 and subtract the mean image, x.npy",
        "take the centre 32 x 32 pixels",
    ]
    assert values["classes"] == ["ant", "bee", "cat"]
    assert values["origin"]["top1_error"] == 41.5


def test_a_description_with_the_preprocessing_included():
    values = describe(SPEC, replace(record(40, 32), resize="squash"), with_preprocessing=True, mean_file="x.npy")
    assert (values["input"]["size"], values["input"]["dtype"]) == ([40, 40], "uint8")
    assert values["output"]["name"] == "probabilities"
    assert values["preparation"]["mean"] == {"kind": "included"}
    assert values["preparation"]["steps"] == [
        "decode to RGB, 0 to 255; resize both sides to 40 pixels",
        "give the square to the network as uint8",
    ]


def test_a_mean_colour_and_an_unknown_mean():
    about = record(40, 32, "colour")
    values = describe(SPEC, about, with_preprocessing=False, mean_file="x.npy")["preparation"]
    assert values["mean"] == {"kind": "colour", "values": [float(m) for m in about.mean], "scale": "0 to 255"}
    assert values["steps"][1] == "convert to float32 and subtract the mean colour"
    values = describe(SPEC, None, with_preprocessing=False, mean_file="x.npy")
    assert values["preparation"]["mean"] == {"kind": "unknown"}
    assert values["preparation"]["steps"][0].startswith("how images were prepared is unknown")
    assert values["origin"] is None


def test_it_is_what_predict_does_with_an_image_of_the_stored_size(tmp_path):
    path = save(tmp_path / "w.safetensors")
    model, pixels = fastalex.load(path), np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    stored = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    found = StoredPreprocessing(load_record(path), 32)(stored)
    assert torch.equal(found[0], model.preprocess(pixels))

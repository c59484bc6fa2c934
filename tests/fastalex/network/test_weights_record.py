"""What files of weights record besides their network."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fastalex.errors import ConfigurationError
from fastalex.network.weights import with_sums
from fastalex.network.weights_record import Origin, WeightsRecord, load_record

ORIGIN = Origin("clothes", "0123abcd", "small", 3, 41.5, "0.1.0")
MEAN_IMAGE = np.random.default_rng(0).uniform(0, 255, (8, 8, 3)).astype(np.float32)


def saved(path, tensors, header):
    save_file(tensors, path, with_sums(tensors, header))
    return path


@pytest.mark.parametrize("mean", [MEAN_IMAGE, MEAN_IMAGE[0, 0]])
@pytest.mark.parametrize("origin", [ORIGIN, None])
def test_a_record_is_read_as_it_was_written(tmp_path, mean, origin):
    record = WeightsRecord(mean, 8, 6, "squash", origin)
    found = load_record(saved(tmp_path / "w.safetensors", record.tensors(), {"fastalex": "{}", **record.header()}))
    assert np.array_equal(found.mean, mean)
    assert (found.stored_size, found.crop_size, found.resize, found.origin) == (8, 6, "squash", origin)
    assert found.words == ()
    assert found.mean_image().shape == (8, 8, 3)
    assert np.array_equal(found.mean_image()[5, 2], mean if mean.ndim == 1 else mean[5, 2])


def test_the_words_of_the_classes_are_read_as_they_were_written(tmp_path):
    words = ("tench, Tinca tinca", "crane, bird", 'a "quoted" one')
    record = WeightsRecord(MEAN_IMAGE, 8, 6, words=words)
    path = saved(tmp_path / "w.safetensors", record.tensors(), {"fastalex": "{}", **record.header()})
    assert load_record(path).words == words
    header = json.loads(record.header()["record"])
    del header["words"]  # as earlier versions wrote it
    path = saved(tmp_path / "old.safetensors", record.tensors(), {"record": json.dumps(header)})
    assert load_record(path).words == ()


def test_files_of_earlier_versions_have_none(tmp_path):
    assert load_record(saved(tmp_path / "w.safetensors", {"a": torch.ones(2)}, {"fastalex": "{}"})) is None


@pytest.mark.parametrize(
    ("changes", "mean", "message"),
    [
        ({"stored_size": "8"}, MEAN_IMAGE, "record.stored_size must be an integer"),
        ({"resize": "crop"}, MEAN_IMAGE, "record.resize must be one of shorter, squash"),
        ({"stored_size": 9}, MEAN_IMAGE, r"its mean is torch.float32 of shape \(8, 8, 3\)"),
        ({}, MEAN_IMAGE.astype(np.float64), r"its mean is torch.float64"),
        ({"origin": {"data": "x"}}, MEAN_IMAGE, "missing"),
        ({"crop_size": None}, MEAN_IMAGE, "record.crop_size must be an integer"),
    ],
)
def test_a_record_that_makes_no_sense_is_named(tmp_path, changes, mean, message):
    record = WeightsRecord(mean, 8, 6, origin=ORIGIN)
    header = json.loads(record.header()["record"]) | changes
    path = saved(tmp_path / "w.safetensors", record.tensors(), {"record": json.dumps(header)})
    with pytest.raises(ConfigurationError, match=rf"w.safetensors is damaged: its header does not say how .*{message}"):
        load_record(path)


def test_a_record_without_its_mean_is_named(tmp_path):
    header = WeightsRecord(MEAN_IMAGE, 8, 6).header()
    with pytest.raises(ConfigurationError, match=r"has no preprocessing.mean"):
        load_record(saved(tmp_path / "w.safetensors", {"a": torch.ones(2)}, header))

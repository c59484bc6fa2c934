"""Files of exported networks: complete, compared with the network, and never a wrong one."""

import copy
import importlib.util
import json

import numpy as np
import pytest
import torch

from fastalex import ConfigurationError
from fastalex.interchange import exporting
from fastalex.interchange.exporting import Export, outputs, random_images, relative_difference
from fastalex.interchange.preprocessing_module import StoredPreprocessing
from fastalex.network.weights_record import load_record
from tests.fastalex.interchange.exported_networks import network, record, save


def test_the_files_of_an_export_suffice_to_run_it(tmp_path):
    weights = save(tmp_path / "w.safetensors")
    job = Export(weights, "onnx", tmp_path / "net.onnx")
    difference = job.run()
    assert 0 <= difference < 1e-5
    assert [path.name for path in job.files()] == ["net.onnx", "net.onnx.json", "net.onnx.mean.npy"]
    about = json.loads((tmp_path / "net.onnx.json").read_text())
    assert about["classes"] == ["ant", "bee", "cat"]
    mean = np.load(tmp_path / about["preparation"]["mean"]["file"])
    record = load_record(weights)
    assert np.array_equal(mean, record.mean.transpose(2, 0, 1))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["w.safetensors", *(p.name for p in job.files())])


def test_the_graph_holds_the_description(tmp_path):
    onnx = pytest.importorskip("onnx")
    job = Export(
        save(tmp_path / "w.safetensors", kind="colour"), "onnx", tmp_path / "net.onnx", with_preprocessing=True
    )
    job.run()
    (entry,) = onnx.load(job.output).metadata_props
    assert json.loads(entry.value) == json.loads((tmp_path / "net.onnx.json").read_text())
    assert not (tmp_path / "net.onnx.mean.npy").exists()


@pytest.mark.parametrize(("format", "builder"), [("onnx", "build_onnx"), ("pt2", "build_program")])
def test_a_network_that_disagrees_is_not_written(tmp_path, monkeypatch, format, builder):
    build = getattr(exporting, builder)

    def build_another(model, *arguments):
        other = copy.deepcopy(model)
        with torch.no_grad():
            other.get_submodule("fc4").weight.mul_(1.001)
        return build(other, *arguments)

    monkeypatch.setattr(exporting, builder, build_another)
    job = Export(save(tmp_path / "w.safetensors"), format, tmp_path / f"net.{format}")
    with pytest.raises(
        ConfigurationError, match=rf"net.{format} is not written: its outputs differ from the network's"
    ):
        job.run()
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]


def test_without_onnxruntime_nothing_is_compared(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else find(name))
    job = Export(save(tmp_path / "w.safetensors"), "onnx", tmp_path / "net.onnx")
    assert job.run() is None
    assert job.output.exists()


def test_images_near_the_mean_show_differences_of_probabilities():
    model, about = network("four-layer"), record(45, 32)
    preprocessing = StoredPreprocessing(about, 32)
    images = random_images(2, model, preprocessing)
    assert preprocessing(images).abs().max() < 9
    probabilities = outputs(model, images, preprocessing)
    assert probabilities.max() < 0.999


def test_a_difference_that_is_no_number_is_no_agreement():
    one = torch.ones(2)
    assert relative_difference(one, 4 * one) == 0.75
    assert relative_difference(one * 0, one * 0) == 0
    assert not relative_difference(one * torch.nan, one) <= 1
    assert not relative_difference(one, one * torch.nan) <= 1

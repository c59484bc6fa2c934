"""Networks as ONNX graphs, run by onnxruntime."""

import sys
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from fastalex import ARCHITECTURES, AlexNet, ConfigurationError
from fastalex.interchange.exporting import relative_difference
from fastalex.interchange.onnx_export import build_onnx
from fastalex.interchange.preprocessing_module import StoredPreprocessing
from fastalex.network.architecture import LocalResponseNorm
from tests.fastalex.interchange.exported_networks import ROUNDING, network, record
from tests.fastalex.network.inputs import images


def run(content: bytes, inputs: torch.Tensor, names: list[str] | None = None) -> dict[str, torch.Tensor]:
    """The named tensors of a graph, all outputs by default."""
    graph = onnx.load_from_string(content)
    for name in names or []:
        graph.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = names or [output.name for output in session.get_outputs()]
    values = session.run(names, {"images": inputs.numpy()})
    return {name: torch.from_numpy(value) for name, value in zip(names, values, strict=True)}


def operators(content: bytes) -> list[str]:
    return [node.op_type for node in onnx.load_from_string(content).graph.node]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_activation_of_every_architecture_is_the_networks(name):
    model = network(name)
    content, inputs = build_onnx(model), images(8, model.architecture.image_size)
    with torch.no_grad():
        expected = model(inputs)
    for count in (1, 8):
        assert relative_difference(run(content, inputs[:count])["logits"], expected[:count]) < ROUNDING
    with torch.no_grad():
        activations = model.activations(inputs[:2], names_of(model))
    found = run(content, inputs[:2], list(activations))
    for activation, value in activations.items():
        assert found[activation].shape == value.shape, activation
        assert relative_difference(found[activation], value) < ROUNDING, activation


def names_of(model: AlexNet) -> list[str]:
    """The names of all activations, from the message that lists them."""
    side = model.architecture.image_size
    with pytest.raises(ConfigurationError) as error, torch.no_grad():
        model.activations(torch.zeros(1, 3, side, side), "none")
    return str(error.value).partition("choose from ")[2].split(", ")


@pytest.mark.parametrize(
    "variation",
    [
        {"activation": "tanh", "overlapping": False, "conv6": True, "bottleneck": 12},
        {"dropout": 0.0, "lrn": False, "without": ("conv2", "conv3")},
        {"architecture": "owt", "without": "conv1"},
    ],
)
def test_variations(variation):
    model = network(**variation)
    inputs = images(2)
    with torch.no_grad():
        expected = model(inputs)
    assert relative_difference(run(build_onnx(model), inputs)["logits"], expected) < ROUNDING


def test_normalisation_is_onnxs_own_operator():
    found = operators(build_onnx(network("krizhevsky")))
    assert (found.count("LRN"), found.count("Split"), found.count("AveragePool")) == (4, 2, 1)
    found = operators(build_onnx(network("paper")))
    assert (found.count("LRN"), found.count("Split"), found.count("AveragePool")) == (2, 0, 0)


def test_older_runtimes_can_read_it_and_shapes_are_given():
    graph = onnx.load_from_string(build_onnx(network(), None, {"answer": "42"}))
    onnx.checker.check_model(graph, full_check=True)
    assert (graph.ir_version, graph.opset_import[0].version) == (8, 17)
    assert {entry.key: entry.value for entry in graph.metadata_props} == {"answer": "42"}
    shapes = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in graph.graph.value_info
    }
    assert shapes["conv2.same_map_norm"] == ["N", 24, 27, 27]
    assert {tensor.name for tensor in graph.graph.initializer} >= {"conv1.weight", "conv1.bias", "fc8.weight"}


@pytest.mark.parametrize("kind", ["image", "colour"])
def test_preprocessing_in_the_graph(kind):
    about = record(45, 32, kind)
    model = network("four-layer", width=1.0)
    # Near the mean, so that the probabilities are not 0 and 1.
    noise = np.random.default_rng(4).uniform(-8, 8, (3, 45, 45, 3))
    stored = (about.mean_image() + noise).astype(np.uint8)
    crop = torch.from_numpy((stored - about.mean_image())[:, 6:38, 6:38].transpose(0, 3, 1, 2))
    with torch.no_grad():
        expected = model(crop.contiguous()).softmax(1)
    content = build_onnx(model, StoredPreprocessing(about, 32))
    found = run(content, torch.from_numpy(stored.transpose(0, 3, 1, 2).copy()))["probabilities"]
    assert expected.max() < 0.999
    assert relative_difference(found, expected) < ROUNDING


def test_what_onnx_cannot_hold_is_refused(monkeypatch):
    with torch.device("meta"):
        wide = AlexNet("krizhevsky", seed=0, width=4.0)
    with pytest.raises(ConfigurationError, match=r"an ONNX file holds at most 2 GiB, the weights .* have 3\.\d GiB"):
        build_onnx(wide)
    architecture = network("paper").architecture
    conv1 = architecture.blocks[0]
    even = tuple(replace(step, size=4) if isinstance(step, LocalResponseNorm) else step for step in conv1.steps)
    model = network(replace(architecture, blocks=(replace(conv1, steps=even), *architecture.blocks[1:])))
    with pytest.raises(ConfigurationError, match=r"conv1.norm normalises over 4 channels, an even number"):
        build_onnx(model)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ConfigurationError, match=r"onnx is not installed; .*pip install 'fastalex\[export\]'$"):
        build_onnx(model)

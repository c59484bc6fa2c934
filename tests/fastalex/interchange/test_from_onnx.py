"""AlexNets in ONNX, run by onnxruntime for comparison."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from fastalex.errors import ConfigurationError
from fastalex.interchange.conversion import convert
from fastalex.interchange.from_onnx import read_onnx
from tests.fastalex.interchange.networks import (
    MEAN,
    NARROW,
    caffe_input,
    normalised,
    our_scores,
    random_weights,
    torchvision_alexnet,
)

LIGHT = Path(onnx.__file__).parent / "backend/test/data/light/light_bvlc_alexnet.onnx"
WEIGHTS = random_weights("caffe")


def zoo(size: int = 227) -> Any:
    """The ONNX model zoo's ``bvlcalexnet`` with narrow random weights; the light version comes without any."""
    model = onnx.load(LIGHT)
    graph = model.graph
    layers = [node for node in graph.node if node.op_type != "ConstantOfShape"]
    for field, kept in (
        (graph.node, layers),
        (graph.input, [value for value in graph.input if value.name == "data_0"]),
        (graph.initializer, []),
        (graph.value_info, []),
    ):
        kept = [type(item).FromString(item.SerializeToString()) for item in kept]
        del field[:]
        field.extend(kept)
    for axis in (2, 3):
        graph.input[0].type.tensor_type.shape.dim[axis].dim_value = size
    graph.output[0].type.tensor_type.shape.dim[1].dim_value = 7
    for name, weight in WEIGHTS.items():
        block, _, part = name.partition(".")
        graph.initializer.append(numpy_helper.from_array(weight.numpy(), f"{block}_{part[0]}_0"))
    graph.initializer.append(numpy_helper.from_array(np.array([1, -1]), "OC2_DUMMY_1"))
    return model


def outputs(model: Any, x: torch.Tensor, name: str | None = None) -> torch.Tensor:
    """The first output, or an inner tensor of this name."""
    if name is not None:
        model.graph.output.insert(0, helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0][0])


def saved(path: Path, model: Any) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def test_the_probabilities_are_those_of_the_zoos_graph(tmp_path):
    """Which takes blue, green and red, and here Caffe's 227 pixels."""
    path, output = saved(tmp_path / "a.onnx", zoo()), tmp_path / "w.safetensors"
    np.save(tmp_path / "ilsvrc_2012_mean.npy", MEAN.astype(np.float64))
    made = convert(path, output, mean=str(tmp_path / "ilsvrc_2012_mean.npy"), variation=NARROW)
    scores = our_scores(output)
    assert torch.allclose(scores.softmax(0), outputs(zoo(), caffe_input()), rtol=1e-4, atol=1e-4)
    before_softmax = outputs(zoo(), caffe_input(), "r24")
    # Sums of 864 products or fewer, in another order.
    assert torch.allclose(scores, before_softmax, rtol=1e-4, atol=1e-4 * float(before_softmax.abs().max()))
    assert (made.network.architecture, made.channels, made.note) == ("caffe", "bgr", "")
    assert made.source == f"an ONNX graph of {onnx.load(LIGHT).producer_name}"


def test_the_zoos_size_is_noted(tmp_path):
    """Its graph declares 224 pixels; Caffe trained with 227."""
    found = read_onnx(saved(tmp_path / "a.onnx", zoo(224)), NARROW)
    assert found.note.startswith("the graph declares 224 pixels; the network takes the 227")
    assert all(torch.equal(found.weights[name], weight) for name, weight in WEIGHTS.items())


def torchvision_graph(*, transposed: bool = True) -> Any:
    """torchvision's network as PyTorch exports it."""
    model = torchvision_alexnet()
    nodes, weights, x = [], {}, "images"

    def add(kind: str, *inputs: str, **settings: Any) -> None:
        nonlocal x
        name = f"y{len(nodes)}"
        nodes.append(helper.make_node(kind, [x, *inputs], [name], **settings))
        x = name

    for prefix, modules in (("features", model.features), ("classifier", model.classifier)):
        for index, module in enumerate(modules):
            names = [f"{prefix}.{index}.{part}" for part in ("weight", "bias")]
            match module:
                case torch.nn.Conv2d():
                    kernel, pads = list(module.kernel_size), [module.padding[0]] * 4
                    add("Conv", *names, kernel_shape=kernel, pads=pads, strides=list(module.stride), dilations=[1, 1])
                    weights |= dict(zip(names, (module.weight, module.bias), strict=True))
                case torch.nn.ReLU():
                    add("Relu")
                case torch.nn.MaxPool2d():
                    add("MaxPool", kernel_shape=[3, 3], strides=[2, 2], pads=[0] * 4, ceil_mode=0)
                case torch.nn.Linear():
                    add("Gemm", *names, transB=int(transposed), alpha=1.0, beta=1.0)
                    weight = module.weight if transposed else module.weight.T
                    weights |= dict(zip(names, (weight, module.bias), strict=True))
        if prefix == "features":
            add("AveragePool", kernel_shape=[1, 1], strides=[1, 1])
            add("Flatten", axis=1)
    arrays = [numpy_helper.from_array(value.detach().numpy(), name) for name, value in weights.items()]
    given = [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", 3, "H", "W"])]
    results = [helper.make_tensor_value_info(x, TensorProto.FLOAT, ["N", 7])]
    graph = helper.make_graph(nodes, "main_graph", given, results, arrays)
    return helper.make_model(graph, producer_name="pytorch", opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("transposed", [True, False])
def test_the_scores_are_those_of_torchvisions_graph(tmp_path, transposed):
    model = torchvision_graph(transposed=transposed)
    made = convert(saved(tmp_path / "a.onnx", model), tmp_path / "w.safetensors", variation=NARROW)
    expected = outputs(model, normalised())
    # Sums of 864 products or fewer, in another order.
    assert torch.allclose(
        our_scores(tmp_path / "w.safetensors"), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max())
    )
    assert (made.network.architecture, made.channels, made.note) == ("owt", "rgb", "")


def refused(path: Path, model: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^{path}{message}") as error:
        read_onnx(saved(path, model), NARROW)
    assert "\n" not in str(error.value)


def set_attribute(node: Any, name: str, value: Any) -> None:
    kept = [item for item in node.attribute if item.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, *([] if value is None else [helper.make_attribute(name, value)])])


# Nodes of the zoo's graph: 0 Conv, 1 Relu, 2 LRN, 3 MaxPool, ..., 14 MaxPool, 15 Reshape... without constants.
@pytest.mark.parametrize(
    ("index", "name", "value", "message"),
    [
        (0, "strides", [4, 2], "layer 1 is convolution 11x11, stride 4x2, padding 0, wanted"),
        (0, "auto_pad", "SAME_UPPER", "layer 1 is convolution 11x11, stride 4, padding -1, wanted"),
        (0, "dilations", [2, 2], "layer 1 is convolution 11x11, stride 4, padding 0, dilation 2, wanted"),
        (2, "bias", 2.0, "layer 3 is LRN 5, alpha 0.0001, beta 0.75, k 2, wanted"),
        (3, "pads", [1, 1, 1, 1], "layer 4 is max-pooling 3x3, stride 2, padding 1, wanted"),
        (3, "pads", [0, 0, 2, 2], "layer 4 is max-pooling 3x3, stride 2, padding 0x0x2x2, wanted"),
        (3, "strides", None, "layer 4 is max-pooling 3x3, stride 1, wanted"),
        (3, "dilations", [2, 2], "layer 4 is max-pooling 3x3, stride 2, dilated, wanted"),
    ],
)
def test_other_settings_are_refused(tmp_path, index, name, value, message):
    model = zoo()
    set_attribute(model.graph.node[index], name, value)
    refused(tmp_path / "a.onnx", model, f" is another network than caffe: {message}")


def test_other_graphs_are_refused(tmp_path):
    path = tmp_path / "a.onnx"
    refused(
        path, onnx.load(LIGHT), r" is no AlexNet .*: its Conv \(n\d+\) gets conv1_w_0 from other nodes; its weights"
    )
    model = zoo()
    model.graph.node[1].op_type = "Sigmoid"
    refused(path, model, r" is no AlexNet that can be converted: its Sigmoid \(n\d+\) is no layer of an AlexNet")
    model = zoo()
    model.graph.node[4].input[0] = "r0"
    refused(path, model, r" is no AlexNet .*: its Conv \(n\d+\) does not follow the layer before it")
    model = zoo()
    set_attribute(model.graph.node[2], "size", None)
    refused(path, model, r" is no AlexNet .*: its LRN \(n\d+\) lacks 'size'")
    model = zoo()
    next(node for node in model.graph.node if node.op_type == "Gemm").attribute.append(
        helper.make_attribute("alpha", 0.5)
    )
    refused(path, model, r" is no AlexNet .*: its Gemm \(n\d+\) scales or transposes")
    model = zoo()
    model.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, [1]))
    refused(path, model, " has 2 inputs; the graph of an AlexNet has one")
    model = zoo()
    model.graph.output[0].name = "r12"
    refused(path, model, ": the output of the last layer is not that of the graph")
    model = zoo()
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.zeros((8, 3, 5, 5), np.float32), "conv1_w_0"))
    refused(path, model, r": these are not the weights of caffe width=0.1: conv1.weight: \(8, 3, 5, 5\), wanted ")


def test_damaged_files_are_named(tmp_path):
    path = tmp_path / "a.onnx"
    whole = zoo().SerializeToString()
    for content in (whole[:-1], whole[:9999], b"some text, which is no graph"):
        path.write_bytes(content)
        with pytest.raises(ConfigurationError, match=f"^{path} is damaged, or no ONNX file: .*; copy or"):
            read_onnx(path, NARROW)
    path.write_bytes(b"")
    with pytest.raises(ConfigurationError, match="is empty"):
        read_onnx(path, NARROW)


def test_weights_in_a_file_of_their_own_are_read_and_missed(tmp_path):
    onnx.save(zoo(), tmp_path / "a.onnx", save_as_external_data=True, location="a.data", size_threshold=100)
    found = read_onnx(tmp_path / "a.onnx", NARROW)
    assert torch.equal(found.weights["fc6.weight"], WEIGHTS["fc6.weight"])
    (tmp_path / "a.data").unlink()
    with pytest.raises(ConfigurationError, match=r"a\.data|a\.onnx is damaged"):
        read_onnx(tmp_path / "a.onnx", NARROW)


def test_without_the_package_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(ConfigurationError, match=r"onnx is not installed; .* 'fastalex\[export\]'$"):
        read_onnx(tmp_path / "a.onnx")

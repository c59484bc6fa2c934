"""ONNX graphs that are an AlexNet: BVLC's of the ONNX model zoo (our ``caffe``), and torchvision's exported (``owt``).

The zoo's ``bvlcalexnet`` was made from Caffe's weights by way of Caffe2, so it takes blue, green and red minus Caffe's
mean. Its graph declares images of 224 x 224 pixels, where Caffe's network takes 227 x 227: conv1 then makes 54 x 54
outputs in place of 55 x 55. The weights are the same. Here they get the 227 pixels that they were trained with.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastalex.errors import ConfigurationError
from fastalex.interchange.foreign_network import FULL_SIZE, ForeignNetwork, by_position, checked
from fastalex.interchange.layers import (
    LINEAR,
    RELU,
    check_layers,
    closest,
    convolution,
    local_response_norm,
    max_pooling,
)
from fastalex.network.foreign_files import check_file
from fastalex.network.variation import Variation, build_architecture
from fastalex.optional_packages import require

SUFFIXES = (".onnx",)

_CANDIDATES = ("caffe", "owt")
_SOFTMAX = "Softmax"
# What changes no values in evaluation. ONNX flattens feature maps channel by channel, row by row, as we do.
_IGNORED = {"Dropout", "Flatten", "Reshape", "Identity"}
# What computes no activations, such as the shape for a Reshape.
_AUXILIARY = {"ConstantOfShape", "Shape", "Gather", "Concat", "Unsqueeze", "Cast", "Slice", "Squeeze"}


def read_onnx(path: Path, variation: Variation = FULL_SIZE) -> ForeignNetwork:
    """The network in an ONNX file.

    Args:
        variation: of a network that was made narrower.

    Raises:
        ConfigurationError: the file is missing, damaged or holds another network, or the package onnx is missing.
    """
    onnx = require("onnx", "export")
    check_file(path)
    model = _load(onnx, path)
    graph = _Graph(onnx, path, model.graph)
    graph.follow()
    architectures = [build_architecture(name, variation=variation) for name in _CANDIDATES]
    architecture = closest(graph.layers, architectures)
    name = architecture.name
    weights, network = checked(path, by_position(graph.weights, architecture), name, variation)
    check_layers(path, graph.layers, architecture)
    note = ""
    if graph.image_size not in (None, architecture.image_size):
        size = architecture.image_size
        note = (
            f"the graph declares {graph.image_size} pixels; the network takes the {size} that {name} was trained with"
        )
    maker = model.producer_name or "an unnamed program"
    return ForeignNetwork(weights, network, f"an ONNX graph of {maker}", "bgr" if name == "caffe" else "rgb", note)


def _load(onnx: ModuleType, path: Path) -> Any:
    try:
        return onnx.load(str(path))
    except OSError as error:
        raise ConfigurationError(f"cannot read {error.filename or path}: {error.strerror or error}") from None
    except Exception as error:  # of protobuf, and of onnx for weights in other files
        reason = str(error).partition("\n")[0]
        raise ConfigurationError(f"{path} is damaged, or no ONNX file: {reason}; copy or download it again") from None


class _Graph:
    """A chain of layers, followed from the image to the scores.

    Attributes:
        layers: the layers in words.
        weights: name, weight and bias of each layer that has them.
        image_size: height of the images, if it is fixed.
    """

    def __init__(self, onnx: ModuleType, path: Path, graph: Any) -> None:
        self.onnx, self.path, self.graph = onnx, path, graph
        self.stored = {tensor.name: tensor for tensor in graph.initializer}
        self.layers: list[str] = []
        self.weights: list[tuple[str, NDArray[np.float32], NDArray[np.float32] | None]] = []
        images = [value for value in graph.input if value.name not in self.stored]
        if len(images) != 1:
            raise ConfigurationError(f"{path} has {len(images)} inputs; the graph of an AlexNet has one, the images")
        self.current = images[0].name
        dims = images[0].type.tensor_type.shape.dim
        self.image_size: int | None = dims[2].dim_value or None if len(dims) == 4 else None

    def follow(self) -> None:
        """Read all layers.

        Raises:
            ConfigurationError: the graph is no chain of AlexNet's layers.
        """
        for node in self.graph.node:
            if node.op_type == "Constant":
                self.stored.update((node.output[0], item.t) for item in node.attribute if item.name == "value")
            elif node.op_type == "Identity" and node.input[0] in self.stored:  # a tensor that is used twice
                self.stored[node.output[0]] = self.stored[node.input[0]]
            elif node.op_type in _AUXILIARY:
                continue
            elif not node.input or node.input[0] != self.current:
                raise self._refusal(node, "does not follow the layer before it")
            else:
                try:
                    self._read(node)
                except (KeyError, IndexError) as error:
                    raise self._refusal(node, f"lacks {error}") from None
                self.current = node.output[0]
        if self.current not in [value.name for value in self.graph.output]:
            raise ConfigurationError(f"{self.path}: the output of the last layer is not that of the graph")
        if self.layers and self.layers[-1] == _SOFTMAX:
            self.layers.pop()

    def _read(self, node: Any) -> None:
        settings = {item.name: self.onnx.helper.get_attribute_value(item) for item in node.attribute}
        match node.op_type:
            case "Conv":
                self._read_convolution(node, settings)
            case "Gemm":
                self._read_linear(node, settings)
            case "Relu":
                self.layers.append(RELU)
            case "LRN":
                alpha, beta = settings.get("alpha", 1e-4), settings.get("beta", 0.75)
                self.layers.append(local_response_norm(settings["size"], alpha, beta, settings.get("bias", 1.0)))
            case "MaxPool":
                self.layers.append(_describe_pooling(settings))
            case "AveragePool" if set(settings["kernel_shape"]) == {1}:
                pass  # torchvision's adaptive pooling of 6 x 6 pixels to 6 x 6
            case "Softmax":
                self.layers.append(_SOFTMAX)
            case kind if kind in _IGNORED:
                pass
            case _:
                raise self._refusal(node, "is no layer of an AlexNet")

    def _read_convolution(self, node: Any, settings: Mapping[str, Any]) -> None:
        weight = self._array(node, 1)
        two = len(weight.shape) - 2
        kernel = settings.get("kernel_shape", weight.shape[2:])
        stride, dilation = settings.get("strides", [1] * two), settings.get("dilations", ())
        self.layers.append(convolution(kernel, stride, _padding(settings), settings.get("group", 1), dilation))
        self.weights.append((node.input[1], weight, self._array(node, 2) if len(node.input) > 2 else None))

    def _read_linear(self, node: Any, settings: Mapping[str, Any]) -> None:
        if settings.get("alpha", 1) != 1 or settings.get("beta", 1) != 1 or settings.get("transA", 0):
            raise self._refusal(node, "scales or transposes what it multiplies")
        weight = self._array(node, 1)
        self.layers.append(LINEAR)
        bias = self._array(node, 2).reshape(-1) if len(node.input) > 2 else None
        self.weights.append((node.input[1], weight if settings.get("transB", 0) else weight.T, bias))

    def _array(self, node: Any, index: int) -> NDArray[np.float32]:
        tensor = self.stored.get(node.input[index])
        if tensor is None:
            raise self._refusal(node, f"gets {node.input[index]} from other nodes; its weights must be stored")
        try:
            return require("onnx.numpy_helper", "export").to_array(tensor).astype(np.float32)
        except (ValueError, TypeError) as error:
            raise ConfigurationError(
                f"{self.path} is damaged: {tensor.name}: {error}; copy or download it again"
            ) from None

    def _refusal(self, node: Any, why: str) -> ConfigurationError:
        name = f" ({node.name or ', '.join(node.output)})"
        return ConfigurationError(f"{self.path} is no AlexNet that can be converted: its {node.op_type}{name} {why}")


def _describe_pooling(settings: Mapping[str, Any]) -> str:
    kernel, padding = settings["kernel_shape"], _padding(settings)
    stride = settings.get("strides", [1] * len(kernel))
    # Maps of 55, 27 and 13 pixels are covered by windows of 3 pixels with stride 2. A further row at the end, as
    # the zoo has it in place of rounding up, then adds no window.
    first, last = padding[: len(padding) // 2], padding[len(padding) // 2 :]
    covered = list(kernel) == [3, 3] and list(stride) == [2, 2] and not any(first) and max(last, default=0) <= 1
    dilated = any(step != 1 for step in settings.get("dilations", ()))
    text = max_pooling(kernel, stride, () if covered else padding)
    return f"{text}, dilated" if dilated else text


def _padding(settings: Mapping[str, Any]) -> list[int]:
    """Padding before each axis, then after; -1 where the runtime chooses it."""
    if settings.get("auto_pad", b"NOTSET") in (b"SAME_UPPER", b"SAME_LOWER"):
        return [-1]
    return list(settings.get("pads", [0]))

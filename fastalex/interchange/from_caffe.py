"""BVLC Caffe's ``bvlc_alexnet.caffemodel``: our ``caffe``. Caffe itself is not needed.

A caffemodel is a ``NetParameter``, which lists the layers with their settings and weights. Since 2014 they are its
field ``layers`` (``V1LayerParameter``), since 2015 ``layer`` (``LayerParameter``). All field numbers are those of
``src/caffe/proto/caffe.proto``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastalex.errors import ConfigurationError
from fastalex.interchange.foreign_network import FULL_SIZE, ForeignNetwork, by_position, checked
from fastalex.interchange.layers import LINEAR, RELU, check_layers, convolution, local_response_norm, max_pooling
from fastalex.network.caffe_format import Message, floats, integers, read_blob, read_message, submessages, text
from fastalex.network.foreign_files import check_file
from fastalex.network.variation import Variation, build_architecture

SUFFIXES = (".caffemodel",)

_NET_NAME, _LAYERS, _LAYER = 1, 2, 100  # of NetParameter


@dataclass(frozen=True)
class _Fields:
    """The numbers of the fields of a layer that are read here."""

    name: int
    type: int
    blobs: int
    convolution: int
    norm: int
    pooling: int
    relu: int


_V1 = _Fields(name=4, type=5, blobs=6, convolution=10, norm=18, pooling=19, relu=30)
_V2 = _Fields(name=1, type=2, blobs=7, convolution=106, norm=118, pooling=121, relu=123)
_V0_LAYER = 1  # of V1LayerParameter

# Types of V1 layers; in V2 they are text.
_TYPES = {
    1: "Accuracy",
    3: "Concat",
    4: "Convolution",
    5: "Data",
    6: "Dropout",
    9: "HDF5Data",
    12: "ImageData",
    14: "InnerProduct",
    15: "LRN",
    17: "Pooling",
    18: "ReLU",
    20: "Softmax",
    21: "SoftmaxWithLoss",
    22: "Split",
    24: "WindowData",
    29: "MemoryData",
    32: "DummyData",
    36: "Silence",
}
# What does not change the scores in evaluation.
_IGNORED = {
    *("Accuracy", "Data", "Dropout", "DummyData", "HDF5Data", "ImageData", "Input", "MemoryData", "Silence"),
    *("Softmax", "SoftmaxWithLoss", "Split", "WindowData"),
}


def read_caffemodel(path: Path, variation: Variation = FULL_SIZE) -> ForeignNetwork:
    """The network in a caffemodel.

    Args:
        variation: of a network that was made narrower.

    Raises:
        ConfigurationError: the file is missing, damaged, older than 2014, or holds another network.
    """
    check_file(path)
    try:
        net = read_message(memoryview(path.read_bytes()))
        name = text(net, _NET_NAME)
        layers = [_Layer(_V1, read_message(data)) for data in submessages(net, _LAYERS)]
        layers += [_Layer(_V2, read_message(data)) for data in submessages(net, _LAYER)]
        _check_version(path, layers)
        layers = [layer for layer in layers if layer.type not in _IGNORED]
        found = [layer.describe() for layer in layers]
        weighted = [layer.weights() for layer in layers if layer.fields.blobs in layer.message]
    except (ValueError, OverflowError) as error:
        if isinstance(error, ConfigurationError):
            raise
        raise ConfigurationError(f"{path} is damaged, or no caffemodel: {error}; copy or download it again") from None
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}") from None
    architecture = build_architecture("caffe", variation=variation)
    weights, network = checked(path, by_position(weighted, architecture), "caffe", variation)
    check_layers(path, found, architecture)
    return ForeignNetwork(weights, network, f"a caffemodel ({name or 'without a name'})", "bgr")


class _Layer:
    """One layer of a caffemodel."""

    def __init__(self, fields: _Fields, message: Message) -> None:
        self.fields, self.message = fields, message
        self.name = text(message, fields.name)
        if fields is _V1:
            number = (integers(message, fields.type) or [0])[-1]
            self.type = _TYPES.get(number, f"layer type {number}")
        else:
            self.type = text(message, fields.type)

    def describe(self) -> str:
        """The layer in words."""
        match self.type:
            case "Convolution":
                return _describe_convolution(self._settings(self.fields.convolution))
            case "LRN":
                return _describe_norm(self._settings(self.fields.norm))
            case "Pooling":
                return _describe_pooling(self._settings(self.fields.pooling))
            case "ReLU":
                slope = floats(self._settings(self.fields.relu), 1)
                return RELU if not slope.any() else f"ReLU with slope {slope[-1]:g}"
            case "InnerProduct":
                return LINEAR
        return f"{self.type} ({self.name})"

    def weights(self) -> tuple[str, NDArray[np.float32], NDArray[np.float32] | None]:
        """Name, weight and bias. Older files have four dimensions for all: matrices are 1 x 1 x outputs x inputs."""
        weight, *biases = (read_blob(data) for data in submessages(self.message, self.fields.blobs))
        if self.type == "InnerProduct" and weight.ndim == 4 and weight.shape[:2] == (1, 1):
            weight = weight[0, 0]
        return self.name, weight, biases[0].reshape(-1) if biases else None

    def _settings(self, number: int) -> Message:
        settings = submessages(self.message, number)
        return read_message(settings[-1]) if settings else {}


def _check_version(path: Path, layers: Sequence[_Layer]) -> None:
    if not layers:
        raise ConfigurationError(f"{path} is no caffemodel: it has no layers")
    if any(layer.fields is _V1 and _V0_LAYER in layer.message for layer in layers):
        raise ConfigurationError(
            f"{path} has the format that Caffe had before 2014; upgrade it with Caffe's upgrade_net_proto_binary"
        )


def _describe_convolution(settings: Message) -> str:
    kernel = integers(settings, 4) or _last(settings, 11, 12, default=0)
    stride = integers(settings, 6) or _last(settings, 13, 14, default=1)
    padding = integers(settings, 3) or _last(settings, 9, 10, default=0)
    (groups,) = _last(settings, 5, default=1)
    return convolution(kernel, stride, padding, groups, integers(settings, 18))


def _describe_pooling(settings: Message) -> str:
    kernel = integers(settings, 2) or _last(settings, 5, 6, default=0)
    stride = integers(settings, 3) or _last(settings, 7, 8, default=1)
    padding = integers(settings, 4) or _last(settings, 9, 10, default=0)
    pooling, over_all = _last(settings, 1, 12, default=0)
    if pooling or over_all:
        return "pooling that is no max-pooling" if pooling else "max-pooling over the whole map"
    return max_pooling(kernel, stride, padding)


def _describe_norm(settings: Message) -> str:
    size, region = (_last(settings, number, default=value)[0] for number, value in ((1, 5), (4, 0)))
    if region:
        return "LRN within each channel"
    defaults = ((2, 1.0), (3, 0.75), (5, 1.0))
    alpha, beta, k = (float([value, *floats(settings, number)][-1]) for number, value in defaults)
    return local_response_norm(size, alpha, beta, k)


def _last(settings: Message, *numbers: int, default: int) -> list[int]:
    """The last value of each of these fields, or the default."""
    return [(integers(settings, number) or [default])[-1] for number in numbers]

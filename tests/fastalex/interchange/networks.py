"""AlexNets of other programs, written from their public definitions, and the files that these programs write."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from torch import Tensor, nn

from fastalex.network.variation import Variation
from fastalex.network.weights import NetworkSpec, load_model
from fastalex.network.weights_record import load_record

NARROW = Variation(width=0.1)
CLASSES = 7


def random_weights(architecture: str, classes: int = CLASSES) -> dict[str, Tensor]:
    """Weights of a narrow network by our names, so large that its scores differ between images."""
    generator = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        shapes = {
            name: tuple(value.shape)
            for name, value in NetworkSpec(architecture, classes, NARROW).build(seed=0).named_parameters()
        }
    return {
        name: torch.randn(shape, generator=generator) * (np.prod(shape[1:]) ** -0.5 * 1.4 if len(shape) > 1 else 0.1)
        for name, shape in shapes.items()
    }


def image() -> np.ndarray:
    """A stored image, 256 x 256, in red, green and blue. Its colours differ, so that their order matters."""
    pixels = np.random.default_rng(1).uniform(0, 150, (256, 256, 3))
    return (pixels + np.array([100, 40, 0])).astype(np.float32)


def our_scores(path: Path) -> Tensor:
    """The scores of a file of ours for the image, prepared as its record says."""
    model, _ = load_model(path)
    record = load_record(path)
    assert record is not None
    first = (record.stored_size - record.crop_size) // 2
    window = slice(first, first + record.crop_size)
    pixels = (image() - record.mean_image())[window, window]
    with torch.inference_mode():
        return model(torch.from_numpy(pixels.transpose(2, 0, 1)[None].copy()))[0]


# --- torchvision ------------------------------------------------------------------------------------------------------


class TorchvisionAlexNet(nn.Module):
    """The layers of torchvision's ``alexnet`` in its order, with any numbers of channels."""

    def __init__(self, channels: tuple[int, ...], hidden: int, classes: int) -> None:
        super().__init__()
        a, b, c, d, e = channels
        self.features = nn.Sequential(
            nn.Conv2d(3, a, kernel_size=11, stride=4, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(kernel_size=3, stride=2),
            nn.Conv2d(a, b, kernel_size=5, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(kernel_size=3, stride=2),
            nn.Conv2d(b, c, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(c, d, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(d, e, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(kernel_size=3, stride=2),
        )
        self.avgpool = nn.AdaptiveAvgPool2d((6, 6))
        self.classifier = nn.Sequential(
            nn.Dropout(p=0.5),
            nn.Linear(e * 6 * 6, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(p=0.5),
            nn.Linear(hidden, hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


def torchvision_alexnet(classes: int = CLASSES) -> TorchvisionAlexNet:
    """torchvision's network, narrow, with random weights."""
    weights = random_weights("owt", classes)
    convolutions = tuple(len(weights[f"conv{number}.weight"]) for number in range(1, 6))
    model = TorchvisionAlexNet(convolutions, len(weights["fc6.weight"]), classes)
    with torch.no_grad():
        for parameter, weight in zip(model.parameters(), weights.values(), strict=True):
            parameter.copy_(weight)
    return model.eval()


def normalised() -> Tensor:
    """The centre of the image as torchvision's transforms give it to a network."""
    pixels = image()[16:240, 16:240] / 255
    pixels = (pixels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    return torch.from_numpy(pixels.transpose(2, 0, 1)[None]).float()


# --- Caffe ------------------------------------------------------------------------------------------------------------

MEAN = np.random.default_rng(2).uniform(80, 140, (3, 256, 256)).astype(np.float32)
"""A mean image in Caffe's layout: blue, green and red planes."""


def caffe_input(mean: np.ndarray = MEAN, size: int = 227) -> Tensor:
    """The centre of the image as Caffe gives it to a network: planes of blue, green and red, minus the mean."""
    first = (256 - size) // 2
    planes = image()[..., ::-1].transpose(2, 0, 1) - mean
    return torch.from_numpy(planes[None, :, first : first + size, first : first + size].copy())


def caffe_scores(weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """``models/bvlc_alexnet/deploy.prototxt`` in plain PyTorch. Caffe rounds pooled sizes up."""

    def convolve(name: str, x: Tensor, **settings: int) -> Tensor:
        return F.relu(F.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], **settings))

    def normalise_and_pool(x: Tensor) -> Tensor:
        return F.max_pool2d(F.local_response_norm(x, 5, alpha=1e-4, beta=0.75, k=1.0), 3, 2, ceil_mode=True)

    x = normalise_and_pool(convolve("conv1", x, stride=4))
    x = normalise_and_pool(convolve("conv2", x, padding=2, groups=2))
    x = convolve("conv3", x, padding=1)
    x = convolve("conv4", x, padding=1, groups=2)
    x = F.max_pool2d(convolve("conv5", x, padding=1, groups=2), 3, 2, ceil_mode=True).flatten(1)
    for name in ("fc6", "fc7"):
        x = F.relu(F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"]))
    return F.linear(x, weights["fc8.weight"], weights["fc8.bias"])[0]


# The fields of ``caffe.proto`` that the tests write: name=number:type, with a star if the field is repeated.
SCHEMA = """
BlobShape: dim=1:int64*
BlobProto: num=1:int64 channels=2:int64 height=3:int64 width=4:int64 data=5:float* diff=6:float* shape=7:BlobShape
BlobProto: double_data=8:double*
Convolution: num_output=1:uint32 pad=3:uint32* kernel_size=4:uint32* group=5:uint32 stride=6:uint32*
Convolution: dilation=18:uint32*
LRN: local_size=1:uint32 alpha=2:float beta=3:float norm_region=4:uint32 k=5:float
Pooling: pool=1:uint32 kernel_size=2:uint32 stride=3:uint32
ReLU: negative_slope=1:float
V0Layer: name=1:string
V1Layer: layer=1:V0Layer bottom=2:string* top=3:string* name=4:string type=5:uint32 blobs=6:BlobProto* blobs_lr=7:float*
V1Layer: convolution=10:Convolution lrn=18:LRN pooling=19:Pooling relu=30:ReLU
V2Layer: name=1:string type=2:string bottom=3:string* top=4:string* loss_weight=5:float* blobs=7:BlobProto*
V2Layer: convolution=106:Convolution lrn=118:LRN pooling=121:Pooling relu=123:ReLU
Net: name=1:string layers=2:V1Layer* layer=100:V2Layer*
"""
PACKED = ("float", "double", "int64")  # what Caffe packs
NUMBERS = {"double": 1, "float": 2, "int64": 3, "string": 9, "message": 11, "uint32": 13}


def _schema(packed: bool) -> dict[str, Any]:
    """Message classes, made by the protobuf package."""
    package = f"caffe{packed}"
    file = descriptor_pb2.FileDescriptorProto(name=f"{package}.proto", package=package, syntax="proto2")
    messages: dict[str, Any] = {}
    for line in SCHEMA.strip().splitlines():
        message, _, fields = line.partition(": ")
        if message not in messages:
            messages[message] = file.message_type.add(name=message)
        for name, number, kind in (re.split("[=:]", field) for field in fields.split()):
            repeated, kind = kind.endswith("*"), kind.rstrip("*")
            field = messages[message].field.add(name=name, number=int(number), label=3 if repeated else 1)
            field.type = NUMBERS.get(kind, NUMBERS["message"])
            if field.type == NUMBERS["message"]:
                field.type_name = f".{package}.{kind}"
            if repeated and kind in PACKED:
                field.options.packed = packed
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.{name}")) for name in messages}


SCHEMAS = {packed: _schema(packed) for packed in (True, False)}


def blob(array: np.ndarray, *, legacy: bool = False, packed: bool = True, doubles: bool = False) -> Any:
    """An array as a ``BlobProto``; in the legacy way with four dimensions."""
    message = SCHEMAS[packed]["BlobProto"]()
    if legacy:
        message.num, message.channels, message.height, message.width = (1,) * (4 - array.ndim) + array.shape
    else:
        message.shape.dim.extend(array.shape)
    (message.double_data if doubles else message.data).extend(array.ravel().tolist())
    return message


LAYERS = (
    *(("data", "Data"), ("conv1", "Convolution"), ("relu1", "ReLU"), ("norm1", "LRN"), ("pool1", "Pooling")),
    *(("conv2", "Convolution"), ("relu2", "ReLU"), ("norm2", "LRN"), ("pool2", "Pooling")),
    *(("conv3", "Convolution"), ("relu3", "ReLU"), ("conv4", "Convolution"), ("relu4", "ReLU")),
    *(("conv5", "Convolution"), ("relu5", "ReLU"), ("pool5", "Pooling")),
    *(("fc6", "InnerProduct"), ("relu6", "ReLU"), ("drop6", "Dropout")),
    *(("fc7", "InnerProduct"), ("relu7", "ReLU"), ("drop7", "Dropout")),
    *(("fc8", "InnerProduct"), ("loss", "SoftmaxWithLoss")),
)
V1_TYPES = {
    "Convolution": 4,
    "Data": 5,
    "Dropout": 6,
    "InnerProduct": 14,
    "LRN": 15,
    "Pooling": 17,
    "ReLU": 18,
    "SoftmaxWithLoss": 21,
}
CONVOLUTIONS = {
    "conv1": {"kernel_size": [11], "stride": [4]},
    "conv2": {"kernel_size": [5], "pad": [2], "group": 2},
    "conv3": {"kernel_size": [3], "pad": [1]},
    "conv4": {"kernel_size": [3], "pad": [1], "group": 2},
    "conv5": {"kernel_size": [3], "pad": [1], "group": 2},
}


def caffemodel(
    weights: Mapping[str, Tensor],
    *,
    version: int = 2,
    packed: bool = True,
    doubles: bool = False,
    legacy: bool = False,
    layers: tuple[tuple[str, str], ...] = LAYERS,
) -> Any:
    """Weights with Caffe's order of colours as a ``NetParameter``."""
    net = SCHEMAS[packed]["Net"](name="AlexNet")
    for name, kind in layers:
        layer = net.layers.add() if version == 1 else net.layer.add()
        layer.name = name
        layer.type = V1_TYPES[kind] if version == 1 else kind
        layer.top.append(name)
        if kind == "Convolution":
            for key, value in CONVOLUTIONS[name].items():
                if isinstance(value, int):
                    setattr(layer.convolution, key, value)
                else:
                    getattr(layer.convolution, key).extend(value)
        if kind == "LRN":
            layer.lrn.local_size, layer.lrn.alpha, layer.lrn.beta = 5, 1e-4, 0.75
        if kind == "Pooling":
            layer.pooling.kernel_size, layer.pooling.stride = 3, 2
        if f"{name}.weight" in weights:
            (layer.blobs_lr if version == 1 else layer.loss_weight).extend([1.0, 2.0])
            for part in ("weight", "bias"):
                array = weights[f"{name}.{part}"].numpy()
                layer.blobs.append(blob(array, packed=packed, doubles=doubles, legacy=legacy))
    return net

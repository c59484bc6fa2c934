"""The weights of ``owt`` by torchvision's names: for torchvision's ``alexnet``, and in the layout of timm's folders.

``owt`` is the network of torchvision's ``alexnet``, so only the names change. It sees images divided by torchvision's
standard deviations, but minus the mean of its own training images: torchvision's transform is
``Normalize(mean / 255, std / 255)`` with that mean.
"""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from fastalex.errors import ConfigurationError
from fastalex.network.model import AlexNet
from fastalex.network.variation import build_architecture
from fastalex.network.weights import NetworkSpec
from fastalex.network.weights_record import WeightsRecord

# Modules of torchvision.models.AlexNet by block.
MODULES = {
    "conv1": "features.0",
    "conv2": "features.3",
    "conv3": "features.6",
    "conv4": "features.8",
    "conv5": "features.10",
    "fc6": "classifier.1",
    "fc7": "classifier.4",
    "fc8": "classifier.6",
}


def check_torchvision(spec: NetworkSpec) -> None:
    """Check that a network is torchvision's, whatever its number of classes and its dropout.

    Raises:
        ConfigurationError: it is another network.
    """
    architecture = spec.build_architecture()
    owt = build_architecture("owt", spec.num_classes)
    if replace(architecture, dropout=owt.dropout) != owt:
        raise ConfigurationError(
            f"torchvision's alexnet is the network owt; {spec.summary()} has other layers: export it to onnx or pt2"
        )


def torchvision_state_dict(model: AlexNet) -> dict[str, Tensor]:
    """The parameters of ``owt`` by the names of torchvision's ``alexnet``, contiguous."""
    return {
        f"{MODULES[block.spec.name]}.{name}": parameter.detach().contiguous()
        for block in model.blocks()
        for name, parameter in block.named_parameters()
    }


def build_torchvision(model: AlexNet) -> bytes:
    """The content of a ``.pth`` file for ``torchvision.models.alexnet(num_classes=...).load_state_dict``."""
    content = io.BytesIO()
    torch.save(torchvision_state_dict(model), content)
    return content.getvalue()


def normalisation(spec: NetworkSpec, record: WeightsRecord | None) -> dict[str, Any]:
    """Mean and standard deviation for torchvision's ``Normalize``, of images from 0 to 1.

    The mean is None where it is unknown, and where it is an image.
    """
    std = spec.build_architecture().input_std
    assert std is not None
    has_colour = record is not None and record.mean.ndim == 1
    mean = [float(value) / 255 for value in record.mean] if record is not None and has_colour else None
    return {"mean": mean, "std": [value / 255 for value in std]}


def check_timm(spec: NetworkSpec, record: WeightsRecord | None) -> None:
    """Check that timm's configuration can describe the images of a network, and :func:`check_torchvision`.

    Raises:
        ConfigurationError: it is another network, or its images have no known mean colour.
    """
    check_torchvision(spec)
    if normalisation(spec, record)["mean"] is None:
        found = "an unknown mean" if record is None else "a mean image"
        raise ConfigurationError(
            f"timm's config.json holds one mean per colour, these weights have {found}; export them to torchvision, "
            "onnx or pt2"
        )


def build_timm(model: AlexNet) -> bytes:
    """The content of ``model.safetensors`` in a timm folder: the same tensors, and the header entry ``format: pt``."""
    return safetensors.torch.save(torchvision_state_dict(model), metadata={"format": "pt"})


def timm_config(spec: NetworkSpec, record: WeightsRecord) -> dict[str, Any]:
    """``config.json`` of a timm folder: architecture, classes, and ``pretrained_cfg`` with the preparation of images.

    timm itself has no AlexNet: a program must define the network (torchvision's) and may take all else from here.
    """
    architecture = spec.build_architecture()
    size = architecture.image_size
    fc8 = architecture.blocks[-1]
    return {
        "architecture": "alexnet",
        "num_classes": spec.num_classes,
        "num_features": getattr(architecture.blocks[-2], "out_features", None),
        "label_names": list(spec.classes),
        "pretrained_cfg": {
            "input_size": [3, size, size],
            "fixed_input_size": True,
            # timm resizes the image to input_size / crop_pct and takes the centre.
            "crop_pct": size / record.stored_size,
            "crop_mode": {"shorter": "center", "squash": "squash"}[record.resize],
            "interpolation": "box",  # area averages, as the images were shrunk
            **normalisation(spec, record),
            "first_conv": MODULES["conv1"],
            "classifier": MODULES[fc8.name],
        },
    }

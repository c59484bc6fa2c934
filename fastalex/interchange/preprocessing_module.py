"""What a network expects of its images, for programs that do not have fastalex: as a module, or as JSON.

A stored image is S x S pixels: an image resized so that its shorter side is S, and its centre square. The network sees
its centre crop minus the mean of the training images. Both are RGB, 0 to 255.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fastalex.errors import ConfigurationError
from fastalex.network.weights import NetworkSpec
from fastalex.network.weights_record import WeightsRecord

RESIZE_RULES = {
    "shorter": "resize the shorter side to {size} pixels and take the centre {size} x {size} square",
    "squash": "resize both sides to {size} pixels",
}


class StoredPreprocessing(nn.Module):
    """Stored images, N x 3 x S x S in uint8, to the input of the network: their centre crop minus the mean.

    Args:
        record: what a file of weights says of its images.
        crop_size: C, the side of the crop.

    Attributes:
        stored_size: S, the side of the stored image.
        crop_size: C.
        offset: first row and column of the crop.
        mean: of the crop, 3 x C x C for a mean image, 3 x 1 x 1 for a mean colour; float32, RGB 0-255.

    Raises:
        ConfigurationError: the stored images are smaller than the crop.
    """

    mean: Tensor

    def __init__(self, record: WeightsRecord, crop_size: int) -> None:
        super().__init__()
        size = record.stored_size
        if size < crop_size:
            raise ConfigurationError(
                f"the images are stored in {size} pixels, the network takes crops of {crop_size}: the record of the "
                "weights is wrong; restore the file from a copy"
            )
        self.stored_size, self.crop_size, self.offset = size, crop_size, (size - crop_size) // 2
        inside = slice(self.offset, self.offset + crop_size)
        mean = record.mean.reshape(1, 1, 3) if record.mean.ndim == 1 else record.mean[inside, inside]
        self.register_buffer("mean", torch.from_numpy(np.ascontiguousarray(mean.transpose(2, 0, 1), dtype=np.float32)))

    def forward(self, images: Tensor) -> Tensor:
        """N x 3 x C x C, float32."""
        inside = slice(self.offset, self.offset + self.crop_size)
        return images[:, :, inside, inside].float() - self.mean


def mean_image(record: WeightsRecord | None) -> NDArray[np.float32] | None:
    """The mean image as a file holds it, 3 x S x S; None for a mean colour and where the mean is unknown."""
    if record is None or record.mean.ndim == 1:
        return None
    return np.ascontiguousarray(record.mean.transpose(2, 0, 1))


def describe(
    spec: NetworkSpec, record: WeightsRecord | None, *, with_preprocessing: bool, mean_file: str
) -> dict[str, Any]:
    """How to use an exported network, as plain values for JSON: input, output, preparation of images, classes, origin.

    Args:
        with_preprocessing: whether the exported network crops, subtracts the mean and applies the softmax itself.
        mean_file: name of the file that holds the mean image, if there is one.
    """
    architecture = spec.build_architecture()
    crop = architecture.image_size
    size = crop if record is None or not with_preprocessing else record.stored_size
    mean = _describe_mean(record, mean_file)
    return {
        "architecture": spec.summary(),
        "input": {
            "name": "images",
            "layout": "N x 3 x height x width, RGB",
            "size": [size, size],
            "dtype": "uint8" if with_preprocessing else "float32",
            "scale": "0 to 255" if with_preprocessing else "0 to 255 minus the mean",
        },
        "output": {
            "name": "probabilities" if with_preprocessing else "logits",
            "layout": f"N x {spec.num_classes}",
            "dtype": "float32",
        },
        "preparation": {
            "steps": _steps(record, crop, mean, with_preprocessing=with_preprocessing),
            "stored_size": None if record is None else record.stored_size,
            "crop_size": crop,
            "resize": "unknown" if record is None else record.resize,
            "mean": {"kind": "included"} if with_preprocessing else mean,
        },
        "classes": list(spec.classes),
        "origin": None if record is None or record.origin is None else asdict(record.origin),
    }


def _describe_mean(record: WeightsRecord | None, mean_file: str) -> dict[str, Any]:
    if record is None:
        return {"kind": "unknown"}
    if record.mean.ndim == 1:
        return {"kind": "colour", "values": [float(value) for value in record.mean], "scale": "0 to 255"}
    size = record.stored_size
    return {"kind": "image", "file": mean_file, "shape": [3, size, size], "scale": "0 to 255"}


def _steps(record: WeightsRecord | None, crop: int, mean: Mapping[str, Any], *, with_preprocessing: bool) -> list[str]:
    """What to do with an image file, in order, in plain words."""
    if record is None:
        return [f"how images were prepared is unknown; the network takes {crop} x {crop} pixels minus the mean"]
    steps = [f"decode to RGB, 0 to 255; {RESIZE_RULES[record.resize].format(size=record.stored_size)}"]
    if with_preprocessing:
        return [*steps, "give the square to the network as uint8"]
    subtract = "the mean colour" if mean["kind"] == "colour" else f"the mean image, {mean['file']}"
    return [*steps, f"convert to float32 and subtract {subtract}", f"take the centre {crop} x {crop} pixels"]

"""What a network expects of its images, for programs that do not have fastalex: as a module, or as JSON.

A stored image is S x S pixels: an image resized so that its shorter side is S, and its centre square. The network sees
its centre crop minus the mean of the training images. Both are RGB, 0 to 255.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
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


@dataclass(frozen=True, eq=False)
class Preprocessing:
    """The centre crop of stored images, minus the mean.

    Args:
        stored_size: S, the side of the stored image.
        crop_size: C, the side of the crop.
        offset: first row and column of the crop.
        mean: of the crop, 3 x C x C for a mean image, 3 x 1 x 1 for a mean colour; float32, RGB 0-255.
    """

    stored_size: int
    crop_size: int
    offset: int
    mean: NDArray[np.float32]

    @classmethod
    def of(cls, record: WeightsRecord, crop_size: int) -> Preprocessing:
        """What a file of weights records.

        Raises:
            ConfigurationError: the stored images are smaller than the crop.
        """
        size = record.stored_size
        if size < crop_size:
            raise ConfigurationError(
                f"the images are stored in {size} pixels, the network takes crops of {crop_size}: the record of the "
                "weights is wrong; restore the file from a copy"
            )
        offset = (size - crop_size) // 2
        mean = record.mean.reshape(1, 1, 3) if record.mean.ndim == 1 else record.mean
        if record.mean.ndim == 3:
            mean = mean[offset : offset + crop_size, offset : offset + crop_size]
        return cls(size, crop_size, offset, np.ascontiguousarray(mean.transpose(2, 0, 1), dtype=np.float32))

    def apply(self, images: Tensor) -> Tensor:
        """The input of the network, N x 3 x C x C in float32, for stored images, N x 3 x S x S in uint8."""
        return self.module()(images)

    def module(self) -> PreprocessingModule:
        """The same as a module."""
        return PreprocessingModule(self)


class PreprocessingModule(nn.Module):
    """Stored images, N x 3 x S x S in uint8, to the input of the network, N x 3 x C x C in float32."""

    mean: Tensor

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.first, self.last = preprocessing.offset, preprocessing.offset + preprocessing.crop_size
        self.register_buffer("mean", torch.from_numpy(preprocessing.mean))

    def forward(self, images: Tensor) -> Tensor:
        """Centre crop minus the mean."""
        return images[:, :, self.first : self.last, self.first : self.last].float() - self.mean


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

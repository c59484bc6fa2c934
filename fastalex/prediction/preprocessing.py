"""From an image of any size to the network's input, as the training images were prepared.

The steps are those of :mod:`dataloading.preparation` and of the loader, without the JPEG file between them: decode,
convert to RGB, resize, take the centre square, crop, and subtract the mean. Pixels are exact: an image that has the
stored size already goes through unchanged.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from dataloading.preparation.images import ImageOptions, Rejected, decode, resize_shorter_side
from dataloading.preparation.pixels import Color, UndefinedPixels, to_rgb
from dataloading.preparation.resizing import resize
from fastalex.errors import ConfigurationError
from fastalex.network.weights_record import WeightsRecord

AnyImage = str | os.PathLike[str] | Image.Image | NDArray[np.uint8]
"""A file, an image of Pillow, or the pixels of an RGB image: uint8, height x width x 3."""

_LONGEST = 100  # times the shorter side; beyond that, resizing the shorter side needs gigabytes


class UnusableImage(ConfigurationError):
    """An image cannot be read or used; the message names it and says why."""


@dataclass(frozen=True, eq=False)
class Preprocessing:
    """How a trained network's images are prepared. Calling it prepares one image.

        >>> x = model.preprocess("cat.jpg")                     # 3 x 224 x 224, float32, RGB 0-255 minus the mean

    Args:
        record: the sizes, the resize rule and the mean, from the file of weights.
        exif: turn images by their EXIF orientation. The training images are not turned by default, as in 2012.
        background: a colour that transparent images are laid on; None takes the colours under the transparency.
    """

    record: WeightsRecord
    exif: bool = False
    background: Color | None = None

    def __call__(self, image: AnyImage) -> Tensor:
        """The centre crop: float32, 3 x C x C.

        Raises:
            UnusableImage: it cannot be read, or has no defined colours.
        """
        return self.views(image)[0]

    def views(self, image: AnyImage, views: int = 1) -> Tensor:
        """Crops of an image: float32, views x 3 x C x C.

        Args:
            views: 1 for the centre crop; 10 for the four corners and the centre, then the same mirrored, as in the
                paper.

        Raises:
            UnusableImage: as :meth:`__call__`.
            ConfigurationError: another number of views.
        """
        if views not in (1, 10):
            raise ConfigurationError(f"views must be 1 or 10, got {views}")
        stored, size = self.stored(image), self.record.crop_size
        margin = self.record.stored_size - size
        half = margin // 2
        # Top and left of each crop, in the order of the loader's ten views.
        places = [(half, half)] if views == 1 else [(0, 0), (0, margin), (margin, 0), (margin, margin), (half, half)]
        crops = [stored[top : top + size, left : left + size] for top, left in places]
        if views == 10:
            crops += [crop[:, ::-1] for crop in crops]
        # The mean's centre is subtracted from every crop, after the mirroring, as in 2012.
        mean = self.record.mean_image()[half : half + size, half : half + size]
        pixels = np.stack(crops).astype(np.float32) - mean
        return torch.from_numpy(pixels).permute(0, 3, 1, 2)

    def stored(self, image: AnyImage) -> NDArray[np.uint8]:
        """The image as a prepared data set stores it, before JPEG compression: uint8, S x S x 3.

        Raises:
            UnusableImage: as :meth:`__call__`.
        """
        rgb, size = self._rgb(image), self.record.stored_size
        if self.record.resize == "squash":
            return resize(rgb, (size, size), (0, 0, size, size))
        if max(rgb.size) > _LONGEST * min(rgb.size):
            raise UnusableImage(f"{_name(image)} is too narrow: {rgb.width} x {rgb.height} pixels")
        return resize_shorter_side(rgb, size, square=True)

    def _rgb(self, image: AnyImage) -> Image.Image:
        if isinstance(image, str | os.PathLike):
            return self._read(Path(image))
        if isinstance(image, np.ndarray):
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
                raise UnusableImage(
                    f"pixels must be uint8, height x width x 3, got {image.dtype} of shape {image.shape}"
                )
            return Image.fromarray(np.ascontiguousarray(image))
        if not isinstance(image, Image.Image):
            raise UnusableImage(
                f"an image must be a path, a PIL image or a uint8 array, got {type(image).__name__}; tensors that are "
                "prepared already go to the model itself"
            )
        try:
            return to_rgb(image, self.background)
        except (UndefinedPixels, OSError) as error:
            raise UnusableImage(f"{_name(image)}: {error}") from None

    def _read(self, path: Path) -> Image.Image:
        try:
            if path.exists() and not path.is_file():
                kind = "a folder" if path.is_dir() else "not a regular file"
                raise UnusableImage(f"{path} is {kind}; name an image")
            return decode(path.read_bytes(), ImageOptions(exif=self.exif, background=self.background))
        except OSError as error:
            raise UnusableImage(f"{path} cannot be read: {error.strerror or error}") from None
        except Rejected as error:
            raise UnusableImage(f"{path} is no image that can be used: {error}") from None


def _name(image: AnyImage) -> str:
    if isinstance(image, str | os.PathLike):
        return os.fspath(image)
    return str(getattr(image, "filename", "") or "the image")

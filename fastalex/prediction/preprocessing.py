"""From an image of any size to the network's input, as the training images were prepared.

The steps are those of :mod:`dataloading.preparation` and of the loader, without the JPEG file between them: decode,
convert to RGB, resize, take the centre square, crop, and subtract the mean. Pixels are exact: an image that has the
stored size already goes through unchanged.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

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
        resize: another rule than the record's: ``shorter``, ``squash``, or ``none`` for the pixels as they are.
        crop: cut the input out of the resized image, as in training. Otherwise images are resized to the input's size
            itself, so that nothing of a square image is cut off. The mean is that of the same place, the centre.
        exif: turn images by their EXIF orientation. The training images are not turned by default, as in 2012.
        background: a colour that transparent images are laid on; None takes the colours under the transparency.
    """

    record: WeightsRecord
    resize: Literal["shorter", "squash", "none"] | None = None
    crop: bool = True
    exif: bool = False
    background: Color | None = None

    def __repr__(self) -> str:
        """``Preprocessing(shorter side to 256, centre of 224 x 224, minus the mean image)``."""
        resized = {"shorter": "shorter side to", "squash": "both sides to", "none": ""}[
            self.resize or self.record.resize
        ]
        steps = [f"{resized} {self.size}"] if resized else []
        steps += [f"centre of {self.record.crop_size} x {self.record.crop_size}"] if self.crop else []
        kind = "mean image" if self.record.mean.ndim == 3 else "mean colour"
        return f"Preprocessing({', '.join([*steps, f'minus the {kind}'])})"

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
        bottom, right = stored.shape[0] - size, stored.shape[1] - size
        centre = (bottom // 2, right // 2)
        # Top and left of each crop, in the order of the loader's ten views.
        places = [centre] if views == 1 else [(0, 0), (0, right), (bottom, 0), (bottom, right), centre]
        crops = [stored[top : top + size, left : left + size] for top, left in places]
        if views == 10:
            crops += [crop[:, ::-1] for crop in crops]
        # The mean's centre is subtracted from every crop, after the mirroring, as in 2012.
        half = (self.record.stored_size - size) // 2
        mean = self.record.mean_image()[half : half + size, half : half + size]
        pixels = np.stack(crops).astype(np.float32) - mean
        return torch.from_numpy(pixels).permute(0, 3, 1, 2)

    @property
    def size(self) -> int:
        """Side in pixels of the resized image: the record's stored size, or without a crop that of the input."""
        return self.record.stored_size if self.crop else self.record.crop_size

    def stored(self, image: AnyImage) -> NDArray[np.uint8]:
        """The image as a prepared data set stores it, before JPEG compression: uint8, S x S x 3.

        Without resizing, it is the image itself, height x width x 3.

        Raises:
            UnusableImage: as :meth:`__call__`; or it is not resized, and does not have the size of the input.
        """
        rgb, size, rule = self._rgb(image), self.size, self.resize or self.record.resize
        if rule == "none":
            least = self.record.crop_size
            if min(rgb.size) < least or (not self.crop and max(rgb.size) > least):
                wanted = f"at least {least} x {least}" if self.crop else f"{least} x {least}"
                raise UnusableImage(
                    f"{_name(image)} has {rgb.width} x {rgb.height} pixels; the network takes {wanted}; resize it"
                )
            return np.asarray(rgb)
        if rule == "squash":
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

"""Images of a data set as small JPEG files inside the page."""

from __future__ import annotations

import base64
import io

from PIL import Image

from dataloading import Dataset

LARGE, SMALL = 128, 88
"""Sides in pixels: of the images of a figure, and of those behind the cells of a confusion matrix."""

_QUALITY = {LARGE: 80, SMALL: 70}


def thumbnail(dataset: Dataset, split: str, row: int, side: int = LARGE) -> str:
    """The centre square of an image as a JPEG file in a ``data:`` URI.

    Raises:
        dataloading.DatasetError: the image is damaged.
    """
    with Image.open(io.BytesIO(dataset.read(split, row))) as image:
        rgb = image.convert("RGB")
    shorter = min(rgb.size)
    left, top = (rgb.width - shorter) // 2, (rgb.height - shorter) // 2
    small = rgb.resize((side, side), Image.Resampling.LANCZOS, (left, top, left + shorter, top + shorter))
    content = io.BytesIO()
    small.save(content, format="jpeg", quality=_QUALITY.get(side, 75), optimize=True)
    return data_uri(content.getvalue(), "image/jpeg")


def png(picture: Image.Image) -> str:
    """A picture as a PNG file in a ``data:`` URI."""
    content = io.BytesIO()
    picture.save(content, format="png", optimize=True)
    return data_uri(content.getvalue(), "image/png")


def data_uri(content: bytes, kind: str) -> str:
    """A file of a media type as a ``data:`` URI."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"

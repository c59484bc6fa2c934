"""One image file to the image that is stored: decode wholly, convert to RGB, bring to size, encode.

The steps are those of Krizhevsky's own preparation tool (cuda-convnet2, ``make-data``): the shorter side is brought to
256 with area averaging when shrinking and cubic interpolation when enlarging, the centre 256 x 256 is cut out, and the
result is a JPEG file of quality 95. Like the tools of 2012 this ignores EXIF orientation.
"""

import gzip
import io
import warnings
import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

# What is used as images. Of what else Pillow reads, EPS files would be programs to run.
_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "PPM", "TIFF", "WEBP", "JPEG2000")


class Rejected(Exception):
    """An image that cannot be used; the message is the reason, without the name."""


@dataclass(frozen=True)
class Treatment:
    """What is done to every image.

    Args:
        size: length of the shorter side in pixels.
        quality: JPEG quality, 1 to 95.
        keep_aspect: keep the whole image instead of its centre square.
        max_pixels: an image with more is not decoded (decompression bombs). Pillow itself stops at 178,956,970.
        max_bytes: a longer file is not read.
    """

    size: int = 256
    quality: int = 95
    keep_aspect: bool = False
    max_pixels: int = 89_000_000
    max_bytes: int = 500_000_000


@dataclass(frozen=True)
class Treated:
    """The stored JPEG file, its height and width, and the pixels of its centre square (uint8, size x size x 3)."""

    jpeg: bytes
    height: int
    width: int
    square: NDArray[np.uint8]


def gunzip(data: bytes, limit: int) -> bytes:
    """Return `data` unpacked when it is a gzip file (some of ILSVRC2010's images are), else as it is."""
    if data[:2] != b"\x1f\x8b":
        return data
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as unpacked:
            out = unpacked.read(limit + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise Rejected(f"damaged gzip file: {_one_line(error)}") from None
    if len(out) > limit:
        raise Rejected(f"gzip file unpacks to more than {limit:,} bytes")
    return out


def decode(data: bytes, *, max_pixels: int = Treatment.max_pixels) -> Image.Image:
    """Decode an image file (JPEG, PNG, GIF, BMP, PPM, TIFF, WebP), to its last byte, and return it in RGB.

    Raises `Rejected` with the reason for an empty, truncated, foreign or over-large file.
    """
    if not data:
        raise Rejected("empty file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except UnidentifiedImageError:
        raise Rejected(f"not an image: starts with {data[:8]!r}") from None
    except Image.DecompressionBombError as error:
        raise Rejected(f"too large: {_one_line(error)}") from None
    except Exception as error:  # Pillow's plugins raise whatever the parsing of hostile bytes leads them to
        raise Rejected(f"does not decode: {_one_line(error)}") from None
    if image.width * image.height > max_pixels:
        raise Rejected(f"too large: {image.width} x {image.height} pixels, more than {max_pixels:,} in all")
    try:
        image.load()
        return to_rgb(image)
    except Exception as error:
        raise Rejected(f"does not decode: {_one_line(error)}") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert to 8-bit RGB: grey is repeated, transparency dropped, 16-bit grey scaled down to 8 bits."""
    if image.mode.startswith("I"):
        wide = np.asarray(image).astype(np.int64)
        image = Image.fromarray((np.clip(wide, 0, 65535) >> 8).astype(np.uint8))
    return image if image.mode == "RGB" else image.convert("RGB")


def resize_shorter_side(image: Image.Image, size: int) -> Image.Image:
    """Bring the shorter side to `size`, the longer one to the nearest pixel in proportion."""
    shorter = min(image.size)
    if shorter == size:
        return image
    width, height = (size if side == shorter else max(size, round(side * size / shorter)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BOX if shorter > size else Image.Resampling.BICUBIC)


def centre_square(image: Image.Image, size: int) -> Image.Image:
    """Cut the centre `size` x `size` out of an image that is at least as large."""
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def treat(data: bytes, treatment: Treatment) -> Treated:
    """Turn the bytes of an image file into what is stored. Raises `Rejected` with the reason."""
    image = decode(gunzip(data, treatment.max_bytes), max_pixels=treatment.max_pixels)
    if max(image.size) * treatment.size > 65_000 * min(image.size):
        raise Rejected(f"too narrow: {image.width} x {image.height} pixels")
    image = resize_shorter_side(image, treatment.size)
    square = centre_square(image, treatment.size)
    stored = image if treatment.keep_aspect else square
    buffer = io.BytesIO()
    stored.save(buffer, "JPEG", quality=treatment.quality)
    return Treated(buffer.getvalue(), stored.height, stored.width, np.asarray(square))


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__

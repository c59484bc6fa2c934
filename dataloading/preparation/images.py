"""From an image file of the source to the stored image: decode, convert to RGB, resize, encode.

The steps are those of Krizhevsky's own preparation tool (cuda-convnet2, ``make-data``): resize the shorter side to 256,
with area averaging to shrink and cubic interpolation to enlarge, crop the centre 256 x 256, and encode as JPEG of
quality 95. Like the tools of 2012, they ignore EXIF orientation.
"""

import gzip
import io
import warnings
import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from dataloading.sources.entries import Entry

# Formats in use for photographs. Of the others that Pillow reads, EPS would even execute a program.
_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "PPM", "TIFF", "WEBP", "JPEG2000")


class Rejected(Exception):
    """An image cannot be used; the message is the reason, without the image's name.

    Reasons are written to `rejected.csv`, so rewording one changes the fingerprint of prepared data sets.
    """


@dataclass(frozen=True)
class ImageOptions:
    """How every image is prepared.

    Args:
        size: length of the shorter side in pixels.
        quality: JPEG quality, 1 to 95.
        keep_aspect: keep the whole image instead of its centre square.
        max_pixels: reject images with more pixels before decoding (decompression bombs). Pillow itself stops at
            178,956,970.
        max_bytes: reject longer files before reading.
    """

    size: int = 256
    quality: int = 95
    keep_aspect: bool = False
    max_pixels: int = 89_000_000
    max_bytes: int = 500_000_000


@dataclass(frozen=True)
class PreparedImage:
    """The stored JPEG file, its height and width, and the pixels of its centre square (uint8, size x size x 3)."""

    jpeg: bytes
    height: int
    width: int
    square: NDArray[np.uint8]


def prepare_entry(entry: Entry, options: ImageOptions) -> PreparedImage:
    """Read and prepare one image of a source. Raises `Rejected` with the reason."""
    return prepare_image(read_entry(entry, options.max_bytes), options)


def read_entry(entry: Entry, limit: int) -> bytes:
    """Return the bytes of an image of a source. Raises `Rejected` if they are unreadable or more than `limit`."""
    if entry.problem:
        raise Rejected(entry.problem)
    if entry.length > limit:
        raise Rejected(f"too large: {entry.length:,} bytes, more than {limit:,}")
    try:
        with open(entry.path, "rb") as file:
            file.seek(entry.offset)
            data = file.read(entry.length)
    except OSError as error:
        raise Rejected(f"cannot be read: {error.strerror}") from None
    if len(data) < entry.length:
        raise Rejected(f"cut off: {len(data):,} of {entry.length:,} bytes are there")
    return data


def prepare_image(data: bytes, options: ImageOptions) -> PreparedImage:
    """Decode, resize, crop and encode an image file. Raises `Rejected` with the reason."""
    image = decode(gunzip(data, options.max_bytes), max_pixels=options.max_pixels)
    if max(image.size) * options.size > 65_000 * min(image.size):  # JPEG allows 65,535 pixels a side
        raise Rejected(f"too narrow: {image.width} x {image.height} pixels")
    image = resize_shorter_side(image, options.size)
    square = centre_square(image, options.size)
    stored = image if options.keep_aspect else square
    buffer = io.BytesIO()
    stored.save(buffer, "JPEG", quality=options.quality)
    return PreparedImage(buffer.getvalue(), stored.height, stored.width, np.asarray(square))


def gunzip(data: bytes, limit: int) -> bytes:
    """Decompress `data` if it is a gzip file, as some images of ILSVRC2010 are; otherwise return it unchanged.

    Raises `Rejected` if the file is damaged or decompresses to more than `limit` bytes.
    """
    if data[:2] != b"\x1f\x8b":
        return data
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            decompressed = file.read(limit + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise Rejected(f"damaged gzip file: {_one_line(error)}") from None
    if len(decompressed) > limit:
        raise Rejected(f"gzip file unpacks to more than {limit:,} bytes")
    return decompressed


def decode(data: bytes, *, max_pixels: int = ImageOptions.max_pixels) -> Image.Image:
    """Decode an image file (JPEG, PNG, GIF, BMP, PPM, TIFF, WebP) completely and return it in RGB.

    Raises `Rejected` with the reason if the file is empty, truncated, too large or not an image.
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
    except Exception as error:  # Pillow's plugins raise arbitrary exceptions for damaged data
        raise Rejected(f"does not decode: {_one_line(error)}") from None
    if image.width * image.height > max_pixels:
        raise Rejected(f"too large: {image.width} x {image.height} pixels, more than {max_pixels:,} in all")
    try:
        image.load()
        return _to_rgb(image)
    except Exception as error:
        raise Rejected(f"does not decode: {_one_line(error)}") from None


def resize_shorter_side(image: Image.Image, size: int) -> Image.Image:
    """Resize so that the shorter side has `size` pixels, and keep the aspect ratio to the nearest pixel."""
    shorter = min(image.size)
    if shorter == size:
        return image
    width, height = (size if side == shorter else max(size, round(side * size / shorter)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BOX if shorter > size else Image.Resampling.BICUBIC)


def centre_square(image: Image.Image, size: int) -> Image.Image:
    """Crop the centre `size` x `size` of an image that is at least as large."""
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert to 8-bit RGB: repeat grey, drop transparency, scale 16-bit grey down to 8 bits."""
    if image.mode.startswith("I"):
        wide = np.asarray(image).astype(np.int64)
        image = Image.fromarray((np.clip(wide, 0, 65535) >> 8).astype(np.uint8))
    return image if image.mode == "RGB" else image.convert("RGB")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__

"""From an image file of the source to the stored image: decode, convert to RGB, resize, encode.

The steps are those of Krizhevsky's own preparation tool (cuda-convnet2, ``make-data``): resize the shorter side to 256,
with area averaging to shrink and cubic interpolation to enlarge (`resizing`), crop the centre 256 x 256, and encode as
JPEG of quality 95. Like the tools of 2012, they ignore EXIF orientation, unless they are asked to turn the images.
"""

import contextlib
import gzip
import io
import logging
import os
import stat
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from dataloading.errors import DatasetError, SourceChanged
from dataloading.preparation.pixels import (
    Color,
    UndefinedPixels,
    is_transparent,
    orientation,
    to_rgb,
    upright,
    with_8_bits,
)
from dataloading.preparation.resizing import Box, resize
from dataloading.sources.entries import Entry

# Formats in use for photographs. Of the others that Pillow reads, EPS would even execute a program.
_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "PPM", "TIFF", "WEBP", "JPEG2000")

# Files of other kinds that lie among photographs, by their first bytes.
_CONVERT = "convert it to JPEG or PNG"
_OTHER_KINDS = {
    b"\xff\x0a": f"a JPEG XL image; {_CONVERT}",
    b"\0\0\0\x0cJXL ": f"a JPEG XL image; {_CONVERT}",
    b"8BPS": f"a Photoshop image; {_CONVERT}",
    b"<svg": f"an SVG drawing; {_CONVERT}",
    b"version https://git-lfs": "a Git LFS pointer instead of an image; get the image with git lfs pull",
}
# Two kinds of image have the container of MPEG-4; the names in its first box ("brands") tell them apart.
_AVIF = {b"avif", b"avis"}
_HEIC = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}

logging.getLogger("PIL").addHandler(logging.NullHandler())  # what it has to say is in its exceptions, too


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
        background: a colour (red, green, blue) on which transparent images are laid; None stores the colours that lie
            under the transparency.
        exif: turn images by their EXIF orientation.
    """

    size: int = 256
    quality: int = 95
    keep_aspect: bool = False
    max_pixels: int = 89_000_000
    max_bytes: int = 500_000_000
    background: Color | None = None
    exif: bool = False

    def record(self) -> dict[str, Any]:
        """Return the options as JSON values, for `dataset.json` and the plan.

        `background` and `exif` are recorded only if they are used, so that the fingerprint of a data set that is
        prepared without them is that of earlier versions.
        """
        record = asdict(self)
        background, exif = record.pop("background"), record.pop("exif")
        return record | ({"background": list(background)} if background else {}) | ({"exif": True} if exif else {})


@dataclass(frozen=True)
class PreparedImage:
    """A stored image.

    Attributes:
        jpeg: the JPEG file.
        height, width: of the image in pixels.
        square: the pixels of its centre square: uint8, size x size x 3.
        is_transparent: whether a pixel of the source was not opaque.
        is_turned: whether the source has an EXIF orientation other than upright.
    """

    jpeg: bytes
    height: int
    width: int
    square: NDArray[np.uint8]
    is_transparent: bool = False
    is_turned: bool = False


def prepare_entry(entry: Entry, options: ImageOptions) -> PreparedImage:
    """Read and prepare one image of a source.

    Raises:
        Rejected: the image was read whole and cannot be used; with the reason.
        DatasetError: it cannot be read, has changed since it was listed, or needs more memory than there is.
    """
    try:
        return prepare_image(read_entry(entry, options.max_bytes), options)
    except MemoryError:
        raise DatasetError(
            f"not enough memory to decode {_place(entry)}; use fewer workers, or lower --max-pixels to leave out large "
            "images; the same command continues from the finished shards"
        ) from None


def read_entry(entry: Entry, limit: int) -> bytes:
    """Return the bytes of an image of a source.

    Only regular files are opened: reading a pipe could wait for ever.

    Raises:
        Rejected: the source lists a problem, the image is longer than `limit`, or it is not in a regular file.
        SourceChanged: the file is shorter or longer than when it was listed.
        DatasetError: it cannot be read, or is gone. That says nothing about the image, so it must not be recorded as a
            bad one.
    """
    check_readable(entry)
    if entry.problem:
        raise Rejected(entry.problem)
    if entry.length > limit:
        raise Rejected(f"too large: {entry.length:,} bytes, more than {limit:,}")
    try:
        if not stat.S_ISREG(os.stat(entry.path).st_mode):
            raise Rejected("not a regular file")
        with open(entry.path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(entry.offset)
            data = file.read(entry.length)
    except OSError as error:
        raise _unreadable(entry, error.strerror or str(error)) from None
    # An image at the beginning of a file is the whole file: archives begin with a header.
    if len(data) < entry.length or (entry.offset == 0 and size != entry.length):
        found = size if entry.offset == 0 else len(data)
        raise SourceChanged(
            f"{_place(entry)} has changed since it was listed: it had {entry.length:,} bytes and has {found:,}; "
            "repeat the command when nothing writes to the source any more"
        )
    return data


def check_readable(entry: Entry) -> None:
    """Raise `DatasetError` if a file could not be read when it was listed: a link that leads nowhere."""
    if entry.problem.startswith("cannot be read: "):
        raise _unreadable(entry, entry.problem.removeprefix("cannot be read: "))


def _unreadable(entry: Entry, reason: str) -> DatasetError:
    return DatasetError(
        f"cannot read {_place(entry)}: {reason}; preparation stops, because that says nothing about the image; once it "
        "can be read, the same command continues from the finished shards"
    )


def _place(entry: Entry) -> str:
    """Return where an image is, for messages."""
    return entry.path if entry.offset == 0 else f"{entry.name} in {entry.path}"


def prepare_image(data: bytes, options: ImageOptions) -> PreparedImage:
    """Decode, resize, crop and encode an image file. Raises `Rejected` with the reason."""
    image, is_transparent, is_turned = _decode(gunzip(data, options.max_bytes), options)
    if max(image.size) * options.size > 65_000 * min(image.size):  # JPEG allows 65,535 pixels a side
        raise Rejected(f"too narrow: {image.width} x {image.height} pixels")
    pixels = resize_shorter_side(image, options.size, square=not options.keep_aspect)
    height, width, _ = pixels.shape
    left, top, right, bottom = _centre(width, height, options.size)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=options.quality)
    return PreparedImage(buffer.getvalue(), height, width, pixels[top:bottom, left:right], is_transparent, is_turned)


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


class _Decoded(NamedTuple):
    image: Image.Image
    is_transparent: bool
    is_turned: bool


def decode(data: bytes, options: ImageOptions | None = None) -> Image.Image:
    """Decode an image file (JPEG, PNG, GIF, BMP, PPM, TIFF, WebP, JPEG 2000) completely and return it in RGB.

    Of the options, `max_pixels`, `background` and `exif` count.

    Raises `Rejected` with the reason if the file is empty, truncated, too large or not an image.
    """
    return _decode(data, options or ImageOptions()).image


def _decode(data: bytes, options: ImageOptions) -> _Decoded:
    """Decode an image file, convert it to RGB and, if wanted, turn it."""
    if not data:
        raise Rejected("empty file")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's warnings would break the progress line
        image = _opened(data)
        if image.width * image.height > options.max_pixels:
            size = f"{image.width} x {image.height} pixels"
            raise Rejected(f"too large: {size}, more than {options.max_pixels:,} in all")
        try:
            with stderr_muted() if image.format == "TIFF" else contextlib.nullcontext():  # libtiff prints
                image.load()
            found = with_8_bits(image)
            rgb, turn = to_rgb(found, options.background), orientation(image)
            return _Decoded(upright(rgb, turn) if options.exif else rgb, is_transparent(found), turn != 1)
        except UndefinedPixels as error:
            raise Rejected(str(error)) from None
        except Exception as error:
            raise _reason(error) from None


@contextlib.contextmanager
def stderr_muted() -> Iterator[None]:
    """Throw away what libraries print to stderr about damaged images: it would break the progress line."""
    try:
        stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    except OSError:  # stderr is closed
        yield
        return
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)


def _opened(data: bytes) -> Image.Image:
    """Return an image of which only the header is decoded."""
    try:
        return Image.open(io.BytesIO(data), formats=_FORMATS)
    except UnidentifiedImageError:
        raise Rejected(_what_it_is(data)) from None
    except Image.DecompressionBombError as error:
        raise Rejected(f"too large: {_one_line(error)}") from None
    except Exception as error:  # Pillow's plugins raise arbitrary exceptions for damaged data
        raise _reason(error) from None


def _reason(error: Exception) -> Exception:
    """Return a rejection for an exception of Pillow, or the exception itself if the image is not its cause."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno is not None):
        return error
    return Rejected(f"does not decode: {_one_line(error)}")


def _what_it_is(data: bytes) -> str:
    """Return the reason to reject a file that Pillow does not open as an image in one of the formats in use."""
    if data[4:8] == b"ftyp":
        end = min(int.from_bytes(data[:4]), 256)
        brands = {data[8:12], *(data[place : place + 4] for place in range(16, end, 4))}
        for kind, names in (("an AVIF image", _AVIF), ("a HEIC image", _HEIC)):
            if brands & names:
                return f"{kind}; {_CONVERT}"
    if data.lstrip().startswith(b"<?xml") and b"<svg" in data[:1000]:
        return _OTHER_KINDS[b"<svg"]
    for start, reason in _OTHER_KINDS.items():
        if data.startswith(start):
            return reason
    if data[:4] in (b"II*\0", b"MM\0*"):
        with contextlib.suppress(Exception):  # of a damaged file; Image.open does not tell them apart
            try:
                TiffImagePlugin.TiffImageFile(io.BytesIO(data))
            except SyntaxError as error:
                if "pixel mode" in str(error):
                    return "a TIFF image with pixels of a kind that is not supported; convert it to 8 bits"
    return f"not an image: starts with {data[:8]!r}"


def resize_shorter_side(image: Image.Image, size: int, *, square: bool) -> NDArray[np.uint8]:
    """Resize so that the shorter side has `size` pixels, and keep the aspect ratio to the nearest pixel, halves up.

    Args:
        image: in mode RGB.
        size: in pixels.
        square: return only the centre `size` x `size` pixels; the others are not computed.

    Returns:
        uint8, height x width x 3.
    """
    shorter = min(image.size)
    width, height = ((2 * side * size + shorter) // (2 * shorter) for side in image.size)
    return resize(image, (width, height), _centre(width, height, size) if square else (0, 0, width, height))


def centre_square(image: Image.Image, size: int) -> Image.Image:
    """Crop the centre `size` x `size` of an image that is at least as large."""
    return image.crop(_centre(image.width, image.height, size))


def _centre(width: int, height: int, size: int) -> Box:
    """Return the centre `size` x `size` pixels of width x height."""
    left, top = (width - size) // 2, (height - size) // 2
    return left, top, left + size, top + size


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__

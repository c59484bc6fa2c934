"""Pixels of every kind that Pillow decodes, as a viewer shows them: 8-bit RGB.

Pillow's own conversions are right for 8-bit colours, palettes and CMYK. The functions here add what Pillow leaves out:
12-bit and 16-bit grey, floating-point grey, grey in which 0 is white, premultiplied transparency, and Lab colours.
"""

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

Color = tuple[int, int, int]

# TIFF tags
_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339
_WHITE_IS_ZERO, _SIGNED = 0, 2

_ORIENTATION = 0x0112  # EXIF tag
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_PREMULTIPLIED = {"La": "LA", "RGBa": "RGBA"}


class UndefinedPixels(ValueError):
    """The image does not say which colours its pixels have; the message says why, and what to do."""


def to_rgb(image: Image.Image, background: Color | None = None) -> Image.Image:
    """Convert a decoded image to 8-bit RGB.

    Grey is repeated. 12-bit and 16-bit grey keep their upper 8 bits; floating-point grey is scaled from 0 ... 1.
    Transparent pixels get the colours that lie under the transparency, or, with `background`, are laid on that colour.

    Raises:
        UndefinedPixels: it is not known which pixel values are black and white.
    """
    image = with_8_bits(image)
    if background is not None and image.has_transparency_data:
        above = _with_alpha(image).convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, (*background, 255)), above).convert("RGB")
    if image.mode == "LAB":
        return ImageCms.applyTransform(image, _lab_to_srgb()) or image
    return image if image.mode == "RGB" else image.convert("RGB")


def with_8_bits(image: Image.Image) -> Image.Image:
    """Return the image with 8-bit pixels and, if it is transparent, without premultiplied colours.

    Raises:
        UndefinedPixels: as `to_rgb`.
    """
    if image.mode.startswith("I"):
        return _from_integers(image)
    if image.mode == "F":
        return _from_floats(image)
    if image.mode == "L" and _tiff_tag(image, _SAMPLE_FORMAT) == _SIGNED:
        raise UndefinedPixels(_undefined("signed 8-bit"))
    if image.mode in _PREMULTIPLIED:
        return image.convert(_PREMULTIPLIED[image.mode])
    return image


def is_transparent(image: Image.Image) -> bool:
    """Return whether a pixel of an image with 8-bit pixels (`with_8_bits`) is not opaque.

    False if that is damaged: to store the colours under the transparency, it is not needed.
    """
    try:
        return image.has_transparency_data and bool(np.asarray(_with_alpha(image).getchannel("A")).min() < 255)
    except Exception:  # Pillow raises arbitrary exceptions for damaged data
        return False


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of a decoded image: 1 (upright) to 8; 1 also if there is none or it is damaged."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # Pillow raises arbitrary exceptions for damaged metadata, which say nothing about the pixels
        return 1
    return value if isinstance(value, int) and value in _TURNS else 1


def upright(image: Image.Image, orientation: int) -> Image.Image:
    """Turn an image by its EXIF orientation."""
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


def _from_integers(image: Image.Image) -> Image.Image:
    """Scale 12-bit and 16-bit grey to 8 bits. Pillow decodes all of it to 0 ... 65535, except 12-bit TIFF files."""
    bits = _tiff_tag(image, _BITS_PER_SAMPLE) or 16
    if _tiff_tag(image, _SAMPLE_FORMAT) == _SIGNED or bits > 16:
        signed = "signed " if _tiff_tag(image, _SAMPLE_FORMAT) == _SIGNED else ""
        raise UndefinedPixels(_undefined(f"{signed}{bits}-bit integer"))
    wide = np.asarray(image).astype(np.int64)
    grey = _grey((np.clip(wide, 0, 65535) >> (bits - 8)).astype(np.uint8), image)
    clear = image.info.get("transparency")
    if isinstance(clear, int):  # the one grey level that is transparent
        grey.putalpha(Image.fromarray(np.where(wide == clear, 0, 255).astype(np.uint8)))
    return grey


def _from_floats(image: Image.Image) -> Image.Image:
    """Scale floating-point grey from 0 ... 1 to 8 bits."""
    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 1):  # also with NaN
        raise UndefinedPixels(
            f"floating-point pixels from {low:g} to {high:g}; only 0 (black) to 1 (white) has a meaning; "
            "convert the image to 8 or 16 bits"
        )
    return _grey(np.round(values * 255).astype(np.uint8), image)


def _grey(pixels: NDArray[np.uint8], image: Image.Image) -> Image.Image:
    """Return grey pixels of `image` as an image in which 0 is black."""
    return Image.fromarray(255 - pixels if _tiff_tag(image, _PHOTOMETRIC) == _WHITE_IS_ZERO else pixels)


def _undefined(kind: str) -> str:
    return f"{kind} pixels, whose black and white are not defined; convert the image to 8 or 16 bits"


def _with_alpha(image: Image.Image) -> Image.Image:
    """Return an image that has transparency with a channel for it."""
    if image.mode in ("LA", "RGBA"):
        return image
    clear = image.info.get("transparency")
    if isinstance(clear, tuple) and max(clear) > 255:  # of a 16-bit image, of which Pillow keeps the upper 8 bits
        image = image.copy()
        image.info["transparency"] = tuple(value >> 8 for value in clear)
    return image.convert("RGBA")


def _tiff_tag(image: Image.Image, tag: int) -> int | None:
    """Return the (first) value of a tag of a TIFF file; None if there is none, or the image is not a TIFF file."""
    value: Any = getattr(image, "tag_v2", {}).get(tag)
    return value[0] if isinstance(value, tuple) and value else value


@functools.cache
def _lab_to_srgb() -> ImageCms.ImageCmsTransform:
    profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    return ImageCms.buildTransform(*profiles, "LAB", "RGB")

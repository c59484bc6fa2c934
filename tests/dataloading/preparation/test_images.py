"""One image file to the stored image."""

import errno
import gzip
import io

import numpy as np
import pytest
from PIL import Image, ImageFile

from dataloading import DatasetError
from dataloading.preparation.images import (
    ImageOptions,
    Rejected,
    decode,
    gunzip,
    prepare_image,
    read_entry,
    resize_shorter_side,
)
from dataloading.sources.entries import Entry
from tests.dataloading.small_sources import encoded, jpeg, photograph, png_header

SMALL = ImageOptions(size=32)


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(decode(data))


def test_grey_images_become_three_equal_colours():
    grey = photograph(1)[:, :, 0]
    assert np.array_equal(pixels(encoded(grey, "PNG")), np.repeat(grey[:, :, None], 3, axis=2))


def test_cmyk_images_are_converted():
    buffer = io.BytesIO()
    Image.fromarray(photograph(1)).convert("CMYK").save(buffer, "JPEG", quality=95)
    assert np.abs(pixels(buffer.getvalue()).astype(int) - photograph(1)).mean() < 6


def test_the_name_of_a_file_says_nothing_about_its_format():
    for kind in ("PNG", "BMP", "TIFF", "GIF", "WEBP"):
        assert prepare_image(encoded(photograph(2), kind), SMALL).jpeg[:2] == b"\xff\xd8"


def test_transparency_and_palettes_are_flattened():
    with_alpha = np.dstack([photograph(3), np.full((48, 60), 7, dtype=np.uint8)])
    assert np.array_equal(pixels(encoded(with_alpha, "PNG")), photograph(3))
    buffer = io.BytesIO()
    Image.fromarray(photograph(3)).quantize(256).save(buffer, "PNG", transparency=0)
    assert np.abs(pixels(buffer.getvalue()).astype(int) - photograph(3)).mean() < 8


def test_16_bit_grey_is_scaled_down():
    wide = np.arange(48 * 60, dtype=np.uint16).reshape(48, 60) * 22
    assert np.array_equal(pixels(encoded(wide, "PNG"))[:, :, 0], (wide >> 8).astype(np.uint8))


def test_exif_orientation_is_ignored_as_in_2012():
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = prepare_image(encoded(photograph(4), exif=exif), SMALL)
    assert turned.jpeg == prepare_image(encoded(photograph(4)), SMALL).jpeg


def test_progressive_files_decode_to_the_same_pixels():
    assert np.array_equal(pixels(encoded(photograph(5), progressive=True)), pixels(encoded(photograph(5))))


def test_bytes_after_the_end_of_the_image_are_ignored():
    assert np.array_equal(pixels(jpeg(6) + bytes(100)), pixels(jpeg(6)))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (jpeg(7)[:-2], "does not decode: .*truncated"),
        (jpeg(7)[: len(jpeg(7)) // 2], "does not decode: .*truncated"),
        (jpeg(7)[20:], "not an image"),
        (b"<html>404 not found</html>", "not an image: starts with b'<html>40'"),
        (bytes(range(256)) * 20, "not an image"),
        (encoded(photograph(7), "EPS"), "not an image: starts with b'%!PS-Ado'"),
        (b"\x1f\x8b" + bytes(30), "damaged gzip file"),
        (gzip.compress(jpeg(7))[:-30], "damaged gzip file"),
        (png_header(9_000, 10_000), "too large: 9000 x 10000 pixels, more than 89,000,000"),
        (png_header(60_000, 60_000), "too large"),
        (png_header(30, 30_000), "does not decode|too narrow"),
        (encoded(np.zeros((2, 5000, 3), dtype=np.uint8), "PNG"), "too narrow: 5000 x 2"),
    ],
    ids=[
        "empty",
        "eoi",
        "half",
        "header",
        "html",
        "garbage",
        "eps",
        "gzip",
        "gzip-cut",
        "bomb",
        "big-bomb",
        "png-cut",
        "narrow",
    ],
)
def test_bad_images_are_rejected_with_the_reason(data, reason):
    with pytest.raises(Rejected, match=reason):
        prepare_image(data, SMALL)


def test_images_may_be_as_large_and_as_narrow_as_the_limits():
    data = encoded(photograph(7), "PNG")
    assert prepare_image(data, ImageOptions(size=32, max_pixels=60 * 48)).height == 32
    with pytest.raises(Rejected, match=r"too large: 60 x 48 pixels, more than 2,879 in all"):
        prepare_image(data, ImageOptions(size=32, max_pixels=60 * 48 - 1))
    assert prepare_image(encoded(np.zeros((1, 2031, 3), dtype=np.uint8), "PNG"), SMALL).width == 32
    with pytest.raises(Rejected, match=r"too narrow: 2032 x 1 pixels"):
        prepare_image(encoded(np.zeros((1, 2032, 3), dtype=np.uint8), "PNG"), SMALL)


@pytest.mark.parametrize("error", [OSError(errno.EMFILE, "Too many open files"), MemoryError()])
@pytest.mark.parametrize("place", ["open", "load"])
def test_an_error_of_the_machine_is_no_bad_image(monkeypatch, error, place):
    def fail(*_: object, **__: object) -> None:
        raise error

    if place == "open":
        monkeypatch.setattr(Image, "open", fail)
    else:
        monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    with pytest.raises(type(error)):
        prepare_image(encoded(photograph(7)), SMALL)


def test_a_gzip_file_is_decompressed_up_to_a_limit():
    assert gunzip(gzip.compress(b"a" * 1000), 1000) == b"a" * 1000
    with pytest.raises(Rejected, match=r"unpacks to more than 999 bytes"):
        gunzip(gzip.compress(b"a" * 1000), 999)


@pytest.mark.parametrize(
    ("width", "height", "wanted"),
    [
        (500, 375, (341, 256)),
        (375, 500, (256, 341)),
        (256, 256, (256, 256)),
        (100, 50, (512, 256)),
        (333, 500, (256, 384)),
        (640, 427, (384, 256)),  # 383.7
        (1025, 512, (513, 256)),  # 512.5
    ],
)
def test_the_shorter_side_is_brought_to_size(width, height, wanted):
    image = Image.new("RGB", (width, height))
    assert resize_shorter_side(image, 256, square=False).shape == (wanted[1], wanted[0], 3)
    assert resize_shorter_side(image, 256, square=True).shape == (256, 256, 3)


def test_shrinking_averages_areas():
    coarse = np.kron(photograph(8, 64, 32), np.ones((4, 4, 1), dtype=np.uint8))
    assert np.array_equal(prepare_image(encoded(coarse, "PNG"), SMALL).square, photograph(8, 64, 32)[:, 16:48])


def test_the_centre_square_is_stored_or_the_whole_image():
    data = encoded(photograph(9, 100, 32), "PNG")
    square, whole = prepare_image(data, SMALL), prepare_image(data, ImageOptions(size=32, keep_aspect=True))
    assert (square.height, square.width) == (32, 32)
    assert (whole.height, whole.width) == (32, 100)
    assert np.array_equal(square.square, photograph(9, 100, 32)[:, 34:66])
    assert np.array_equal(whole.square, square.square)
    assert np.asarray(Image.open(io.BytesIO(whole.jpeg))).shape == (32, 100, 3)


def test_quality_is_that_of_the_option():
    low, high = (
        prepare_image(encoded(photograph(9), "PNG"), ImageOptions(size=32, quality=quality)).jpeg
        for quality in (30, 95)
    )
    assert len(low) < len(high)
    tables = Image.open(io.BytesIO(high)).quantization
    assert tables[0][0] == 2  # 16 in the standard table, scaled for quality 95


def test_a_file_is_read_within_its_limits(tmp_path):
    archive = tmp_path / "archive"
    archive.write_bytes(bytes(20) + b"x" * 100)
    assert read_entry(Entry(str(archive), 20, 100, 0, "x"), 100) == b"x" * 100
    with pytest.raises(Rejected, match="too large: 100 bytes, more than 99"):
        read_entry(Entry(str(archive), 20, 100, 0, "x"), 99)
    with pytest.raises(DatasetError, match=f"x in {archive} has changed since it was listed: it had 101 .* has 100;"):
        read_entry(Entry(str(archive), 20, 101, 0, "x"), 10**9)
    assert read_entry(Entry(str(archive), 20, 99, 0, "x"), 99) == b"x" * 99
    for length in (119, 121):  # an image at the beginning is the whole file
        with pytest.raises(
            DatasetError, match=rf"^{archive} has changed since it was listed: it had {length} .* has 120;"
        ):
            read_entry(Entry(str(archive), 0, length, 0, "x"), 10**9)
    with pytest.raises(Rejected, match=r"^too bright$"):
        read_entry(Entry(str(archive), 0, 120, 0, "x", "too bright"), 10**9)

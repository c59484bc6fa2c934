"""Every kind of pixel that Pillow decodes comes out as a viewer shows it, or is rejected with the reason."""

import io
import struct
import zlib
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, ImageCms

from dataloading.preparation.descriptions import remarks
from dataloading.preparation.images import ImageOptions, Rejected, decode, prepare_image
from dataloading.preparation.pixels import is_transparent
from dataloading.preparation.shard_plan import record_path, write_record
from tests.dataloading.preparation.preparing import quietly, stored
from tests.dataloading.small_sources import class_folders, command, encoded, photograph, png_chunk

COLORS = photograph(1, 32, 32)
GREY = COLORS[:, :, 0]
WIDE = (GREY.astype(np.uint16) << 8) | 77


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def tiff(data: bytes, *, bits: int, photometric: int = 1, sample_format: int = 1, samples: int = 1) -> bytes:
    """An uncompressed little-endian TIFF file of 32 x 32 pixels."""
    tags = {256: 32, 257: 32, 259: 1, 262: photometric, 273: 8, 277: samples, 278: 32, 279: len(data)}
    # One value for all samples fits into the tag itself.
    tags |= {258: bits, 339: sample_format}
    entries = b"".join(struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, 1, tags[tag]) for tag in sorted(tags))
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    data += bytes(len(data) % 2)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory


def twelve_bits(values: np.ndarray) -> bytes:
    """Pack pairs of 12-bit values into three bytes."""
    pairs = values.reshape(-1, 2).astype(int)
    return (
        np.stack([pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255], 1)
        .astype(np.uint8)
        .tobytes()
    )


def lab_of(pixels: np.ndarray) -> Image.Image:
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    return ImageCms.applyTransform(Image.fromarray(pixels), ImageCms.buildTransform(*profiles, "RGB", "LAB"))


def with_alpha(pixels: np.ndarray) -> np.ndarray:
    return np.dstack([pixels, np.tile(np.arange(32, dtype=np.uint8) * 8, (32, 1))])


def three(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[:, :, None], 3, axis=2)


BLACK_AND_WHITE = np.where(GREY > 128, 255, 0).astype(np.uint8)
PALETTE = np.asarray(Image.fromarray(COLORS).quantize(256).convert("RGB"))

KINDS: dict[str, tuple[Callable[[], bytes], np.ndarray, float]] = {
    "1-bit PNG": (lambda: saved(Image.fromarray(BLACK_AND_WHITE).convert("1"), "PNG"), three(BLACK_AND_WHITE), 0),
    "1-bit PBM": (lambda: saved(Image.fromarray(BLACK_AND_WHITE).convert("1"), "PPM"), three(BLACK_AND_WHITE), 0),
    "1-bit TIFF, 0 is white": (
        lambda: tiff(np.packbits(BLACK_AND_WHITE == 0).tobytes(), bits=1, photometric=0),
        three(BLACK_AND_WHITE),
        0,
    ),
    "palette PNG": (lambda: saved(Image.fromarray(COLORS).quantize(256), "PNG"), PALETTE, 0),
    "palette GIF": (lambda: saved(Image.fromarray(PALETTE).quantize(256), "GIF"), PALETTE, 8),
    "grey and alpha PNG": (
        lambda: saved(Image.fromarray(np.dstack([GREY, with_alpha(COLORS)[:, :, 3]])), "PNG"),
        three(GREY),
        0,
    ),
    "8-bit TIFF, 0 is white": (lambda: tiff((255 - GREY).tobytes(), bits=8, photometric=0), three(GREY), 0),
    "16-bit PNG": (lambda: encoded(WIDE, "PNG"), three(GREY), 0),
    "16-bit TIFF": (lambda: encoded(WIDE, "TIFF"), three(GREY), 0),
    "16-bit TIFF, 0 is white": (lambda: tiff((65535 - WIDE).tobytes(), bits=16, photometric=0), three(GREY), 0),
    "16-bit PGM": (lambda: b"P5 32 32 65535\n" + WIDE.astype(">u2").tobytes(), three(GREY), 0),
    "10-bit PGM": (lambda: b"P5 32 32 1023\n" + (WIDE >> 6).astype(">u2").tobytes(), three(GREY), 1),
    "12-bit TIFF": (lambda: tiff(twelve_bits(WIDE >> 4), bits=12), three(GREY), 0),
    "16-bit JPEG 2000": (lambda: encoded(WIDE, "JPEG2000"), three(GREY), 0),
    "16-bit colour PPM": (
        lambda: b"P6 32 32 65535\n" + (COLORS.astype(">u2") * 257).tobytes(),
        COLORS,
        0,
    ),
    "float TIFF, 0 to 1": (lambda: encoded((GREY / 255).astype(np.float32), "TIFF"), three(GREY), 0),
    "float TIFF, black and white": (
        lambda: encoded((BLACK_AND_WHITE / 255).astype(np.float32), "TIFF"),
        three(BLACK_AND_WHITE),
        0,
    ),
    "float TIFF, between two greys": (
        lambda: encoded(((GREY * 0.99 + 0.6) / 255).astype(np.float32), "TIFF"),
        three(np.round(GREY * 0.99 + 0.6).astype(np.uint8)),
        0,
    ),
    "float TIFF, 0 is white": (
        lambda: tiff((1 - GREY / 255).astype(np.float32).tobytes(), bits=32, sample_format=3, photometric=0),
        three(GREY),
        0,
    ),
    "CMYK TIFF": (lambda: saved(Image.fromarray(COLORS).convert("CMYK"), "TIFF"), COLORS, 1),
    "YCbCr TIFF": (lambda: saved(Image.fromarray(COLORS).convert("YCbCr"), "TIFF"), COLORS, 3),
    "Lab TIFF": (lambda: saved(lab_of(COLORS), "TIFF"), COLORS, 30),  # 8 bits of Lab are coarse
    "RGBA PNG": (lambda: encoded(with_alpha(COLORS), "PNG"), COLORS, 0),
    "lossless WebP": (lambda: encoded(COLORS, "WEBP", lossless=True), COLORS, 0),
}


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_come_out_as_a_viewer_shows_them(kind):
    make, wanted, tolerance = KINDS[kind]
    found = np.asarray(decode(make())).astype(int)
    assert found.shape == (32, 32, 3)
    assert np.abs(found - wanted).max() <= tolerance


PREMULTIPLIED = np.dstack([GREY // 2, np.full_like(GREY, 128)])


def test_premultiplied_colours_are_divided_by_their_opacity():
    image = Image.frombytes("La", (32, 32), PREMULTIPLIED.tobytes())
    data = saved(image, "TIFF") if "La" in Image.SAVE else b""
    data = data or tiff_with_alpha(PREMULTIPLIED.tobytes(), associated=True)
    assert np.abs(np.asarray(decode(data)).astype(int) - three(GREY)).max() <= 2


def tiff_with_alpha(data: bytes, *, associated: bool) -> bytes:
    """Grey with an extra sample for transparency, 8 bits each."""
    plain = tiff(data, bits=8, samples=2)
    at = int.from_bytes(plain[4:8], "little")
    count = struct.unpack_from("<H", plain, at)[0]
    entries = [plain[at + 2 + 12 * i :][:12] for i in range(count)]
    entries = [entry for entry in entries if struct.unpack_from("<H", entry)[0] != 258]
    entries += [
        struct.pack("<HHIHH", 258, 3, 2, 8, 8),
        struct.pack("<HHII", 338, 3, 1, 1 if associated else 2),
    ]
    entries.sort(key=lambda entry: struct.unpack_from("<H", entry)[0])
    return plain[:at] + struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: encoded((GREY * 3.0).astype(np.float32), "TIFF"), r"floating-point pixels from \d+ to \d+; only 0"),
        (lambda: encoded(np.full((32, 32), np.nan, dtype=np.float32), "TIFF"), r"floating-point pixels from nan"),
        (lambda: encoded(np.full((32, 32), -0.5, dtype=np.float32), "TIFF"), r"floating-point pixels from -0.5 to"),
        (
            lambda: encoded(GREY.astype(np.int32), "TIFF"),
            r"signed 32-bit integer pixels, whose black and white are not",
        ),
        (lambda: tiff(GREY.astype(np.uint32).tobytes(), bits=32), r"^32-bit integer pixels, whose black and white are"),
        (
            lambda: tiff(WIDE.tobytes(), bits=16, sample_format=2),
            r"signed 16-bit integer pixels, whose black and white",
        ),
        (lambda: tiff(GREY.tobytes(), bits=8, sample_format=2), r"signed 8-bit pixels, whose black and white are not"),
        (lambda: tiff(bytes(8 * 1024), bits=64, sample_format=3), r"a TIFF image with pixels of a kind that is not su"),
        (lambda: b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf" + bytes(99), "an AVIF image; convert it to JPEG or PNG"),
        (lambda: b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf" + bytes(99), "an AVIF image; convert it to JPEG or PNG"),
        (lambda: b"\0\0\0\x1cftypmif1\0\0\0\0miafMA1Bavif" + bytes(99), "an AVIF image; convert it to JPEG or PNG"),
        (lambda: b"\0\0\0\x14ftypmp42\0\0\0\0isomheic" + bytes(99), "not an image: starts with"),  # after the box
        (lambda: b'<?xml version="1.0"?>\n<html xmlns="x"/>', "not an image: starts with"),
        (lambda: b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99), "a HEIC image; convert it to JPEG or PNG"),
        (
            lambda: b"\0\0\0\x18ftypmp42\0\0\0\0isommp42" + bytes(99),
            r"not an image: starts with b'\\x00\\x00\\x00\\x18ft",
        ),
        (lambda: b"\xff\x0a" + bytes(99), "a JPEG XL image; convert it to JPEG or PNG"),
        (lambda: b'<?xml version="1.0"?>\n<svg xmlns="x"/>', "an SVG drawing; convert it to JPEG or PNG"),
        (lambda: b"8BPS\0\1" + bytes(99), "a Photoshop image; convert it to JPEG or PNG"),
        (lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a Git LFS pointer instead of an image"),
        (lambda: b"II*\0" + bytes(99), "not an image: starts with b'II"),
    ],
)
def test_pixels_without_defined_colours_and_other_kinds_of_files_are_named(make, reason):
    with pytest.raises(Rejected, match=reason):
        prepare_image(make(), ImageOptions(size=32))


def flat(color: tuple[int, ...], alpha: int | None = None) -> np.ndarray:
    return np.full((32, 32, 3 if alpha is None else 4), color if alpha is None else (*color, alpha), dtype=np.uint8)


def png_with_16_bits(color: tuple[int, int, int]) -> bytes:
    """A PNG file of 32 x 32 pixels of this colour, which is transparent."""
    wide = struct.pack(">3H", *color)
    header = struct.pack(">2I5B", 32, 32, 16, 2, 0, 0, 0)
    rows = zlib.compress((b"\0" + wide * 32) * 32)
    chunks = ((b"IHDR", header), (b"tRNS", wide), (b"IDAT", rows), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


TRANSPARENT = {
    "RGBA": lambda: encoded(flat((200, 100, 0), 0), "PNG"),
    "grey and alpha": lambda: encoded(
        np.dstack([np.full((32, 32), 200, np.uint8), np.zeros((32, 32), np.uint8)]), "PNG"
    ),
    "a transparent grey": lambda: encoded(np.full((32, 32), 200, np.uint8), "PNG", transparency=200),
    "a transparent 16-bit grey": lambda: encoded(np.full((32, 32), 51_400, np.uint16), "PNG", transparency=51_400),
    "a transparent colour": lambda: encoded(flat((200, 100, 0)), "PNG", transparency=(200, 100, 0)),
    "a transparent 16-bit colour": lambda: png_with_16_bits((51_277, 25_677, 5)),
    "a transparent palette entry": lambda: saved(
        Image.fromarray(flat((200, 100, 0))).quantize(2), "PNG", transparency=b"\0\0"
    ),
    "GIF": lambda: saved(Image.fromarray(flat((200, 100, 0))).quantize(2), "GIF", transparency=0),
    "WebP": lambda: encoded(flat((200, 100, 0), 0), "WEBP", lossless=True, exact=True),
}


@pytest.mark.parametrize("kind", TRANSPARENT)
def test_transparent_images_are_laid_on_the_background(kind):
    data = TRANSPARENT[kind]()
    under = prepare_image(data, ImageOptions(size=32))
    assert under.is_transparent
    assert under.square[0, 0, 0] == 200
    on_blue = prepare_image(data, ImageOptions(size=32, background=(0, 0, 255)))
    assert on_blue.square[5, 5].tolist() == [0, 0, 255]


def test_half_transparent_pixels_are_mixed_with_the_background():
    half = encoded(flat((200, 100, 0), 128), "PNG")
    mixed = prepare_image(half, ImageOptions(size=32, background=(0, 0, 255))).square[5, 5]
    assert np.abs(mixed.astype(int) - (100, 50, 127)).max() <= 1


def test_opaque_images_are_not_called_transparent_and_have_no_background():
    data = encoded(flat((200, 100, 0), 255), "PNG")
    assert not prepare_image(data, ImageOptions(size=32)).is_transparent
    plain, laid = (prepare_image(data, ImageOptions(size=32, background=color)) for color in (None, (0, 0, 0)))
    assert plain.jpeg == laid.jpeg


def test_damaged_transparency_is_none():
    class Damaged(Image.Image):
        @property
        def has_transparency_data(self) -> bool:
            raise ValueError("damaged")

    assert not is_transparent(Damaged())


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_turns_images_if_asked_to(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 90} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    data = saved(Image.fromarray(COLORS), kind, exif=exif, **options)
    plain = saved(Image.fromarray(COLORS), kind, **options)
    ignored, turned = (prepare_image(data, ImageOptions(size=32, exif=exif)) for exif in (False, True))
    assert ignored.jpeg == prepare_image(plain, ImageOptions(size=32)).jpeg
    assert ignored.is_turned == turned.is_turned == (orientation != 1)
    square = np.asarray(decode(plain))
    ways = [
        square,
        square[:, ::-1],
        square[::-1, ::-1],
        square[::-1],
        square.transpose(1, 0, 2),
        np.rot90(square, -1),
        square[::-1, ::-1].transpose(1, 0, 2),
        np.rot90(square),
    ]
    assert np.array_equal(turned.square, ways[orientation - 1])


def test_damaged_metadata_do_not_matter(recwarn, caplog):
    data = encoded(COLORS, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + bytes(range(60)))
    assert not prepare_image(data, ImageOptions(size=32, exif=True)).is_turned
    assert not recwarn.list
    assert not caplog.records


def test_what_is_not_shown_as_a_viewer_does_is_said_once(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    source = class_folders(tmp_path / "in", classes=2, train=3, val=2)
    for name in ("train/class0/a.png", "train/class0/b.png", "val/class0/a.png"):
        (source / name).write_bytes(encoded(with_alpha(COLORS), "PNG"))
    (source / "val/class0/b.jpg").write_bytes(encoded(COLORS, exif=exif))
    options = ["--size", 32, "--shard-images", 2, "--workers", 1]
    done = command("dataloading.prepare", source, tmp_path / "out", *options)
    assert done.returncode == 0
    assert done.stderr.count("3 images have transparent pixels, stored in the colours that lie under the trans") == 1
    assert (
        done.stderr.count("1 image is turned or mirrored according to EXIF, which is ignored as in 2012; dataload") == 1
    )
    done = command("dataloading.prepare", source, tmp_path / "laid", *options, "--background", "255,0,0", "--exif")
    assert done.returncode == 0
    assert "transparent" not in done.stderr
    assert "EXIF" not in done.stderr


@pytest.mark.parametrize(
    ("background", "exif", "wanted"),
    [
        (None, False, ["3 images have transparent pixels, stored in the colours", "1 image is turned or mirrored acc"]),
        ((0, 0, 0), False, ["1 image is turned or mirrored acc"]),
        (None, True, ["3 images have transparent pixels, stored in the colours"]),
        ((0, 0, 0), True, []),
    ],
)
def test_remarks_count_over_all_shards_what_the_options_leave_as_it_is(tmp_path, background, exif, wanted):
    counts = {"train": [(1, 0), (1, 0), (0, 0)], "val": [(1, 1), (0, 0)]}
    for split, shards in counts.items():
        for shard, (transparent, turned) in enumerate(shards):
            record = (
                {"transparent": transparent, "turned": turned} if transparent or turned else {}
            )  # as earlier versions
            write_record(record_path(tmp_path, split, shard), record)
    source = SimpleNamespace(splits=("train", "val"))
    found = remarks(source, tmp_path, ImageOptions(background=background, exif=exif))
    assert [text[: len(start)] for text, start in zip(found, wanted, strict=True)] == wanted


def test_the_options_are_part_of_what_a_set_is(folders, small, tmp_path):
    assert "background" not in small.made
    assert "exif" not in small.made
    on_red = quietly(folders, tmp_path / "red", shard_images=10, background=(255, 0, 0))
    turned = quietly(folders, tmp_path / "turned", shard_images=10, exif=True)
    assert len({small.fingerprint, on_red.fingerprint, turned.fingerprint}) == 3
    assert on_red.made["background"] == [255, 0, 0]
    assert turned.made["exif_orientation"] == "applied"
    assert all(np.array_equal(*images) for images in zip(stored(on_red, "val"), stored(small, "val"), strict=True))


@pytest.mark.parametrize("color", ["red", "1,2", "1,2,3,4", "0,0,256", "-1,0,0"])
def test_a_background_that_is_no_colour_is_refused(folders, tmp_path, color):
    done = command("dataloading.prepare", folders, tmp_path / "out", f"--background={color}")
    assert done.returncode == 2
    assert "background must be three numbers from 0 to 255, such as 255,255,255, got" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("workers", [0, 1])
def test_messages_of_decoders_do_not_break_the_progress_line(tmp_path, workers):
    source = class_folders(tmp_path / "in", classes=2, train=2, val=1)
    compressed = saved(Image.fromarray(COLORS), "TIFF", compression="tiff_lzw")
    (source / "train/class0/damaged.tif").write_bytes(compressed[:200] + b"\xff" * 900 + compressed[1100:])
    (source / "train/class0/warned.png").write_bytes(
        saved(Image.fromarray(COLORS).quantize(4), "PNG", transparency=b"\0\x80\x80\xff")
    )
    done = command("dataloading.prepare", source, tmp_path / "out", "--size", 32, "--workers", workers)
    assert done.returncode == 0
    lines = [line for line in done.stderr.splitlines() if "transparent" not in line]
    assert len(lines) == 1
    assert lines[0].startswith("preparing in: 8 of 8 images")

"""Protocol buffers by field number. The messages of whole networks are in interchange/test_from_caffe.py."""

import numpy as np
import pytest

from fastalex.network.caffe_format import floats, integers, read_blob, read_message, submessages, text

ARRAY = np.arange(6, dtype=np.float32).reshape(1, 2, 3)
VALUES = b"\x2a\x18" + ARRAY.tobytes()  # field 5, 24 bytes
SHAPE = b"\x3a\x05\x0a\x03\x01\x02\x03"  # field 7: field 1, packed 1, 2, 3


def message(*parts: bytes):
    return memoryview(b"".join(parts))


def test_every_kind_of_field():
    found = read_message(
        message(
            b"\x08\x96\x01", b"\x12\x03abc", b"\x1d\x00\x00\x80\x3f", b"\x21" + np.float64(2).tobytes(), b"\x08\x02"
        )
    )
    assert integers(found, 1) == [150, 2]
    assert text(found, 2) == "abc"
    assert floats(found, 3).tolist() == [1.0]
    assert floats(found, 4, "<f8").tolist() == [2.0]
    assert (integers(found, 9), text(found, 9), floats(found, 9).size, submessages(found, 9)) == ([], "", 0, [])


def test_packed_and_unpacked_numbers_are_the_same():
    assert integers(read_message(message(b"\x0a\x03\x01\xac\x02")), 1) == [1, 300]
    assert integers(read_message(message(b"\x08\x01\x08\xac\x02")), 1) == [1, 300]
    one = np.float32(1).tobytes()
    for numbers in (b"\x2a\x08" + one * 2, (b"\x2d" + one) * 2, b"\x2a\x04" + one + b"\x2d" + one):
        assert floats(read_message(message(numbers)), 5).tolist() == [1.0, 1.0]


def test_long_runs_of_unpacked_floats_end_where_another_field_begins():
    """Runs are read in pieces, and tags may have two bytes."""
    values = np.arange(2**16 + 10, dtype=np.float32)
    for tag in (b"\x2d", b"\xad\x06"):
        runs = b"".join(tag + value.tobytes() for value in values)
        found = read_message(message(runs, b"\x08\x05", runs[: len(tag) + 4]))
        assert np.array_equal(floats(found, 5 if tag == b"\x2d" else 101), [*values, 0])
        assert integers(found, 1) == [5]


def test_arrays_of_every_layout():
    legacy = b"\x08\x01\x10\x01\x18\x02\x20\x03"
    doubles = b"\x42\x30" + ARRAY.astype(np.float64).tobytes()
    assert np.array_equal(read_blob(message(SHAPE, VALUES)), ARRAY)
    assert np.array_equal(read_blob(message(VALUES, legacy)), ARRAY[None])
    assert np.array_equal(read_blob(message(SHAPE, doubles)), ARRAY)
    assert read_blob(message(SHAPE, doubles)).dtype == np.float32
    assert read_blob(message(SHAPE, VALUES)).flags.writeable


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (SHAPE + VALUES[:-1], "24 bytes are announced, 23 are there"),
        (VALUES, "an array has no shape"),
        (SHAPE, r"an array of shape \(1, 2, 3\) has 0 values"),
        (SHAPE + VALUES + VALUES, "has 12 values"),
        (b"\x08", "an integer is cut off"),
        (b"\x80", "an integer is cut off"),
        (b"\x08" + b"\xff" * 10, "more than ten bytes"),
        (b"\x2d\x00\x00", "a number is cut off after 2 of 4 bytes"),
        (b"\x29\x00\x00", "a number is cut off after 2 of 8 bytes"),
        (b"\x0b", "no wire type 3"),
        (SHAPE + b"\x28\x01", "field 5 is an integer"),
        (SHAPE + b"\x2a\x03abc", "multiple of element size"),
        (
            b"\x08\x00\x10\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
            r"an array of shape \(0, 9223372036854775807, 0, 0\) has 0",
        ),
    ],
)
def test_damage_is_an_error(data, error):
    with pytest.raises(ValueError, match=error):
        read_blob(message(data))

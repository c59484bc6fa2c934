"""Caffe's files: protocol buffers, read by field number, and the arrays (``BlobProto``) in them.

No schema and no protobuf package is needed. The encoding is that of protobuf.dev/programming-guides/encoding: a message
is a sequence of fields, each a tag (number * 8 + wire type) and a value. Field numbers are those of Caffe's
``src/caffe/proto/caffe.proto``.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

Value = int | memoryview
Message = Mapping[int, list[Value]]

_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5  # wire types
_LONGEST_RUN = 2**16

# BlobProto
_LEGACY_SHAPE, _FLOATS, _SHAPE, _DOUBLES = (1, 2, 3, 4), 5, 7, 8
_DIM = 1  # of BlobShape


def read_message(data: memoryview) -> Message:
    """The values of each field by number, in the order of the file; fields that do not occur have no values.

    A value is an integer, or the bytes of text, of a message, of packed numbers, or of consecutive unpacked floats.

    Raises:
        ValueError: the bytes are no message, or are cut off.
    """
    found: dict[int, list[Value]] = defaultdict(list)
    for number, value in _fields(data):
        found[number].append(value)
    return found


def integers(message: Message, number: int) -> list[int]:
    """The values of an integer field, packed or not.

    Raises:
        ValueError: the field is cut off.
    """
    found: list[int] = []
    for value in message.get(number, ()):
        if isinstance(value, int):
            found.append(value)
            continue
        position = 0
        while position < len(value):
            item, position = _read_varint(value, position)
            found.append(item)
    return found


def floats(message: Message, number: int, dtype: str = "<f4") -> NDArray[np.float32]:
    """The values of a float field, packed or not, in a new array; ``<f8`` reads a field of doubles.

    Raises:
        ValueError: the field holds something else, or is cut off.
    """
    parts = [np.frombuffer(part, dtype) for part in submessages(message, number)]
    return np.concatenate([np.empty(0, dtype), *parts]).astype(np.float32)


def text(message: Message, number: int) -> str:
    """The value of a text field; empty if it does not occur."""
    values = submessages(message, number)
    return bytes(values[-1]).decode("utf-8", "replace") if values else ""


def submessages(message: Message, number: int) -> list[memoryview]:
    """The bytes of each value of a field.

    Raises:
        ValueError: the field holds integers.
    """
    values = message.get(number, [])
    parts = [value for value in values if isinstance(value, memoryview)]
    if len(parts) != len(values):
        raise ValueError(f"field {number} is an integer")
    return parts


def read_blob(data: memoryview) -> NDArray[np.float32]:
    """The array of a ``BlobProto`` in fp32, in its recorded shape; older files record num, channels, height and width.

    Raises:
        ValueError: it is damaged, or the shape does not fit the number of values.
    """
    blob = read_message(data)
    values = floats(blob, _DOUBLES, "<f8") if _DOUBLES in blob else floats(blob, _FLOATS)
    if shapes := submessages(blob, _SHAPE):
        shape = integers(read_message(shapes[-1]), _DIM)
    elif any(number in blob for number in _LEGACY_SHAPE):
        shape = [(integers(blob, number) or [0])[-1] for number in _LEGACY_SHAPE]
    else:
        raise ValueError("an array has no shape")
    if math.prod(shape) != values.size or max(shape, default=0) > 2**31:
        raise ValueError(f"an array of shape {tuple(shape)} has {values.size} values")
    return values.reshape(shape)


def _fields(data: memoryview) -> Iterator[tuple[int, Value]]:
    """Number and value of each field. Consecutive unpacked numbers of one field come as one value."""
    position = 0
    while position < len(data):
        start = position
        tag, position = _read_varint(data, position)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == _VARINT:
            value, position = _read_varint(data, position)
            yield number, value
        elif wire_type == _BYTES:
            length, position = _read_varint(data, position)
            if position + length > len(data):
                raise ValueError(f"{length} bytes are announced, {len(data) - position} are there")
            yield number, data[position : position + length]
            position += length
        elif wire_type in (_FOUR_BYTES, _EIGHT_BYTES):
            size = 4 if wire_type == _FOUR_BYTES else 8
            run = _read_run(data[start:], position - start, size)
            yield number, memoryview(run[:, position - start :].tobytes())
            position = start + run.size
        else:
            raise ValueError(f"there is no wire type {wire_type}")


def _read_run(data: memoryview, tag_size: int, size: int) -> NDArray[np.uint8]:
    """The records (tag and value) at the start of the data that have the same tag, one a row.

    A file may hold millions of unpacked floats, too many for a loop.
    """
    record = tag_size + size
    count = min(len(data) // record, _LONGEST_RUN)
    if count == 0:
        raise ValueError(f"a number is cut off after {len(data) - tag_size} of {size} bytes")
    records = np.frombuffer(data[: count * record], np.uint8).reshape(count, record)
    same = (records[:, :tag_size] == records[0, :tag_size]).all(1)
    return records if same.all() else records[: int(same.argmin())]


def _read_varint(data: memoryview, position: int) -> tuple[int, int]:
    """The integer at a position, seven bits a byte, lowest first; and the position after it."""
    value = 0
    for index in range(10):
        if position + index >= len(data):
            raise ValueError("an integer is cut off")
        byte = data[position + index]
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value, position + index + 1
    raise ValueError("an integer has more than ten bytes")

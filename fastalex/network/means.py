"""The mean that is subtracted from images, as users have it: a file, or a colour."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastalex.errors import ConfigurationError
from fastalex.network.caffe_format import read_blob
from fastalex.network.foreign_files import check_file
from fastalex.network.weights_record import load_record

_NUMBER = r"\s*-?\d+(\.\d*)?\s*"
_KINDS = ".npy, .binaryproto, or .safetensors that fastalex wrote"


def read_mean(given: str) -> NDArray[np.float32]:
    """A mean image, S x S x 3, or a mean colour, 3; as red, green and blue from 0 to 255.

    Args:
        given: one of

            - ``R,G,B``, three numbers;
            - a ``.npy`` file: H x W x 3 is red, green and blue; 3 x H x W is Caffe's order, blue, green and red, as in
              ``ilsvrc_2012_mean.npy``;
            - Caffe's ``mean.binaryproto``: 3 x H x W, blue, green and red;
            - weights (``.safetensors``) that record their mean.

    Raises:
        ConfigurationError: no such file, a damaged one, one that holds no mean, or values outside of 0 to 255.
    """
    if re.fullmatch(rf"{_NUMBER}(,{_NUMBER})*", given) and not Path(given).exists():
        mean = np.array([float(number) for number in given.split(",")], np.float32)
        if mean.size != 3:
            raise ConfigurationError(f"the mean colour {given} has {mean.size} numbers; give red, green and blue")
    else:
        mean = _read_file(Path(given))
    _check_values(mean, given)
    return mean


def read_mean_image(given: str, size: int) -> NDArray[np.float32]:
    """The mean as an image, S x S x 3; a colour fills ``size`` x ``size`` pixels.

    Raises:
        ConfigurationError: as :func:`read_mean`.
    """
    mean = read_mean(given)
    return np.ascontiguousarray(np.broadcast_to(mean, (size, size, 3))) if mean.ndim == 1 else mean


def mean_colour(mean: NDArray[np.float32]) -> NDArray[np.float32]:
    """The average colour of a mean image or colour."""
    return mean.reshape(-1, 3).mean(0, dtype=np.float64).astype(np.float32)


def _read_file(path: Path) -> NDArray[np.float32]:
    suffix = path.suffix.lower()
    if not path.exists():
        raise ConfigurationError(f"no such file: {path}; give a mean as a file ({_KINDS}), or as 123,117,104")
    check_file(path)
    if suffix not in (".npy", ".binaryproto"):
        return _read_record(path)
    try:
        array: NDArray[Any]
        if suffix == ".npy":
            array = np.lib.format.read_array(io.BytesIO(path.read_bytes()), allow_pickle=False)
        else:
            array = read_blob(memoryview(path.read_bytes()))
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror or error}") from None
    except Exception as error:  # what damage raises, NumPy does not say
        raise ConfigurationError(f"{path} is damaged or no {suffix} file: {error}; copy or download it again") from None
    return _as_image(array, path)


def _read_record(path: Path) -> NDArray[np.float32]:
    try:
        record = load_record(path)
    except ConfigurationError:
        if path.suffix == ".safetensors":
            raise
        raise ConfigurationError(
            f"{path} is no mean: give a file ({_KINDS}), or a colour such as 123,117,104"
        ) from None
    if record is None:
        raise ConfigurationError(f"{path} does not record the mean of its images; give the mean itself ({_KINDS})")
    return record.mean


def _as_image(array: NDArray[Any], path: Path) -> NDArray[np.float32]:
    """S x S x 3 in red, green and blue, from either layout."""
    shape = array.shape
    if array.dtype.kind not in "fiu":
        raise ConfigurationError(f"{path} holds {array.dtype} in place of numbers; give {_KINDS}")
    if array.ndim == 4 and len(array) == 1:  # a batch of one
        array = array[0]
    if array.ndim == 3 and array.shape[2] == 3:
        image = array
    elif array.ndim == 3 and array.shape[0] == 3:
        image = array[::-1].transpose(1, 2, 0)
    else:
        raise ConfigurationError(f"{path} has shape {shape}; a mean image has S x S x 3, or 3 x S x S in Caffe's order")
    if image.shape[0] != image.shape[1]:
        raise ConfigurationError(
            f"{path} has {image.shape[0]} x {image.shape[1]} pixels; a mean image of squares is wanted"
        )
    return np.ascontiguousarray(image, np.float32)


def _check_values(mean: NDArray[np.float32], given: str) -> None:
    low, high = (float(mean.min()), float(mean.max())) if mean.size else (np.nan, np.nan)
    if not 0 <= low <= high <= 255:
        raise ConfigurationError(f"the mean {given} goes from {low:g} to {high:g}; it must lie between 0 and 255")
    if 0 < high <= 1:
        raise ConfigurationError(f"the mean {given} goes from {low:g} to {high:g}, not to 255: multiply it by 255")

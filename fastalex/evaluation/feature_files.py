"""Formats of activations: NumPy, HDF5 and MATLAB. They are computed into ``.npy`` files, and converted in the end."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fastalex.errors import ConfigurationError
from fastalex.files import sync
from fastalex.optional_packages import require
from fastalex.options.choices import FeatureFormat

VARIABLE = "activations"
"""Name of the array in ``.h5`` and ``.mat`` files."""

FILES = "files"
"""Name of the list beside it, the image file of each row: text in ``.h5``, a cell array in ``.mat`` files."""

_OVERHEAD = 2**16  # bytes, ample, of an .h5 or .mat file beside its array

LARGEST_MAT = 2**31 - 1
"""Bytes of the largest array that a ``.mat`` file of version 5 holds."""


def check_format(format: FeatureFormat, dtype: str, largest: int) -> None:
    """Check that a format can be written.

    Args:
        dtype: of the arrays.
        largest: bytes of the largest array.

    Raises:
        ConfigurationError: a package is missing, or the format cannot hold the arrays.
    """
    if format == "h5":
        require("h5py", "hdf5")
    if format == "mat":
        require("scipy.io", "hdf5")
    if format != "mat":
        return
    if dtype == "float16":
        raise ConfigurationError(".mat files hold no float16; choose float32, or .h5 files")
    if largest > LARGEST_MAT:
        raise ConfigurationError(
            f"a .mat file holds arrays of {LARGEST_MAT:,} bytes at most, got {largest:,}; choose fewer images, or .h5 "
            "files, which MATLAB reads, too"
        )


def convert(path: Path, format: FeatureFormat, files: Sequence[str]) -> None:
    """Replace a ``.npy`` file with one of another format, on disk before this returns.

    Args:
        files: the image file of each row, which the other formats hold beside the array.

    Raises:
        OSError: it cannot be written.
    """
    if format == "npy":
        return
    array, target = np.load(path, mmap_mode="r"), path.with_name(f"{path.name.removesuffix('.npy')}.{format}")
    names = [name.encode("utf-8", "backslashreplace").decode() for name in files]  # names of files may be no text
    size = array.nbytes + _OVERHEAD + 8 * sum(map(len, names))
    if shutil.disk_usage(path.parent).free < size:  # on a full disk, HDF5 ends the process
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
    if format == "h5":
        with require("h5py", "hdf5").File(target, "w") as file:
            file.create_dataset(VARIABLE, data=array)
            file.create_dataset(FILES, data=names)
    else:
        require("scipy.io", "hdf5").savemat(target, {VARIABLE: array, FILES: np.array(names, dtype=object)[:, None]})
    sync(target)
    path.unlink()

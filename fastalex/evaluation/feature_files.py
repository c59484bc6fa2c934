"""Formats of activations: NumPy, HDF5 and MATLAB. They are computed into ``.npy`` files, and converted in the end."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import numpy as np

from fastalex.errors import ConfigurationError
from fastalex.files import sync
from fastalex.optional_packages import require
from fastalex.options.choices import FeatureFormat

VARIABLE = "activations"
"""Name of the array in ``.h5`` and ``.mat`` files."""

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


def convert(path: Path, format: FeatureFormat) -> None:
    """Replace a ``.npy`` file with one of another format, on disk before this returns.

    Raises:
        OSError: it cannot be written.
    """
    if format == "npy":
        return
    array, target = np.load(path, mmap_mode="r"), path.with_name(f"{path.name.removesuffix('.npy')}.{format}")
    if shutil.disk_usage(path.parent).free < array.nbytes + _OVERHEAD:  # on a full disk, HDF5 ends the process
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
    if format == "h5":
        with require("h5py", "hdf5").File(target, "w") as file:
            file.create_dataset(VARIABLE, data=array)
    else:
        require("scipy.io", "hdf5").savemat(target, {VARIABLE: array})
    sync(target)
    path.unlink()

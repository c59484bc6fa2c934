"""Which prepared data set a command means."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import dataloading
from fastalex.errors import ConfigurationError
from fastalex.parallel.torchrun import is_worker

PREPARED = Path("prepared")
"""Where data sets are prepared that were given as they are, relative to the working directory."""


AnyDataset = dataloading.Dataset | dataloading.SyntheticDataset


def open_data(data: Path | None, size: int | None = None, *, for_training: bool = True) -> AnyDataset:
    """Open a data set, preparing it first if need be.

    Args:
        data: a prepared data set; or class folders (``train/<class>/*.jpg``, ``val/<class>/*.jpg``), which are prepared
            once into ``prepared/``; or None for the bundled handwritten digits; or the word ``synthetic`` for random
            images from memory, with which training is as fast as if data cost nothing.
        size: of the images' shorter side in pixels; a set that was prepared with another one is prepared anew from
            that, into ``prepared/``. None takes a prepared set as it is, and prepares with 256.
        for_training: False takes class folders without a validation set, too.

    Raises:
        dataloading.DatasetError: no such folder, no images in it, or a damaged data set.
    """
    suffix = f"-{size}px" if size not in (None, 256) else ""
    if data is None:
        return _prepared("digits", PREPARED / f"digits{suffix}", size)
    if str(data) == "synthetic":
        return open_prepared("synthetic")
    if not data.exists():
        raise ConfigurationError(f"no such folder: {data}")
    if (data / "config.json").is_file():
        raise ConfigurationError(f"{data} is a run folder, not a data set; name images, or go on with it by --resume")
    if dataloading.is_prepared(data):
        dataset = dataloading.Dataset(data)
        if size in (None, dataset.size):
            return dataset
    name = f"{data.resolve().name}-{_identity(data)}{suffix}"
    if not for_training and not dataloading.is_prepared(PREPARED / name):
        return _prepared(data, PREPARED / f"{name}-images", size, validation_every=0)
    return _prepared(data, PREPARED / name, size)


def _identity(source: Path) -> str:
    """Eight digits that tell apart folders of one name, and a folder from what it was before its files changed."""
    total = _number(os.fsencode(source.resolve()))
    for path in source.rglob("*") if source.is_dir() else [source]:
        if path.is_file():
            about = path.stat()
            # A sum does not depend on the order in which files are found; sorted, millions of names would be in memory.
            total += _number(os.fsencode(f"{path.relative_to(source)} {about.st_size} {about.st_mtime_ns}"))
    return f"{total % 2**32:08x}"


def _number(text: bytes) -> int:
    return int.from_bytes(hashlib.sha256(text).digest())


def open_prepared(root: str, fraction: float = 1.0, seed: int = 0) -> AnyDataset:
    """Open what a run recorded: a prepared data set's folder, or ``synthetic``.

    Args:
        fraction: of the training images of each class; see :meth:`dataloading.Dataset.subset`.
        seed: chooses them.

    Raises:
        ConfigurationError, dataloading.DatasetError: no such fraction, or a damaged data set.
    """
    if root == "synthetic":
        if fraction != 1:
            raise ConfigurationError("--fraction goes with images from files; synthetic ones are all alike")
        return dataloading.SyntheticDataset(train=12_800, val=1_280)
    dataset = dataloading.Dataset(root)
    return dataset if fraction == 1 else dataset.subset("train", fraction, seed=seed)


def _prepared(
    source: Path | str, destination: Path, size: int | None = None, validation_every: int | None = None
) -> dataloading.Dataset:
    if dataloading.is_prepared(destination):
        return dataloading.Dataset(destination)
    if is_worker():  # the others would wait for it, and give up
        raise ConfigurationError(
            f"{source} is not prepared; do that before torchrun: python -m dataloading.prepare {source} {destination}"
            + (f" --size {size}" if size else "")
            + (f" --validation-every {validation_every}" if validation_every is not None else "")
        )
    print(f"preparing {source} into {destination} (once)", flush=True)
    dataset = dataloading.prepare_dataset(source, destination, size=size or 256, validation_every=validation_every)
    if rejected := dataset.made["rejected"]:
        left_out = "1 file was left out" if rejected == 1 else f"{rejected} files were left out"
        print(f"{left_out}; {destination / 'rejected.csv'} says which and why", flush=True)
    return dataset


def default_recipe(dataset: AnyDataset) -> str:
    """The recipe for a data set where none is asked for, by what it is and how many images it has."""
    if dataset.name == "digits":
        return "digits"
    return "small" if dataset.count("train") < 100_000 else "krizhevsky"

"""Which prepared data set a command uses, preparing it first if necessary."""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import dataloading
from dataloading.process import command
from dataloading.sources.names import name_of_set
from dataloading.sources.source_files import source_files
from fastalex.errors import ConfigurationError

PREPARED = Path("prepared")
"""Folder, relative to the working directory, for data sets that commands prepare themselves."""

AnyDataset = dataloading.Dataset | dataloading.SyntheticDataset


def open_data(
    data: Path | None, size: int | None = None, *, for_training: bool = True, may_prepare: bool = True
) -> AnyDataset:
    """Open a data set, preparing it first if necessary.

    Args:
        data: a prepared data set; class folders (``train/<class>/*.jpg``, ``val/<class>/*.jpg``), which are prepared
            once into ``prepared/``; None for the bundled handwritten digits; or the word ``synthetic`` for random
            images from memory, which take no time to load.
        size: length of the images' shorter side in pixels. A set that was prepared with a larger size is prepared again
            into ``prepared/``. None takes a prepared set as it is, and prepares with 256.
        for_training: False also accepts class folders without a validation set.
        may_prepare: False in one of several workers, whose peers would wait for it until they give up.

    Raises:
        ConfigurationError: no such folder, a run folder, smaller images than asked for, a data set that is not prepared
            and must not be, or one class to train on.
        dataloading.DatasetError: no images in the folder, or a damaged data set.
    """
    dataset = _open(data, size, for_training=for_training, may_prepare=may_prepare)
    if for_training and len(dataset.classes) < 2:
        raise ConfigurationError(
            f"{dataset.root} has only one class, {dataset.classes[0]}, but a classifier needs at least two; prepare "
            f"images of several classes"
        )
    return dataset


def _open(data: Path | None, size: int | None, *, for_training: bool, may_prepare: bool) -> AnyDataset:
    suffix = f"-{size}px" if size not in (None, 256) else ""
    if data is None:
        return _prepared("digits", PREPARED / f"digits{suffix}", size, may_prepare=may_prepare)
    if str(data) == "synthetic":
        return open_prepared("synthetic")
    _check_exists(data)
    if (data / "config.json").is_file():
        raise ConfigurationError(f"{data} is a run folder, not a data set; name a folder of images, or resume the run")
    if dataloading.is_prepared(data):
        dataset = dataloading.Dataset(data)
        if size in (None, dataset.size):
            return dataset
        if dataset.size < (size or 0):
            raise ConfigurationError(
                f"{data} has images of {dataset.size} pixels, but {size} are needed, and enlarging adds no detail; "
                f"name the original images"
            )
    name = f"{name_of_set(data)}-{_identity(data)}{suffix}"
    if not for_training and not dataloading.is_prepared(PREPARED / name):
        return _prepared(data, PREPARED / f"{name}-images", size, validation_every=0, may_prepare=may_prepare)
    return _prepared(data, PREPARED / name, size, may_prepare=may_prepare)


def _check_exists(data: Path) -> None:
    try:
        if data.exists():
            return
        if data.is_symlink():
            raise ConfigurationError(f"{data} is a link that leads nowhere; restore what it names, or name a folder")
    except OSError as error:  # such as a name that is too long
        raise ConfigurationError(f"{data}: {error.strerror}; name a folder of images") from None
    raise ConfigurationError(
        f"no such folder: {data}; name a prepared data set, or a folder with train/<class>/*.jpg and val/<class>/*.jpg"
    )


def _identity(source: Path) -> str:
    """Eight hexadecimal digits that change with the folder's path and with its files' names, sizes and times."""
    total = _number(os.fsencode(source.resolve()))
    for file in source_files(source):
        # A sum does not depend on the order of the files, so millions of names need not be sorted in memory.
        total += _number(os.fsencode(f"{file.name} {file.length} {file.changed}"))
    return f"{total % 2**32:08x}"


def _number(text: bytes) -> int:
    return int.from_bytes(hashlib.sha256(text).digest())


def open_prepared(root: str, fraction: float = 1.0, seed: int = 0, *, by_channel: bool = False) -> AnyDataset:
    """Open the data set that a run has recorded: the folder of a prepared one, or ``synthetic``.

    Args:
        fraction: of the training images of each class; see :meth:`dataloading.Dataset.subset`.
        seed: selects them.
        by_channel: take the mean of each colour channel for the mean image.

    Raises:
        ConfigurationError: a fraction of synthetic images.
        dataloading.DatasetError: an invalid fraction, or a damaged data set.
    """
    if root == "synthetic":
        if fraction != 1:
            raise ConfigurationError(f"fraction must be 1 for synthetic images, got {fraction:g}")
        return dataloading.SyntheticDataset(train=12_800, val=1_280)
    dataset = dataloading.Dataset(root)
    if by_channel:
        dataset.mean_image = channel_means(dataset.mean_image)
    return dataset if fraction == 1 else dataset.subset("train", fraction, seed=seed)


def channel_means(mean_image: NDArray[np.float32]) -> NDArray[np.float32]:
    """The mean image with the mean of each colour channel in all of its pixels."""
    means = mean_image.mean((0, 1), dtype=np.float64).astype(np.float32)
    return np.ascontiguousarray(np.broadcast_to(means, mean_image.shape))


def recorded_place(dataset: AnyDataset) -> str:
    """What a run records of its data: where it finds them again, from whatever folder it is resumed."""
    return str(dataset.root) if dataset.name == "synthetic" else str(Path(dataset.root).resolve())


def mean_image_hash(mean_image: NDArray[np.float32]) -> str:
    """A short hash of a data set's mean image, which runs record: networks depend on no other part of their data."""
    return hashlib.sha256(np.ascontiguousarray(mean_image).tobytes()).hexdigest()[:16]


def reopen_data(
    given: Path | None, recorded: str, size: int | None, mean_image: str | None, *, remedy: str, may_prepare: bool
) -> AnyDataset:
    """The data with which a run goes on, with images of the size that it has been trained on.

    Args:
        given: other data than the recorded ones; None for these.
        recorded: the data set of the run.
        size: shorter side of the run's images; None takes that of the recorded data, if they are still there.
        mean_image: hash of the run's mean image, if it was recorded.
        remedy: the command that names other data, for messages.
        may_prepare: as for :func:`open_data`.

    Raises:
        ConfigurationError, dataloading.DatasetError: the data are gone, have changed, or cannot have that size.
    """
    data = given or Path(recorded)
    if str(data) == recorded == "synthetic":
        return open_prepared(recorded)
    if given is None and not data.exists():
        raise ConfigurationError(f"the run's data {recorded} are gone; say where they are: {remedy}")
    if size is None and dataloading.is_prepared(recorded):
        size = dataloading.Dataset(recorded).size
    is_small = dataloading.is_prepared(data) and size is not None and dataloading.Dataset(data).size < size
    dataset = dataloading.Dataset(data) if is_small else open_data(data, size, may_prepare=may_prepare)
    if size not in (None, dataset.size):
        raise ConfigurationError(
            f"{data} has images of {dataset.size} pixels, the run was trained on images of {size}; name the original "
            f"images: {remedy}"
        )
    if given is None and mean_image not in (None, mean_image_hash(dataset.mean_image)):
        raise ConfigurationError(
            f"{data} has changed since the run was trained on it: its mean image is another one; restore it, or name "
            f"it to go on with the changed data: {remedy}"
        )
    return dataset


def other_data(recorded: str, mean_image: str | None, dataset: AnyDataset) -> str | None:
    """What to know of a run that goes on with ``dataset``: which images it has and had; None if they are the same.

    Args:
        recorded: the data set of the run so far.
        mean_image: hash of the run's mean image, if it was recorded.
        dataset: with which it goes on.
    """
    old: AnyDataset | None = None
    with contextlib.suppress(ConfigurationError, dataloading.DatasetError):
        old = open_prepared(recorded)
        mean_image = mean_image or mean_image_hash(old.mean_image)
        if mean_image != mean_image_hash(old.mean_image):
            old = None
    same_mean = mean_image in (None, mean_image_hash(dataset.mean_image))
    if same_mean and (old is None or _images(old) == _images(dataset)):
        return None
    was = f"{recorded}, which are gone or have changed" if old is None else _with_counts(old)
    mean = "" if same_mean else "; the mean image differs, and from now on the new one is subtracted"
    return (
        f"{_with_counts(dataset)} instead of {was}; errors before and after, and so the best one, are on different "
        f"images{mean}"
    )


def _images(dataset: AnyDataset) -> list[str]:
    """Hashes that tell images apart, whatever their data set is called and wherever it lies."""
    if isinstance(dataset, dataloading.SyntheticDataset):
        return [dataset.fingerprint]
    return [shard.sha256 for split in dataset.splits for shard in dataset.shards(split)]


def _with_counts(dataset: AnyDataset) -> str:
    training, validation = dataset.count("train"), dataset.count("val")
    return f"{recorded_place(dataset)} ({training} training and {validation} validation images)"


def _prepared(
    source: Path | str,
    destination: Path,
    size: int | None = None,
    validation_every: int | None = None,
    *,
    may_prepare: bool,
) -> dataloading.Dataset:
    if dataloading.is_prepared(destination):
        return dataloading.Dataset(destination)
    if not may_prepare:
        options = {"size": size, "validation-every": validation_every}
        given = [word for name, value in options.items() if value is not None for word in (f"--{name}", value)]
        raise ConfigurationError(
            f"{source} is not prepared; run this before torchrun: "
            f"{command('dataloading.prepare', source, destination, *given)}"
        )
    dataset = dataloading.prepare_dataset(
        source,
        destination,
        size=size or 256,
        validation_every=validation_every,
        allow_empty_classes=dataloading.is_prepared(source),  # they were allowed, or refused, when it was prepared
        started=lambda: print(f"preparing {source} into {destination} (once)", flush=True),
    )
    if rejected := dataset.made["rejected"]:
        left_out = "1 file was left out" if rejected == 1 else f"{rejected} files were left out"
        print(f"{left_out}; {destination / 'rejected.csv'} lists files and reasons", flush=True)
    return dataset


def default_recipe(dataset: AnyDataset, architecture: str) -> str:
    """The name of the recipe if none is given: by the data, and for large data by the network."""
    if dataset.name == "digits":
        return "digits"
    if dataset.count("train") < 100_000:
        return "small"
    return architecture if architecture in ("caffe", "owt") else "krizhevsky"

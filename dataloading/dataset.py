"""Reading a prepared data set. The module `shards` describes the format."""

import hashlib
import io
import json
import os
import stat
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataloading.errors import HOW_TO_REPAIR, DamagedSample, DatasetError, unreadable
from dataloading.open_files import OpenFiles
from dataloading.process import command
from dataloading.shards import (
    CHANGE,
    DESCRIPTION,
    FORMAT,
    INDEX_DTYPE,
    MEAN_IMAGE,
    REJECTED,
    TAR_BLOCK,
    VERSION,
    ShardFile,
    fingerprint,
    index_name,
    read_sources,
    sources_name,
)
from dataloading.sources.names import destination_for
from dataloading.subset import balanced_subset

_SHARDS_PROBED = 64  # per split, when a data set is opened


def is_prepared(path: str | os.PathLike[str]) -> bool:
    """Return whether `path` is a folder that `prepare_dataset` has finished. `Dataset` checks it for damage.

    Raises:
        DatasetError: that cannot be found out, because the folder cannot be read.
    """
    about = _status(Path(path) / DESCRIPTION)
    return about is not None and stat.S_ISREG(about.st_mode)


class Dataset:
    """A prepared data set, opened for reading.

    Opening checks what can be checked quickly: the fingerprint of `dataset.json`, the size of every shard, the index's
    hash, shape and labels, and the first sample of up to 64 shards of each split. ``python -m dataloading.check`` reads
    every byte.

    Args:
        path: the folder that `prepare_dataset` wrote.

    Raises:
        DatasetError: the folder is missing, not prepared, or damaged.

    Attributes:
        root: the folder.
        name: the name of its source.
        classes: class names; a label is an index into this list.
        words: a description of each class in words, or None if the source has none.
        splits: ("train", "val") or more.
        size: length of the stored images' shorter side in pixels.
        mean_image: float32, shape (size, size, 3), RGB, 0-255.
        color_deviations: float64, shape (3,): standard deviations of the training pixels along their principal axes,
            0-255.
        color_vectors: float64, shape (3, 3): the principal axes, one per column.
        fingerprint: SHA-256 of the content, 64 hexadecimal digits; the same wherever the folder lies.
        made: how it was prepared: source, options, number of rejected images.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.root = Path(path)
        self._description = _read_description(self.root)
        about = self._description
        try:
            self.name: str = about["name"]
            self.classes: list[str] = about["classes"]
            self.words: list[str] | None = about["words"]
            self.splits: tuple[str, ...] = tuple(about["splits"])
            self.size: int = about["size"]
            self.made: dict[str, Any] = about["made"]
            self.fingerprint: str = about["fingerprint"]
            self.color_deviations = np.array(about["color_deviations"], dtype=np.float64)
            self.color_vectors = np.array(about["color_vectors"], dtype=np.float64)
            self._shards = {
                split: [ShardFile(**shard) for shard in about["splits"][split]["shards"]] for split in self.splits
            }
        except (KeyError, TypeError) as error:
            raise DatasetError(
                f"{self.root / DESCRIPTION} is damaged: missing or invalid entry {error}; {HOW_TO_REPAIR}"
            ) from None
        self._files = OpenFiles(sum(len(shards) for shards in self._shards.values()))
        self._subsets: tuple[tuple[str, float, int], ...] = ()
        self._index = {split: self._open_index(split) for split in self.splits}
        self._sources: dict[str, dict[str, str]] = {}
        self.mean_image: NDArray[np.float32] = self._open_mean_image()
        for split in self.splits:
            self._check_shards(split)

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.root, self._subsets)

    def __repr__(self) -> str:
        counts = ", ".join(f"{self.count(split):,} {split}" for split in self.splits)
        return f"Dataset({str(self.root)!r}: {self.name}, {len(self.classes)} classes, {counts})"

    def count(self, split: str) -> int:
        """Return the number of samples of `split`."""
        return len(self.index(split))

    def labels(self, split: str) -> NDArray[np.int32]:
        """Return the label of every sample of `split`: int32, shape (count,)."""
        return self.index(split)["label"].astype(np.int32)

    def index(self, split: str) -> NDArray[Any]:
        """Return the index of `split`, one `INDEX_DTYPE` record per sample, read-only."""
        if split not in self._index:
            raise DatasetError(f"{self.root} has no split {split!r}; it has {', '.join(self.splits)}")
        return self._index[split]

    def subset(self, split: str, fraction: float, *, seed: int) -> "Dataset":
        """Return this data set with a random `fraction` of the samples of each class of `split`.

        The choice depends on `seed` alone, and a smaller fraction is a subset of a larger one (`balanced_subset`).
        The mean image and the colour statistics remain those of all images.

        Raises:
            DatasetError: the fraction is not in (0, 1], or leaves a class without samples.
        """
        if not 0 < fraction <= 1:
            raise DatasetError(f"fraction must be more than 0 and at most 1, got {fraction}")
        labels = self.labels(split)
        chosen = balanced_subset(labels, fraction, seed=seed)
        left_out = np.setdiff1d(labels, labels[chosen])
        if len(left_out):
            name, count = self.classes[left_out[0]], int((labels == left_out[0]).sum())
            raise DatasetError(
                f"{fraction:.3g} of {self.root} leaves no image of class {name}, which has {count} in {split}; "
                f"use a fraction of {1 / count:.2g} or more"
            )
        smaller = Dataset.__new__(Dataset)
        smaller.__dict__.update(self.__dict__)
        smaller._index = {**self._index, split: self.index(split)[chosen]}
        smaller._subsets = (*self._subsets, (split, fraction, seed))
        return smaller

    @property
    def files(self) -> dict[str, str]:
        """The SHA-256 of every file in the folder, except `dataset.json`, by file name."""
        about = self._description
        found = {MEAN_IMAGE: about["mean_image_sha256"], REJECTED: about["rejected_sha256"]}
        for split in self.splits:
            found[index_name(split)] = about["splits"][split]["index_sha256"]
            found[sources_name(split)] = about["splits"][split]["sources_sha256"]
            found.update((shard.file, shard.sha256) for shard in self._shards[split])
        return found

    def shards(self, split: str) -> Sequence[ShardFile]:
        """Return name, size, SHA-256 and sample count of each shard of `split`."""
        self.index(split)  # raises for an unknown split
        return self._shards[split]

    # --- one sample ---------------------------------------------------------------------------------------------------

    def read(self, split: str, i: int) -> memoryview:
        """Return the JPEG file of sample `i`, read-only.

        Raises:
            DamagedSample: the sample is damaged; the message names shard and sample.
            DatasetError: the shard cannot be read.
        """
        return self.view(split, self.index(split)[i], i).data

    def view(self, split: str, row: Any, i: int) -> NDArray[np.uint8]:
        """Like `read`, for a caller that already has the index record `row` of sample `i`: uint8, shape (length,)."""
        shard, length, offset, _, crc32, _, _ = row.tolist() if isinstance(row, np.void) else row
        data = self._files.read(self._shard_path(split, shard), offset, length)
        found = zlib.crc32(data.data)
        if found != crc32:
            raise DamagedSample(
                f"{self.describe(split, i)} is damaged: its CRC-32 is {found:08x}, the index says {crc32:08x}; "
                f"run {command('dataloading.check', self.root)}"
            )
        return data

    def describe(self, split: str, i: int) -> str:
        """Return a description of sample `i` for messages: its number, key, shard and offset."""
        row = self.index(split)[i]
        shard, offset = int(row["shard"]), int(row["offset"])
        path = self.root / self._shards[split][shard].file
        return f"sample {i} of {split} ({self._member_name(split, shard, offset)} in {path}, offset {offset})"

    def key(self, split: str, i: int) -> str:
        """Return the key of sample `i`: its number in the source and the name of its source file.

        Raises:
            DamagedSample: the name in the shard is damaged.
        """
        row = self.index(split)[i]
        shard, offset = int(row["shard"]), int(row["offset"])
        header = self._files.read(self._shard_path(split, shard), max(0, offset - TAR_BLOCK), TAR_BLOCK).tobytes()
        try:
            return tarfile.TarInfo.frombuf(header, "ascii", "strict").name.removesuffix(".jpg")
        except (tarfile.HeaderError, UnicodeError):
            raise DamagedSample(
                f"the name of {self.describe(split, i)} is damaged; run {command('dataloading.check', self.root)}"
            ) from None

    def source(self, split: str, i: int) -> str:
        """Return the name of the source file that sample `i` was made from, such as ``val/cat/2.jpg``.

        The first call reads and verifies the names of the whole split.

        Raises:
            DamagedSample: the name in the shard is damaged, or belongs to another data set.
            DatasetError: the names cannot be read.
        """
        if split not in self._sources:
            self._sources[split] = self._open_sources(split)
        try:
            return self._sources[split][self.key(split, i)]
        except KeyError:
            raise DamagedSample(
                f"{self.describe(split, i)} is not in {sources_name(split)}; "
                f"run {command('dataloading.check', self.root)}"
            ) from None

    def _member_name(self, split: str, shard: int, offset: int) -> str:
        if offset < TAR_BLOCK:
            return "?"
        name = self._files.read(self._shard_path(split, shard), offset - TAR_BLOCK, 100).tobytes()
        return name.rstrip(b"\0").decode("ascii", "replace")

    def _shard_path(self, split: str, shard: int) -> str:
        return os.path.join(self.root, self._shards[split][shard].file)

    # --- opening ------------------------------------------------------------------------------------------------------

    def _open_index(self, split: str) -> NDArray[Any]:
        path, expected = self.root / index_name(split), self._description["splits"][split]
        data = _read(path)
        if (found := hashlib.sha256(data).hexdigest()) != expected["index_sha256"]:
            raise DatasetError(
                f"{path} does not belong to these shards: its SHA-256 is {found[:12]}..., {DESCRIPTION} says "
                f"{expected['index_sha256'][:12]}...; {HOW_TO_REPAIR}"
            )
        # Parse only after the hash is verified: NumPy's header parser accepts many damaged headers, and raises
        # arbitrary exceptions for others.
        index: NDArray[Any] = np.load(io.BytesIO(data), allow_pickle=False)
        index.flags.writeable = False
        if index.dtype != INDEX_DTYPE or index.shape != (expected["count"],):
            raise DatasetError(
                f"{path} must have ({expected['count']},) records of {INDEX_DTYPE}, got {index.shape} records of "
                f"{index.dtype}; {HOW_TO_REPAIR}"
            )
        if len(index) and not (index["label"].min() >= 0 and index["label"].max() < len(self.classes)):
            raise DatasetError(
                f"{path} has labels from {index['label'].min()} to {index['label'].max()}; with {len(self.classes)} "
                f"classes they must be 0 to {len(self.classes) - 1}; {HOW_TO_REPAIR}"
            )
        return index

    def _open_sources(self, split: str) -> dict[str, str]:
        path = self.root / sources_name(split)
        if hashlib.sha256(_read(path)).hexdigest() == self._description["splits"][split]["sources_sha256"]:
            try:
                return read_sources(path)
            except OSError as error:
                raise unreadable(path, error) from None
        raise DatasetError(f"{path} is damaged: its SHA-256 is not the one in {DESCRIPTION}; {HOW_TO_REPAIR}")

    def _open_mean_image(self) -> NDArray[np.float32]:
        path = self.root / MEAN_IMAGE
        data = _read(path)
        if hashlib.sha256(data).hexdigest() != self._description.get("mean_image_sha256"):
            raise DatasetError(f"{path} is damaged: its SHA-256 is not the one in {DESCRIPTION}; {HOW_TO_REPAIR}")
        mean: NDArray[np.float32] = np.load(io.BytesIO(data), allow_pickle=False)
        return mean

    def _check_shards(self, split: str) -> None:
        """Compare the shards with the index as far as that is quick: sizes, counts, and some samples' checksums."""
        index, shards = self.index(split), self._shards[split]
        for shard in shards:
            path = self.root / shard.file
            about = _status(path)
            found = about.st_size if about is not None and stat.S_ISREG(about.st_mode) else None
            if found != shard.bytes:
                state = "missing" if found is None else f"{found:,} bytes long"
                raise DatasetError(f"{path} is {state}; it should be {shard.bytes:,} bytes long; {HOW_TO_REPAIR}")
        first = np.cumsum([0] + [shard.samples for shard in shards])
        if first[-1] != len(index):
            raise DatasetError(
                f"{self.root}: the shards of {split} hold {first[-1]:,} samples, its index {len(index):,}; "
                f"{HOW_TO_REPAIR}"
            )
        filled = [number for number, shard in enumerate(shards) if shard.samples]
        for number in filled[:: -(-len(filled) // _SHARDS_PROBED) or 1]:
            sample = int(first[number])
            if int(index[sample]["shard"]) != number:
                raise DatasetError(
                    f"{self.root / index_name(split)} does not belong to these shards: sample {sample} should be in "
                    f"shard {number}; {HOW_TO_REPAIR}"
                )
            self.read(split, sample)


def _reopen(root: Path, subsets: tuple[tuple[str, float, int], ...]) -> Dataset:
    """Rebuild a pickled data set."""
    dataset = Dataset(root)
    for split, fraction, seed in subsets:
        dataset = dataset.subset(split, fraction, seed=seed)
    return dataset


def _status(path: Path) -> os.stat_result | None:
    """Return the status of a file or folder, or None if there is none. Raises `DatasetError` if it cannot be read."""
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a zero byte in the name
        return None
    except OSError as error:
        raise unreadable(path, error) from None


def _read(path: Path) -> bytes:
    """Return the content of a file. Raises `DatasetError` if it is not a regular file, or cannot be read."""
    about = _status(path)
    if about is not None and not stat.S_ISREG(about.st_mode):  # reading a pipe could wait for ever
        raise DatasetError(f"{path} is not a regular file; {HOW_TO_REPAIR}")
    try:
        return path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from None


def _read_description(root: Path) -> dict[str, Any]:
    """Return the verified content of `dataset.json`, or raise an error that says what is at `root` instead."""
    path = root / DESCRIPTION
    remedy = f"prepare it with: {command('dataloading.prepare', 'SOURCE', root)}"
    about_root = _status(root)
    if about_root is None or not stat.S_ISDIR(about_root.st_mode):
        raise DatasetError(f"no such folder: {root}; {remedy}")
    # It may be the user's own folder, so it is never proposed as the destination.
    as_source = f"if it holds images, prepare them: {command('dataloading.prepare', root, destination_for(root))}"
    if not is_prepared(root):
        raise DatasetError(f"{root} is not a prepared data set: it has no {DESCRIPTION}; {as_source}")
    try:
        about = json.loads(path.read_bytes())
    except OSError as error:
        raise unreadable(path, error) from None
    except ValueError as error:
        raise DatasetError(f"{path} is damaged: {error}; {HOW_TO_REPAIR}") from None
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise DatasetError(f"{path} does not describe a data set of this program; {as_source}")
    if (version := about.get("version")) != VERSION:
        change = f" ({CHANGE})" if isinstance(version, int) and version < VERSION else ""
        raise DatasetError(
            f"{root} has format version {version!r}, this program reads version {VERSION}{change}; remove or rename "
            f"the folder and {remedy}"
        )
    if (found := fingerprint(about)) != about.get("fingerprint"):
        raise DatasetError(
            f"{path} is damaged: its content has fingerprint {found[:12]}..., but it says "
            f"{str(about.get('fingerprint'))[:12]}...; {HOW_TO_REPAIR}"
        )
    return about

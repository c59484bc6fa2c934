"""The prepared format: WebDataset tar shards, an index, statistics.

A prepared data set is one folder::

    dataset.json            classes, counts, SHA-256 of every file, colour statistics, how it was made; and, over all
                            of these, the fingerprint
    mean-image.npy          float32, size x size x 3 (RGB, 0-255): the mean of the training images
    rejected.csv            the source files that were left out, with the reason
    train-000000.tar ...    shards: for each sample <key>.jpg and <key>.cls (the label in ASCII digits)
    train-index.npy         one record per sample (`INDEX_DTYPE`), in the order of the shards
    train-sources.csv       key of each sample, and the file that it was made from, as its source names it
    val-000000.tar ...      the same for every other split

The shards are plain tar files in the layout that WebDataset readers expect. The index says where in its shard each JPEG
file begins, how long it is and what its CRC-32 is, so that any sample can be read, and checked, without looking at
another one. Everything in the folder is a function of the source and of the options: no dates, no host names.
"""

import contextlib
import csv
import errno
import functools
import hashlib
import io
import itertools
import json
import mmap
import os
import resource
import sys
import tarfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dataloading import order
from dataloading.errors import DatasetError

FORMAT = "fastalex-dataset"
VERSION = 3
DESCRIPTION = "dataset.json"
MEAN_IMAGE = "mean-image.npy"
REJECTED = "rejected.csv"
INDEX_DTYPE = np.dtype(
    [
        ("shard", "<u4"),  # number of the shard within the split
        ("length", "<u4"),  # of the JPEG file in bytes
        ("offset", "<u8"),  # of the JPEG file's first byte in the shard
        ("label", "<i4"),
        ("crc32", "<u4"),  # of the JPEG file
        ("height", "<u2"),  # of the image in pixels
        ("width", "<u2"),
    ]
)
_BLOCK, _RECORD = tarfile.BLOCKSIZE, tarfile.RECORDSIZE
_PROBED_SHARDS = 64


class ShardFile(NamedTuple):
    """What `dataset.json` records of a shard."""

    file: str
    bytes: int
    sha256: str
    samples: int


def shard_name(split: str, shard: int) -> str:
    """Return the file name of a split's shard."""
    return f"{split}-{shard:06d}.tar"


def index_name(split: str) -> str:
    """Return the file name of a split's index."""
    return f"{split}-index.npy"


def sources_name(split: str) -> str:
    """Return the name of the file that says which file of the source each sample of a split was made from."""
    return f"{split}-sources.csv"


def write_sources(path: Path, rows: Iterable[Sequence[str]]) -> None:
    """Write pairs of a sample's key and its file, whatever bytes are in the file's name."""
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["sample", "file"])
        table.writerows(rows)


def read_sources(path: Path) -> dict[str, str]:
    """Return the file that each sample was made from, by the sample's key."""
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return dict(itertools.islice(csv.reader(file), 1, None))


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(description: dict[str, Any]) -> str:
    """Return the SHA-256 of what `dataset.json` says, the hashes of all files among it, but for the fingerprint."""
    content = {name: value for name, value in description.items() if name != "fingerprint"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that at any moment the old or the new file is there, and whole."""
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


class ShardWriter:
    """Writes one tar shard, always with the same bytes for the same samples; it has its name only once it is whole."""

    def __init__(self, path: Path, shard: int) -> None:
        self.path, self.shard = path, shard
        self.rows: list[tuple[int, int, int, int, int, int, int]] = []
        self._part = path.with_name(path.name + ".part")
        self._file = self._part.open("wb")
        self._hash = hashlib.sha256()
        self._position = 0

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._file.close()
            self._part.unlink(missing_ok=True)

    def add(self, key: str, jpeg: bytes, label: int, *, height: int, width: int) -> None:
        """Append ``<key>.jpg`` and ``<key>.cls``."""
        offset = self._member(f"{key}.jpg", jpeg)
        self._member(f"{key}.cls", str(label).encode())
        self.rows.append((self.shard, len(jpeg), offset, label, zlib.crc32(jpeg), height, width))

    def finish(self) -> ShardFile:
        """End the archive, bring it to disk and give it its name."""
        end = self._position + 2 * _BLOCK
        self._write(bytes(2 * _BLOCK + -end % _RECORD))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._part.replace(self.path)
        return ShardFile(self.path.name, self._position, self._hash.hexdigest(), len(self.rows))

    def _member(self, name: str, data: bytes) -> int:
        header = tarfile.TarInfo(name)
        header.size, header.mode = len(data), 0o644
        self._write(header.tobuf(tarfile.USTAR_FORMAT))
        offset = self._position
        self._write(data + bytes(-len(data) % _BLOCK))
        return offset

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._hash.update(data)
        self._position += len(data)


def is_prepared(path: str | os.PathLike[str]) -> bool:
    """Return whether `path` is a folder that `prepare_dataset` finished. Whether it is undamaged, `Dataset` says."""
    return (Path(path) / DESCRIPTION).is_file()


class Dataset:
    """A prepared data set, opened for reading.

    Opening checks what can be checked at once: the description's fingerprint, the size of every shard, the index's
    hash, shape and labels, and the first sample of up to 64 shards of each split. ``python -m dataloading.check`` reads
    every byte.

    Args:
        path: the folder that `prepare_dataset` wrote.

    Raises:
        DatasetError: the folder is missing, not prepared, or damaged.

    Attributes:
        root: the folder.
        name: its source's name.
        classes: class names; a label is a position in this list.
        words: what each class is in words, or None where the source did not say.
        splits: ("train", "val") or more.
        size: length of the stored images' shorter side in pixels.
        mean_image: float32, shape (size, size, 3), RGB, 0-255.
        color_deviations: float64, shape (3,): standard deviations of the training pixels along their principal axes,
            0-255.
        color_vectors: float64, shape (3, 3): those axes, in the columns.
        fingerprint: identity of the content, 64 hexadecimal digits; independent of where the folder lies.
        made: how it was made: source, options, counts.
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
            raise DatasetError(f"{self.root / DESCRIPTION} is damaged: no usable entry {error}; {_REPAIR}") from None
        shards = sum(len(self._shards[split]) for split in self.splits)
        room = _room_for_maps(shards)
        self._all_stay_mapped = shards <= room
        self._mapped = functools.lru_cache(room)(_mapped)
        self._subsets: tuple[tuple[str, float, int], ...] = ()
        self._index = {split: self._open_index(split) for split in self.splits}
        self._sources: dict[str, dict[str, str]] = {}
        self.mean_image: NDArray[np.float32] = self._open_mean_image()
        for split in self.splits:
            self._check_shards(split)

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopened, (self.root, self._subsets)

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
        """Return the index of `split`, one `INDEX_DTYPE` record per sample, mapped from disk and read-only."""
        if split not in self._index:
            raise DatasetError(f"{self.root} has no split {split!r}; it has {', '.join(self.splits)}")
        return self._index[split]

    def subset(self, split: str, fraction: float, *, seed: int) -> "Dataset":
        """Return the same data set with `fraction` of the samples of each class of `split`, chosen by `seed`.

        A smaller fraction's samples are among a larger one's (see `order.subset`). Mean image and colour statistics
        stay those of all images.

        Raises:
            DatasetError: a fraction outside (0, 1], or one that leaves a class without samples.
        """
        if not 0 < fraction <= 1:
            raise DatasetError(f"fraction is {fraction}; more than 0 and at most 1 is wanted")
        labels = self.labels(split)
        chosen = order.subset(labels, fraction, seed=seed)
        left_out = np.setdiff1d(labels, labels[chosen])
        if len(left_out):
            name, count = self.classes[left_out[0]], int((labels == left_out[0]).sum())
            raise DatasetError(
                f"{fraction:.3g} of {self.root} leaves no image of class {name}, which has {count} in {split}; take a "
                f"fraction of {1 / count:.2g} or more"
            )
        smaller = Dataset.__new__(Dataset)
        smaller.__dict__.update(self.__dict__)
        smaller._index = {**self._index, split: self.index(split)[chosen]}
        smaller._subsets = (*self._subsets, (split, fraction, seed))
        return smaller

    @property
    def files(self) -> dict[str, str]:
        """The SHA-256 of every file in the folder but `dataset.json`, by the file's name."""
        about = self._description
        found = {MEAN_IMAGE: about["mean_image_sha256"], REJECTED: about["rejected_sha256"]}
        for split in self.splits:
            found[index_name(split)] = about["splits"][split]["index_sha256"]
            found[sources_name(split)] = about["splits"][split]["sources_sha256"]
            found.update((shard.file, shard.sha256) for shard in self._shards[split])
        return found

    def shards(self, split: str) -> Sequence[ShardFile]:
        """Return name, size, SHA-256 and sample count of the split's shards."""
        self.index(split)
        return self._shards[split]

    def read(self, split: str, i: int) -> memoryview:
        """Return the JPEG file of sample `i`, read-only, and not copied where all shards can be open at once.

        Raises `DatasetError`, naming shard and sample, when its bytes are not those that were prepared.
        """
        return self.view(split, self.index(split)[i], i).data

    def view(self, split: str, row: Any, i: int) -> NDArray[np.uint8]:
        """Like `read`, for a caller that has the index record of sample `i` already: uint8, shape (length,)."""
        shard, length, offset, _, crc32, _, _ = row.tolist() if isinstance(row, np.void) else row
        data = self._map(split, shard)[offset : offset + length]
        if not self._all_stay_mapped:  # a view would keep its shard's file open
            data = np.frombuffer(data.tobytes(), dtype=np.uint8)
        found = zlib.crc32(data.data)
        if found != crc32:
            raise DatasetError(
                f"{self.describe(split, i)} is damaged: its CRC-32 is {found:08x}, the index says "
                f"{crc32:08x}; "
                f"run python -m dataloading.check {self.root}"
            )
        return data

    def describe(self, split: str, i: int) -> str:
        """Return which sample `i` is in words: its number, shard and key."""
        row = self.index(split)[i]
        shard, offset = int(row["shard"]), int(row["offset"])
        place = self.root / self._shards[split][shard].file
        return f"sample {i} of {split} ({self._member(split, shard, offset)} in {place}, offset {offset})"

    def key(self, split: str, i: int) -> str:
        """Return the name of sample `i`: its place in the source, and its file's name there."""
        row = self.index(split)[i]
        return self._member(split, int(row["shard"]), int(row["offset"])).removesuffix(".jpg")

    def source(self, split: str, i: int) -> str:
        """Return the file that sample `i` was made from, as the source names it, such as ``val/cat/2.jpg``.

        The names of the whole split are read, and checked, when the first one is asked for.
        """
        if split not in self._sources:
            self._sources[split] = self._open_sources(split)
        return self._sources[split][self.key(split, i)]

    def _member(self, split: str, shard: int, offset: int) -> str:
        header = self._map(split, shard)[offset - _BLOCK : offset].tobytes()
        return header[:100].rstrip(b"\0").decode("ascii", "replace") if len(header) == _BLOCK else "?"

    def _map(self, split: str, shard: int) -> NDArray[np.uint8]:
        return self._mapped(os.path.join(self.root, self._shards[split][shard].file))

    def _open_index(self, split: str) -> NDArray[Any]:
        path, wanted = self.root / index_name(split), self._description["splits"][split]
        try:
            found = file_sha256(path)
        except OSError as error:
            raise _unreadable(path, error) from None
        if found != wanted["index_sha256"]:
            raise DatasetError(
                f"{path} does not belong to these shards: its SHA-256 is {found[:12]}..., {DESCRIPTION} says "
                f"{wanted['index_sha256'][:12]}...; {_REPAIR}"
            )
        # Read only now: NumPy's parser of headers makes something of many damaged ones, and raises anything at others.
        try:
            index = np.load(path, mmap_mode="r" if wanted["count"] else None, allow_pickle=False)
        except OSError as error:
            raise _unreadable(path, error) from None
        if index.dtype != INDEX_DTYPE or index.shape != (wanted["count"],):
            raise DatasetError(
                f"{path} has {index.shape} records of {index.dtype}, not ({wanted['count']},) of {INDEX_DTYPE}"
            )
        if len(index) and not (index["label"].min() >= 0 and index["label"].max() < len(self.classes)):
            raise DatasetError(
                f"{path} has labels from {index['label'].min()} to {index['label'].max()}; with {len(self.classes)} "
                f"classes "
                f"they must be 0 to {len(self.classes) - 1}; {_REPAIR}"
            )
        return index

    def _open_sources(self, split: str) -> dict[str, str]:
        path = self.root / sources_name(split)
        try:
            if file_sha256(path) == self._description["splits"][split]["sources_sha256"]:
                return read_sources(path)
        except OSError as error:
            raise _unreadable(path, error) from None
        raise DatasetError(f"{path} is damaged: its SHA-256 is not the one in {DESCRIPTION}; {_REPAIR}")

    def _open_mean_image(self) -> NDArray[np.float32]:
        path = self.root / MEAN_IMAGE
        try:
            data = path.read_bytes()
        except OSError as error:
            raise _unreadable(path, error) from None
        if hashlib.sha256(data).hexdigest() != self._description.get("mean_image_sha256"):
            raise DatasetError(f"{path} is damaged: its SHA-256 is not the one in {DESCRIPTION}; {_REPAIR}")
        mean: NDArray[np.float32] = np.load(io.BytesIO(data), allow_pickle=False)
        return mean

    def _check_shards(self, split: str) -> None:
        """Compare the shards with the index as far as that is quick: sizes, places, and some samples' checksums."""
        index, shards = self.index(split), self._shards[split]
        for shard in shards:
            path = self.root / shard.file
            found = path.stat().st_size if path.is_file() else None
            if found != shard.bytes:
                state = "missing" if found is None else f"{found:,} bytes long"
                raise DatasetError(f"{path} is {state}; it should be {shard.bytes:,} bytes long; {_REPAIR}")
        first = np.cumsum([0] + [shard.samples for shard in shards])
        if first[-1] != len(index):
            raise DatasetError(
                f"{self.root}: the shards of {split} hold {first[-1]:,} samples, its index {len(index):,}; {_REPAIR}"
            )
        filled = [number for number, shard in enumerate(shards) if shard.samples]
        for number in filled[:: -(-len(filled) // _PROBED_SHARDS) or 1]:
            sample = int(first[number])
            if int(index[sample]["shard"]) != number:
                raise DatasetError(
                    f"{self.root / index_name(split)} does not belong to these shards: see sample {sample}; {_REPAIR}"
                )
            self.read(split, sample)


def _reopened(root: Path, subsets: tuple[tuple[str, float, int], ...]) -> Dataset:
    """A data set as it was when it was pickled."""
    dataset = Dataset(root)
    for split, fraction, seed in subsets:
        dataset = dataset.subset(split, fraction, seed=seed)
    return dataset


_REPAIR = "copy the data set again or prepare it anew"


def _unreadable(path: str | os.PathLike[str], error: OSError | ValueError) -> DatasetError:
    remedy = _REPAIR
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        remedy = f"this process may have {limit:,} files open; allow more (ulimit -n)"
    reason = (error.strerror if isinstance(error, OSError) else None) or error
    return DatasetError(f"cannot read {os.fspath(path)}: {reason}; {remedy}")


def _room_for_maps(shards: int) -> int:
    """Return how many shards may be mapped at once, after raising the limit of open files where that helps.

    A map keeps its file open. Half of the open files that the process is allowed are left to everything else.
    """
    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft, hard = (sys.maxsize if limit == resource.RLIM_INFINITY else limit for limit in (allowed, most))
    wanted = min(2 * shards + 1024, hard)
    if soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))
            soft = wanted
    return max(1, soft // 2)


def _mapped(path: str) -> NDArray[np.uint8]:
    try:
        with open(path, "rb") as file:
            return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), dtype=np.uint8)
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None


def _read_description(root: Path) -> dict[str, Any]:
    """Read `dataset.json`, or say what is at `root` instead."""
    path = root / DESCRIPTION
    remedy = f"prepare it with: python -m dataloading.prepare SOURCE {root}"
    if not root.is_dir():
        raise DatasetError(f"no such folder: {root}; {remedy}")
    if not path.is_file():
        raise DatasetError(f"{root} is not a prepared data set: it has no {DESCRIPTION}; {remedy}")
    try:
        about = json.loads(path.read_bytes())
    except OSError as error:
        raise _unreadable(path, error) from None
    except ValueError as error:
        raise DatasetError(f"{path} is damaged: {error}; {_REPAIR}") from None
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise DatasetError(f"{path} does not describe a data set of this program; {remedy}")
    if about.get("version") != VERSION:
        raise DatasetError(
            f"{root} has format version {about.get('version')!r}; this program reads {VERSION}; {remedy}"
        )
    if (found := fingerprint(about)) != about.get("fingerprint"):
        raise DatasetError(
            f"{path} is damaged: its fingerprint is {found[:12]}..., it says {str(about.get('fingerprint'))[:12]}...; "
            f"{_REPAIR}"
        )
    return about

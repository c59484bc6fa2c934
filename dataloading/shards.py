"""The prepared format: names, records and the writer of its tar shards. `dataset` reads it.

A prepared data set is one folder::

    dataset.json            classes, counts, SHA-256 of every file, colour statistics, options of the preparation; and
                            the fingerprint, a hash of all of these
    mean-image.npy          float32, size x size x 3 (RGB, 0-255): the mean of the training images
    rejected.csv            the source files that were left out, with the reason
    train-000000.tar ...    shards: for each sample <key>.jpg and <key>.cls (the label in ASCII digits)
    train-index.npy         one record per sample (`INDEX_DTYPE`), in the order of the shards
    train-sources.csv       the key of each sample, and the name of the source file that it was made from
    val-000000.tar ...      the same for every other split

The shards are plain tar files in the layout that WebDataset readers expect. The index holds the offset, length and
CRC-32 of each JPEG file in its shard, so any sample can be read and verified on its own. Every byte in the folder is a
function of the source and the options: there are no dates and no host names.
"""

import contextlib
import csv
import hashlib
import itertools
import json
import tarfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np

from dataloading.files import sync, sync_descriptor

FORMAT = "fastalex-dataset"
VERSION = 4
CHANGE = "since version 4 images are shrunk by exact area averages"  # for data sets of earlier versions
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
TAR_BLOCK = tarfile.BLOCKSIZE  # bytes; headers fill one block, and members are padded to whole blocks


class ShardFile(NamedTuple):
    """What `dataset.json` records about a shard: file name, length in bytes, SHA-256, number of samples."""

    file: str
    bytes: int
    sha256: str
    samples: int


def shard_name(split: str, shard: int) -> str:
    """Return the file name of shard number `shard` of a split."""
    return f"{split}-{shard:06d}.tar"


def index_name(split: str) -> str:
    """Return the file name of a split's index."""
    return f"{split}-index.npy"


def sources_name(split: str) -> str:
    """Return the name of the file that maps each sample of a split to its source file."""
    return f"{split}-sources.csv"


def write_sources(path: Path, rows: Iterable[Sequence[str]]) -> None:
    """Write pairs (key of the sample, name of its source file). The name may contain any bytes."""
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["sample", "file"])
        table.writerows(rows)


def read_sources(path: Path) -> dict[str, str]:
    """Return the name of each sample's source file by the sample's key."""
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return dict(itertools.islice(csv.reader(file), 1, None))


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(description: dict[str, Any]) -> str:
    """Return the SHA-256 of the content of `dataset.json` without its fingerprint.

    The content includes the hashes of all other files, so the fingerprint identifies the whole data set.
    """
    content = {name: value for name, value in description.items() if name != "fingerprint"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class ShardWriter:
    """Context manager that writes one tar shard. The same samples always give the same bytes.

    The file has the suffix ``.part`` until `finish` renames it; leaving the context by an exception removes it.

    Args:
        path: final name of the shard.
        shard: its number, for the index.

    Attributes:
        rows: an `INDEX_DTYPE` record, as a tuple, for each sample added.
    """

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
            with contextlib.suppress(OSError):  # it writes what is left, and the disk may be full
                self._file.close()
            self._part.unlink(missing_ok=True)

    def add(self, key: str, jpeg: bytes, label: int, *, height: int, width: int) -> None:
        """Append ``<key>.jpg`` and ``<key>.cls``."""
        offset = self._add_member(f"{key}.jpg", jpeg)
        self._add_member(f"{key}.cls", str(label).encode())
        self.rows.append((self.shard, len(jpeg), offset, label, zlib.crc32(jpeg), height, width))

    def finish(self) -> ShardFile:
        """Write the end of the archive, sync it to disk, rename it to its final name, and sync that too."""
        end = self._position + 2 * TAR_BLOCK
        self._write(bytes(2 * TAR_BLOCK + -end % tarfile.RECORDSIZE))
        self._file.flush()
        sync_descriptor(self._file.fileno())
        self._file.close()
        self._part.replace(self.path)
        sync(self.path.parent)  # before a record says that the shard is there
        return ShardFile(self.path.name, self._position, self._hash.hexdigest(), len(self.rows))

    def _add_member(self, name: str, data: bytes) -> int:
        """Append a file to the archive; return the offset of its data."""
        header = tarfile.TarInfo(name)
        header.size, header.mode = len(data), 0o644
        self._write(header.tobuf(tarfile.USTAR_FORMAT))
        offset = self._position
        self._write(data + bytes(-len(data) % TAR_BLOCK))
        return offset

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._hash.update(data)
        self._position += len(data)

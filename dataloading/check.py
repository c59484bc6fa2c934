"""Verify every byte of a prepared data set: ``python -m dataloading.check DEST``."""

import hashlib
import io
import os
import stat
import sys
import tarfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from PIL import Image
from rich.console import Console
from rich.table import Table

from dataloading.command_line import run
from dataloading.dataset import Dataset
from dataloading.errors import HOW_TO_REPAIR, DatasetError
from dataloading.progress_bar import ProgressBar
from dataloading.shards import DESCRIPTION, TAR_BLOCK, file_sha256
from dataloading.sources.folder_listing import is_ignored

_PROBLEMS_SHOWN = 20
_OTHER_HASH = f"its SHA-256 is not the one in {DESCRIPTION}"


@dataclass(frozen=True)
class Problem:
    """A problem with one file: the file, what is wrong with it, and whether it is damaged or only unreadable now."""

    file: Path
    text: str
    is_damage: bool = True

    def __str__(self) -> str:
        return f"{self.file}: {self.text}"


def problems(
    dataset: Dataset, *, decode: bool = True, threads: int | None = None, progress: bool = True
) -> list[Problem]:
    """Read every byte of every file and return all problems, in the order of the data set.

    Checks that all files are there, and no others; the SHA-256 of each; that the members of each shard have the order,
    keys, labels and CRC-32 that the index says; and, with `decode`, that every image decodes to the size in the index.

    Args:
        dataset: the data set, already opened.
        decode: also decode every image.
        threads: number of threads; None means one per usable processor.
        progress: report progress on stderr.
    """
    found = list(_file_problems(dataset))
    everything = [(split, shard) for split in dataset.splits for shard in range(len(dataset.shards(split)))]
    total, done = sum(dataset.count(split) for split in dataset.splits), 0
    with (
        ProgressBar(f"checking {dataset.root}", total, shown=progress) as bar,
        ThreadPoolExecutor(threads or len(os.sched_getaffinity(0))) as pool,
    ):
        results = pool.map(lambda which: list(_shard_problems(dataset, which[0], which[1], decode)), everything)
        for (split, shard), problems_found in zip(everything, results, strict=True):
            found += problems_found
            done += dataset.shards(split)[shard].samples
            bar.update(done)
    return found


def _file_problems(dataset: Dataset) -> Iterator[Problem]:
    """Compare the files in the folder with `dataset.json`, except the contents of shards."""
    shards = {file.file for split in dataset.splits for file in dataset.shards(split)}
    for name, sha256 in dataset.files.items():
        path = dataset.root / name
        try:
            if not stat.S_ISREG(path.stat().st_mode):
                yield Problem(path, "it is not a file")
            elif name not in shards and file_sha256(path) != sha256:
                yield Problem(path, _OTHER_HASH)
        except FileNotFoundError:
            yield Problem(path, "it is missing")
        except OSError as error:
            if name not in shards:  # reported by _shard_problems
                yield _unreadable(path, error)
    for path in sorted(dataset.root.iterdir()):
        if path.name != DESCRIPTION and path.name not in dataset.files and not is_ignored(path.name):
            yield Problem(path, "it does not belong to the data set")


def _unreadable(path: Path, error: OSError) -> Problem:
    return Problem(path, f"it cannot be read: {error.strerror or error}", is_damage=False)


def _shard_problems(dataset: Dataset, split: str, shard: int, decode: bool) -> Iterator[Problem]:
    """Read a shard from beginning to end and compare it with its hash and with the index."""
    path = dataset.root / dataset.shards(split)[shard].file
    try:
        if stat.S_ISREG(path.stat().st_mode):  # otherwise reported by _file_problems
            yield from (Problem(path, text) for text in _differences(dataset, split, shard, path.read_bytes(), decode))
    except FileNotFoundError:  # reported by _file_problems
        return
    except OSError as error:
        yield _unreadable(path, error)


def _differences(dataset: Dataset, split: str, shard: int, data: bytes, decode: bool) -> Iterator[str]:
    """Compare the content of a shard with its hash and with the index."""
    file, index = dataset.shards(split)[shard], dataset.index(split)
    if hashlib.sha256(data).hexdigest() != file.sha256:
        yield _OTHER_HASH
    first, last = np.searchsorted(index["shard"], [shard, shard + 1])
    if last - first != file.samples:
        yield f"the index lists {last - first} samples for it, dataset.json {file.samples}"
    position = 0
    for sample, row in enumerate(index[first:last].tolist(), first):
        for text in _sample_problems(data, position, row, decode):
            yield f"sample {sample}: {text}"
        _, length, offset, label, *_ = row
        position = offset + _padded(length) + TAR_BLOCK + _padded(len(str(label)))
    if any(data[position:]):
        yield f"unexpected data after its last sample, at offset {position}"


def _sample_problems(data: bytes, position: int, row: Any, decode: bool) -> Iterator[str]:
    """Compare the image and the label that begin at `position` with their record in the index."""
    _, length, offset, label, crc32, height, width = row
    jpeg = data[offset : offset + length]
    end = offset + _padded(length)
    image, cls = _member(data, position), _member(data, end)
    if image is None or not image.name.endswith(".jpg") or image.size != length or position + TAR_BLOCK != offset:
        yield f"no JPEG member of {length} bytes at offset {position}"
    elif cls is None or cls.name != image.name[:-4] + ".cls":
        yield f"{image.name} is not followed by its label"
    elif data[end + TAR_BLOCK :][: cls.size] != str(label).encode():
        yield f"the label in {cls.name} is not {label} as in the index"
    if zlib.crc32(jpeg) != crc32:
        yield f"its CRC-32 is {zlib.crc32(jpeg):08x}, the index says {crc32:08x}"
    elif decode:
        try:
            with Image.open(io.BytesIO(jpeg), formats=("JPEG",)) as picture:
                picture.load()
        except Exception as error:  # Pillow's decoders raise arbitrary exceptions for damaged data
            yield f"does not decode: {error}"
        else:
            if picture.size != (width, height) or picture.format != "JPEG":
                yield f"its image is a {picture.format} of {picture.size}, the index says JPEG of {(width, height)}"


def _padded(length: int) -> int:
    """Round up to whole tar blocks."""
    return -(-length // TAR_BLOCK) * TAR_BLOCK


def _member(data: bytes, position: int) -> tarfile.TarInfo | None:
    """Parse the tar header at `position`, or return None if there is none."""
    try:
        return tarfile.TarInfo.frombuf(data[position : position + TAR_BLOCK], "ascii", "replace")
    except tarfile.HeaderError:
        return None


def _summary(dataset: Dataset) -> Table:
    table = Table("split", "images", "shards", "size", "images per class", title=dataset.name)
    for split in dataset.splits:
        per_class = np.bincount(dataset.labels(split), minlength=len(dataset.classes))
        shards = dataset.shards(split)
        size = sum(shard.bytes for shard in shards) / 1e6
        spread = f"{per_class.min():,} to {per_class.max():,}"
        table.add_row(split, f"{dataset.count(split):,}", f"{len(shards):,}", f"{size:,.1f} MB", spread)
    return table


def main(
    dest: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DEST")],
    decode: bool = True,
    threads: Annotated[int | None, tyro.conf.arg(help_behavior_hint="")] = None,
    progress: bool = True,
) -> None:
    """Read a whole prepared data set, verify every checksum, decode every image, and print a summary.

    Args:
        dest: The folder that dataloading.prepare created.
        decode: Decode every image. Otherwise only checksums and the structure of the archives are verified.
        threads: Number of threads. Default: one per processor.
        progress: Report progress.
    """
    dataset = Dataset(dest)
    found = problems(dataset, decode=decode, threads=threads, progress=progress)
    if found:
        more = f"\n... and {len(found) - _PROBLEMS_SHOWN:,} more" if len(found) > _PROBLEMS_SHOWN else ""
        print("\n".join(map(str, found[:_PROBLEMS_SHOWN])) + more, file=sys.stderr)
        if not any(problem.is_damage for problem in found):
            raise DatasetError(
                f"{dest} was not checked: {len(found):,} files cannot be read; check the disk or its connection, and "
                "try again"
            )
        raise DatasetError(f"{dest} is damaged: {len(found):,} problems; {HOW_TO_REPAIR}")
    Console(markup=False, emoji=False, highlight=False).print(_summary(dataset))  # names may hold [brackets]
    print(f"{len(dataset.classes):,} classes, {dataset.made['rejected']:,} rejected, fingerprint {dataset.fingerprint}")
    print(f"{dataset.root}: no damage found")


if __name__ == "__main__":
    run(main, module="dataloading.check")

"""The files that describe finished shards: indices, names of source files, statistics, rejected files, dataset.json."""

import csv
import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL

from dataloading import shards
from dataloading.errors import DatasetError
from dataloading.files import sync, write_atomically
from dataloading.preparation.images import ImageOptions
from dataloading.preparation.shard_plan import read_record, record_path
from dataloading.preparation.statistics import PixelSums
from dataloading.sources.entries import Source


def write_descriptions(source: Source, folder: Path, options: ImageOptions, sums: PixelSums) -> None:
    """Write the index and source names of each split, the mean image, `rejected.csv` and, last, `dataset.json`.

    Args:
        source: what was prepared.
        folder: where the shards and their records are.
        options: how images were prepared.
        sums: sums over all training images.

    Raises:
        DatasetError: all training images were rejected.
    """
    rejected_path, rejected = _write_rejected(source, folder)
    if not sums.count:
        raise DatasetError(f"none of the training images of {source.name} can be used; see {rejected_path}")
    splits = {split: _write_index(folder, split) for split in source.splits}
    mean = io.BytesIO()
    np.save(mean, sums.mean_image(), allow_pickle=False)
    write_atomically(folder / shards.MEAN_IMAGE, mean.getvalue())
    deviations, axes = sums.color_axes()
    description = {
        "format": shards.FORMAT,
        "version": shards.VERSION,
        "name": source.name,
        "size": options.size,
        "classes": source.classes,
        "words": source.words,
        "color_deviations": deviations.tolist(),
        "color_vectors": axes.tolist(),
        "mean_image_sha256": hashlib.sha256(mean.getvalue()).hexdigest(),
        "rejected_sha256": shards.file_sha256(rejected_path),
        "splits": splits,
        "made": {**source.made(), **_made(options), "rejected": rejected},
    }
    description["fingerprint"] = shards.fingerprint(description)
    write_atomically(folder / shards.DESCRIPTION, json.dumps(description, indent=1))


def _made(options: ImageOptions) -> dict[str, Any]:
    """Return what `dataset.json` records about the preparation."""
    return {
        **options.record(),
        "resampling": "area averages when shrinking, cubic (a = -0.75) when enlarging",
        "exif_orientation": "applied" if options.exif else "ignored",
        "pillow": PIL.__version__,
    }


def remarks(source: Source, folder: Path, options: ImageOptions) -> list[str]:
    """Return what a person should know about images that were stored otherwise than viewers show them.

    Args:
        source: what was prepared.
        folder: where the records of its shards are.
        options: how images were prepared.
    """
    transparent = turned = 0
    for split in source.splits:
        for record in _records(folder, split):  # records of earlier versions have no such counts
            transparent, turned = transparent + record.get("transparent", 0), turned + record.get("turned", 0)
    found = []
    if transparent and options.background is None:
        found.append(
            f"{_count(transparent, 'image has', 'images have')} transparent pixels, stored in the colours that lie "
            "under the transparency; dataloading.prepare --background 255,255,255 would lay them on white"
        )
    if turned and not options.exif:
        found.append(
            f"{_count(turned, 'image is', 'images are')} turned or mirrored according to EXIF, which is ignored as in "
            "2012; dataloading.prepare --exif would turn them upright"
        )
    return found


def _count(number: int, one: str, more: str) -> str:
    return f"{number:,} {one if number == 1 else more}"


def _records(folder: Path, split: str) -> Iterator[dict[str, Any]]:
    """Yield the records of a split's finished shards."""
    shard = 0
    while (path := record_path(folder, split, shard)).exists():
        record = read_record(path)
        if record is None:
            raise DatasetError(f"{path} is damaged; repeat the command, which makes its shard again")
        yield record
        shard += 1


def _write_index(folder: Path, split: str) -> dict[str, Any]:
    """Concatenate the shards' records into the split's index and source names; return its entry in `dataset.json`."""
    files = [record["shard"] for record in _records(folder, split)]
    count, start, path = sum(file["samples"] for file in files), 0, folder / shards.index_name(split)
    index = np.empty(count, dtype=shards.INDEX_DTYPE)  # not mapped: on a full disk, that would kill the process
    for record in _records(folder, split):
        rows = np.array([tuple(row) for row in record["rows"]], dtype=shards.INDEX_DTYPE)
        index[start : start + len(rows)] = rows
        start += len(rows)
    np.save(path, index, allow_pickle=False)
    sources = folder / shards.sources_name(split)
    shards.write_sources(sources, (row for record in _records(folder, split) for row in record["sources"]))
    for written in (path, sources):
        sync(written)  # before `dataset.json` says that they are there
    return {
        "count": count,
        "index_sha256": shards.file_sha256(path),
        "sources_sha256": shards.file_sha256(sources),
        "shards": files,
    }


def _write_rejected(source: Source, folder: Path) -> tuple[Path, int]:
    """Write `rejected.csv`; return its path and the number of files in it."""
    path, count = folder / shards.REJECTED, 0
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["split", "file", "reason"])
        for split in source.splits:
            for record in _records(folder, split):
                table.writerows(record["rejected"])
                count += len(record["rejected"])
    sync(path)
    return path, count

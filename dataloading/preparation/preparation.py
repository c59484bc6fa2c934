"""From a source to a prepared data set: every image decoded once, checked, brought to size and written to shards.

The source's images are listed first (the plan) and divided into shards of equal count; each shard is then a function of
its part of the plan alone. Worker processes make the shards, in any order; the bytes are the same for any number of
them.

All work happens in ``DEST.preparing`` beside DEST, which takes DEST's name when everything is done. A preparation that
was interrupted, even by ``kill -9``, goes on from its finished shards when the same command is given again.
"""

import contextlib
import csv
import dataclasses
import fcntl
import hashlib
import io
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dataloading import shards
from dataloading.errors import DatasetError
from dataloading.ilsvrc import ILSVRC, edition_in
from dataloading.images import Rejected, Treatment, treat
from dataloading.plan import PLAN, Task, read_entry, tasks, write_plan
from dataloading.progress import ProgressReport
from dataloading.shards import Dataset, ShardWriter, write_atomically
from dataloading.sources import Source, open_source
from dataloading.space import check_space
from dataloading.statistics import PixelSums
from dataloading.workers import Counter, results

SHARD_IMAGES = 1024
_SUMS = "sums.npz"


def prepare_dataset(
    source: str | os.PathLike[str],
    dest: str | os.PathLike[str],
    *,
    size: int = 256,
    quality: int = 95,
    workers: int | None = None,
    progress: bool = True,
    keep_aspect: bool = False,
    label_order: str = "sorted",
    validation_every: int | None = None,
    verify: bool = False,
    shard_images: int = SHARD_IMAGES,
    max_pixels: int = Treatment.max_pixels,
) -> Dataset:
    """Prepare `source` into the folder `dest` and open the result.

    Args:
        source: path of class folders, of a folder with ILSVRC2012's or ILSVRC2010's archives, of WebDataset shards, or
            "digits" for the bundled handwritten digits.
        dest: folder to make; it must not exist, or be empty.
        size: length of the shorter side in pixels after resizing.
        quality: JPEG quality, 1 to 95.
        workers: processes; None takes one per usable processor. 0 works in this process, which an image that crashes
            its decoder then ends; with worker processes such an image is rejected like others.
        progress: report progress on stderr.
        keep_aspect: store whole images instead of their centre squares.
        label_order: of ILSVRC's classes: "sorted" by WordNet id, or "devkit" as Krizhevsky had them.
        validation_every: where there is no validation set, hold out every n-th training image of each class; 0
            does without one.
        verify: first compare the source's archives with their published MD5 sums.
        shard_images: source images per shard.
        max_pixels: images with more pixels are left out.

    Raises:
        DatasetError: source or destination cannot be used; the message says why.
    """
    treatment = Treatment(size, quality, keep_aspect, max_pixels)
    _check_options(treatment, shard_images, workers)
    dest = Path(dest)
    if dest.exists() and (not dest.is_dir() or any(dest.iterdir())):
        raise DatasetError(f"{dest} exists already; remove it or choose another destination")
    with _workplace(dest) as folder:
        # An interruption at the very end has left a whole data set, of which the plan tells whether it is this one.
        is_whole = all((folder / name).exists() for name in (PLAN, shards.DESCRIPTION))
        if verify and edition_in(Path(source)) is None:
            raise DatasetError(f"no MD5 sums are published for {source}; leave --verify out")
        opened = open_source(source, label_order=label_order, validation_every=validation_every, scratch=folder)
        if verify and isinstance(opened, ILSVRC):
            opened.verify(progress=progress)
        total = write_plan(opened, folder, treatment, shard_images, progress)
        if not is_whole:
            processes = len(os.sched_getaffinity(0)) if workers is None else workers
            check_space(opened, folder, treatment, total, processes)
            _make_shards(opened, folder, treatment, total, processes, progress)
            _finish(opened, folder, treatment)
        _clear(folder)
        if dest.exists():
            dest.rmdir()
        folder.rename(dest)
        (dest / PLAN).unlink()
    return Dataset(dest)


def _check_options(treatment: Treatment, shard_images: int, workers: int | None) -> None:
    for name, value, low, high in (
        ("size", treatment.size, 16, 4096),
        ("quality", treatment.quality, 1, 95),
        ("shard_images", shard_images, 1, 100_000),
        ("workers", workers or 0, 0, 1024),
        ("max_pixels", treatment.max_pixels, 1, 2 * 89_478_485),
    ):
        if not low <= value <= high:
            raise DatasetError(f"{name} is {value}; it must be {low} to {high}")


@contextlib.contextmanager
def _workplace(dest: Path) -> Iterator[Path]:
    """Make ``DEST.preparing``, and keep every other process out of it for as long as this one lives."""
    folder = dest.with_name(dest.name + ".preparing")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise DatasetError(f"cannot write to {folder}: {error.strerror}; choose another destination") from None
    held = False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        held = True
        yield folder
    except BlockingIOError:
        raise DatasetError(f"another process is preparing {dest}; wait for it or stop it") from None
    except OSError as error:
        if error.errno is None:
            raise
        raise DatasetError(
            f"{error.filename or folder}: {error.strerror}; when that is remedied, the same command goes on from the "
            f"finished shards in {folder}"
        ) from None
    finally:
        if held and not (folder / PLAN).exists():  # finished under another name, or failed with nothing worth keeping
            shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


# --- one shard --------------------------------------------------------------------------------------------------------


def make_shard(task: Task, count: Counter) -> PixelSums:
    """Make one shard and the record beside it, and call `count` after each image.

    Returns the sums of the shard's images (of none unless it is a training shard).
    """
    sums, sources, rejected = PixelSums(task.treatment.size), [], []
    with ShardWriter(task.folder / shards.shard_name(task.split, task.shard), task.shard) as writer:
        for number, entry in enumerate(task.entries, task.first):
            try:
                treated = treat(read_entry(entry, task.treatment.max_bytes), task.treatment)
            except Rejected as reason:
                rejected.append([task.split, entry.name, str(reason)])
            else:
                key = sample_key(number, entry.name)
                writer.add(key, treated.jpeg, entry.label, height=treated.height, width=treated.width)
                sources.append([key, entry.name])
                if task.split == "train":
                    sums.add_image(treated.square)
            count()
        file = writer.finish()
    record = {"shard": file._asdict(), "rows": writer.rows, "sources": sources, "rejected": rejected}
    write_atomically(task.result, json.dumps(record).encode())
    return sums


def sample_key(number: int, name: str) -> str:
    """Return the key of a sample in its shard: its place in the source, then its name in letters safe in any tar."""
    stem = name.rsplit("/", 1)[-1].rsplit(".", 1)[0]
    return f"{number:09d}-{re.sub('[^A-Za-z0-9_-]', '_', stem)[-60:]}"


# --- all shards -------------------------------------------------------------------------------------------------------


def _make_shards(
    source: Source,
    folder: Path,
    treatment: Treatment,
    total: dict[str, int],
    processes: int,
    progress: bool,
) -> None:
    """Make the shards that are not there yet, and add up the training images as they come in."""
    sums, added = _load_sums(folder, treatment.size)
    images, recorded = {}, set()
    for task in tasks(source, folder, treatment):
        images[task.split, task.shard] = len(task.entries)
        if task.result.exists():
            recorded.add((task.split, task.shard))
    if not recorded.issuperset(("train", shard) for shard in added):  # a shard made again would be in the sums twice
        sums, added = PixelSums(treatment.size), set()
    finished_before = {(split, shard) for split, shard in recorded if split != "train" or shard in added}
    missing = images.keys() - finished_before
    done = sum(images[key] for key in finished_before)
    given = (task for task in tasks(source, folder, treatment) if (task.split, task.shard) in missing)
    with (
        ProgressReport(f"preparing {source.name}", sum(total.values()), done=done, shown=progress) as report,
        contextlib.closing(results(make_shard, given, min(processes, len(missing)), report)) as finished,
    ):
        for task, made in finished:
            if task.split == "train":
                sums.add(made)
                added.add(task.shard)
                _save_sums(folder, sums, added)


def _load_sums(folder: Path, size: int) -> tuple[PixelSums, set[int]]:
    """Return the sums of the training shards that are finished, and which those are."""
    sums, path = PixelSums(size), folder / _SUMS
    if not path.exists():
        return sums, set()
    with np.load(path) as saved:
        sums.count, sums.pixels, sums.products = int(saved["count"]), saved["pixels"], saved["products"]
        return sums, set(saved["shards"].tolist())


def _save_sums(folder: Path, sums: PixelSums, added: set[int]) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, count=sums.count, pixels=sums.pixels, products=sums.products, shards=np.array(sorted(added)))
    write_atomically(folder / _SUMS, buffer.getvalue())


# --- the end ----------------------------------------------------------------------------------------------------------


def _finish(source: Source, folder: Path, treatment: Treatment) -> None:
    """Write indices, sources, statistics, rejected.csv and, last, dataset.json."""
    sums, _ = _load_sums(folder, treatment.size)
    if not sums.count:
        raise DatasetError(
            f"none of the training images of {source.name} could be used; see {_write_rejected(source, folder)[0]}"
        )
    splits = {split: _write_index(folder, split) for split in source.splits}
    _, rejected = _write_rejected(source, folder)
    mean = io.BytesIO()
    np.save(mean, sums.mean_image(), allow_pickle=False)
    write_atomically(folder / shards.MEAN_IMAGE, mean.getvalue())
    deviations, axes = sums.color_axes()
    description = {
        "format": shards.FORMAT,
        "version": shards.VERSION,
        "name": source.name,
        "size": treatment.size,
        "classes": source.classes,
        "words": source.words,
        "color_deviations": deviations.tolist(),
        "color_vectors": axes.tolist(),
        "mean_image_sha256": hashlib.sha256(mean.getvalue()).hexdigest(),
        "rejected_sha256": shards.file_sha256(folder / shards.REJECTED),
        "splits": splits,
        "made": {**source.made(), **_options(treatment), "rejected": rejected},
    }
    description["fingerprint"] = shards.fingerprint(description)
    write_atomically(folder / shards.DESCRIPTION, json.dumps(description, indent=1).encode())


def _options(treatment: Treatment) -> dict[str, Any]:
    from PIL import __version__ as pillow

    options = dataclasses.asdict(treatment)
    return {
        **options,
        "resampling": "box when shrinking, bicubic when enlarging",
        "exif_orientation": "ignored",
        "pillow": pillow,
    }


def _records(folder: Path, split: str) -> Iterator[dict[str, Any]]:
    shard = 0
    while (path := folder / f"{split}-{shard:06d}.json").exists():
        yield json.loads(path.read_bytes())
        shard += 1


def _write_index(folder: Path, split: str) -> dict[str, Any]:
    """Lay the shards' records end to end in the split's index and sources; return `dataset.json`'s entry of it."""
    files = [record["shard"] for record in _records(folder, split)]
    count, start, path = sum(file["samples"] for file in files), 0, folder / shards.index_name(split)
    index = np.lib.format.open_memmap(path, mode="w+", dtype=shards.INDEX_DTYPE, shape=(count,)) if count else None
    if index is None:
        np.save(path, np.empty(0, dtype=shards.INDEX_DTYPE), allow_pickle=False)
    else:
        for record in _records(folder, split):
            rows = np.array([tuple(row) for row in record["rows"]], dtype=shards.INDEX_DTYPE)
            index[start : start + len(rows)] = rows
            start += len(rows)
        index.flush()
    sources = folder / shards.sources_name(split)
    shards.write_sources(sources, (row for record in _records(folder, split) for row in record["sources"]))
    return {
        "count": count,
        "index_sha256": shards.file_sha256(path),
        "sources_sha256": shards.file_sha256(sources),
        "shards": files,
    }


def _write_rejected(source: Source, folder: Path) -> tuple[Path, int]:
    """Write `rejected.csv`; return its path and how many images it names."""
    path, count = folder / shards.REJECTED, 0
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["split", "file", "reason"])
        for split in source.splits:
            for record in _records(folder, split):
                table.writerows(record["rejected"])
                count += len(record["rejected"])
    return path, count


def _clear(folder: Path) -> None:
    """Remove what only the preparation needed, but for its plan, by which the same command knows it again."""
    kept = {PLAN, shards.DESCRIPTION, shards.MEAN_IMAGE, shards.REJECTED}
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in kept and path.suffix != ".tar" and not path.name.endswith(("-index.npy", "-sources.csv")):
            path.unlink()

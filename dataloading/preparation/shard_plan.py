"""The plan of a preparation: which images of the source go into which shard, written to disk before the work begins."""

import functools
import hashlib
import itertools
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataloading.errors import DatasetError
from dataloading.files import write_atomically
from dataloading.preparation.images import ImageOptions, check_readable
from dataloading.progress_bar import ProgressBar
from dataloading.shards import VERSION
from dataloading.sources.entries import Entry, Source

PLAN = "plan.json"


@dataclass(frozen=True)
class Task:
    """One shard to make.

    Args:
        folder: where the shard is written.
        split: "train", "val", ...
        shard: number of the shard in the split.
        first: number of the first entry in the split.
        entries: the images.
        options: how images are prepared.
    """

    folder: Path
    split: str
    shard: int
    first: int
    entries: list[Entry]
    options: ImageOptions

    @property
    def record(self) -> Path:
        """The file that is written when the shard is finished, and that describes its contents."""
        return record_path(self.folder, self.split, self.shard)


def record_path(folder: Path, split: str, shard: int) -> Path:
    """Return the path of a finished shard's record."""
    return folder / f"{split}-{shard:06d}.json"


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Write what is known about a finished shard, with the SHA-256 of this content."""
    write_atomically(path, json.dumps({**record, "sha256": _sha256(record)}))


def read_record(path: Path) -> dict[str, Any] | None:
    """Return the record of a finished shard, or None if there is none or it is damaged: the shard is made again then.

    Records of earlier versions have no SHA-256.
    """
    try:
        record = json.loads(path.read_bytes())
        written = record.pop("sha256", None)
    except (FileNotFoundError, ValueError, AttributeError, TypeError):
        return None
    return record if written in (None, _sha256(record)) else None


def _sha256(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record).encode()).hexdigest()


def write_plan(
    source: Source, folder: Path, options: ImageOptions, shard_images: int, progress: bool
) -> dict[str, int]:
    """List the source's images and write one line of JSON per shard; return the number of images by split.

    Raises:
        DatasetError: a file cannot be read, or the folder has the plan of an interrupted preparation that is not this
            one, or that is damaged.
    """
    total, digest, changed = dict.fromkeys(source.splits, 0), hashlib.sha256(), hashlib.sha256()
    time_of_change = functools.lru_cache(8)(_time_of_change)  # many images are in the same archive
    with ProgressBar(f"listing {source.name}", None, shown=progress) as bar:
        for split in source.splits:
            part = _plan_path(folder, split).with_suffix(".part")
            with part.open("wb") as file:
                for first, group in _groups(source.entries(split), shard_images):
                    digest.update(json.dumps([entry[1:] for entry in group]).encode())
                    changed.update(json.dumps([time_of_change(entry.path, folder) for entry in group]).encode())
                    for entry in group:
                        check_readable(entry)
                    file.write(json.dumps([first, group]).encode() + b"\n")
                    total[split] += len(group)
                    bar.update(sum(total.values()))
            part.replace(_plan_path(folder, split))
    plan = {
        "version": VERSION,
        "entries": digest.hexdigest(),
        "changed": changed.hexdigest(),
        "classes": hashlib.sha256(json.dumps(source.classes).encode()).hexdigest(),
        "shard_images": shard_images,
        "treatment": options.record(),  # this key lets preparations that earlier versions began continue
    }
    path = folder / PLAN
    try:  # earlier versions did not write down when files had changed
        is_ours = not path.exists() or {"changed": plan["changed"], **json.loads(path.read_bytes())} == plan
    except (ValueError, TypeError) as error:
        raise DatasetError(f"{path} is damaged: {error}; remove {folder} to start again") from None
    if not is_ours:
        raise DatasetError(
            f"{folder} holds an interrupted preparation from another source, by another version or with other options; "
            f"remove it to start again, or repeat the command that began it"
        )
    write_atomically(path, json.dumps(plan))
    return total


def _time_of_change(path: str, folder: Path) -> int:
    """Return when a source file was last changed, in ns; 0 if it is not there, or is written anew in `folder`."""
    try:
        return 0 if Path(path).is_relative_to(folder) else os.stat(path).st_mtime_ns
    except OSError:  # reading it will tell
        return 0


def read_tasks(source: Source, folder: Path, options: ImageOptions) -> Iterator[Task]:
    """Yield the shards of the plan in `folder`, in order."""
    for split in source.splits:
        with _plan_path(folder, split).open("rb") as file:
            for shard, line in enumerate(file):
                first, entries = json.loads(line)
                yield Task(folder, split, shard, first, [Entry(*entry) for entry in entries], options)


def is_recorded(task: Task) -> bool:
    """Return whether the shard of a task is finished.

    Earlier versions recorded images that could not be read, as if they were bad. Such a shard is not finished.
    """
    record = read_record(task.record)
    if record is None:
        return False
    reasons = (reason for *_, reason in record["rejected"])
    return not any(reason.startswith(("cannot be read: ", "cut off: ")) for reason in reasons)


def _plan_path(folder: Path, split: str) -> Path:
    return folder / f"{split}-plan.jsonl"


def _groups(entries: Iterator[Entry], size: int) -> Iterator[tuple[int, list[Entry]]]:
    """Yield `size` entries at a time, with the number of the first."""
    first = 0
    while group := list(itertools.islice(entries, size)):
        yield first, group
        first += len(group)

"""The plan of a preparation: which images of the source go to which shard, written down before the work begins."""

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dataloading.errors import DatasetError
from dataloading.images import Rejected, Treatment
from dataloading.progress import ProgressReport
from dataloading.shards import VERSION, write_atomically
from dataloading.sources import Entry, Source

PLAN = "plan.json"


@dataclass(frozen=True)
class Task:
    """One shard to make: number `shard` of `split`, from the plan's lines `entries`."""

    folder: Path
    split: str
    shard: int
    first: int
    entries: list[Entry]
    treatment: Treatment

    @property
    def result(self) -> Path:
        """The file that says that the shard is finished, and what is in it."""
        return self.folder / f"{self.split}-{self.shard:06d}.json"


def plan_path(folder: Path, split: str) -> Path:
    return folder / f"{split}-plan.jsonl"


def write_plan(source: Source, folder: Path, treatment: Treatment, shard_images: int, progress: bool) -> dict[str, int]:
    """List the source's images, one line of JSON per shard, and return their number per split.

    When there is a plan of an interrupted preparation, it must be this one.
    """
    total, digest = dict.fromkeys(source.splits, 0), hashlib.sha256()
    with ProgressReport(f"listing {source.name}", None, shown=progress) as report:
        for split in source.splits:
            part = plan_path(folder, split).with_suffix(".part")
            with part.open("wb") as file:
                for first, group in _groups(source.entries(split), shard_images):
                    digest.update(json.dumps([entry[1:] for entry in group]).encode())
                    file.write(json.dumps([first, group]).encode() + b"\n")
                    total[split] += len(group)
                    report.update(sum(total.values()))
            part.replace(plan_path(folder, split))
    plan = {
        "version": VERSION,
        "entries": digest.hexdigest(),
        "classes": hashlib.sha256(json.dumps(source.classes).encode()).hexdigest(),
        "shard_images": shard_images,
        "treatment": dataclasses.asdict(treatment),
    }
    path = folder / PLAN
    if path.exists() and json.loads(path.read_bytes()) != plan:
        raise DatasetError(
            f"{folder} holds an interrupted preparation from another source, by another version or with other options; "
            f"remove it to start anew, or repeat the command that began it"
        )
    write_atomically(path, json.dumps(plan).encode())
    return total


def _groups(entries: Iterator[Entry], size: int) -> Iterator[tuple[int, list[Entry]]]:
    """Yield `size` entries at a time, with the number of the first."""
    first = 0
    while group := list(itertools.islice(entries, size)):
        yield first, group
        first += len(group)


def tasks(source: Source, folder: Path, treatment: Treatment) -> Iterator[Task]:
    for split in source.splits:
        with plan_path(folder, split).open("rb") as file:
            for shard, line in enumerate(file):
                first, entries = json.loads(line)
                yield Task(folder, split, shard, first, [Entry(*entry) for entry in entries], treatment)


def read_entry(entry: Entry, limit: int) -> bytes:
    """Return the bytes of an image of the source; raise `Rejected` where they cannot be read."""
    if entry.problem:
        raise Rejected(entry.problem)
    if entry.length > limit:
        raise Rejected(f"too large: {entry.length:,} bytes, more than {limit:,}")
    try:
        with open(entry.path, "rb") as file:
            file.seek(entry.offset)
            data = file.read(entry.length)
    except OSError as error:
        raise Rejected(f"cannot be read: {error.strerror}") from None
    if len(data) < entry.length:
        raise Rejected(f"cut off: {len(data):,} of {entry.length:,} bytes are there")
    return data

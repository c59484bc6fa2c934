"""Whether a prepared data set will have room, asked before the work begins."""

import contextlib
import shutil
from pathlib import Path

from dataloading.errors import DatasetError
from dataloading.images import Rejected, Treatment, treat
from dataloading.plan import Task, read_entry, tasks
from dataloading.progress import ProgressReport
from dataloading.sources import Entry, Source
from dataloading.workers import Counter, results

_SAMPLES = 32


def check_space(source: Source, folder: Path, treatment: Treatment, total: dict[str, int], processes: int) -> None:
    """Prepare a few images from all over the source to see how much room all will take; compare with what is free.

    Raises:
        DatasetError: there is not enough room.
    """
    count = sum(total.values())
    sample = Task(folder, "sample", 0, 0, _every(source, folder, treatment, max(1, count // _SAMPLES)), treatment)
    quiet = ProgressReport("", None, shown=False)
    with contextlib.closing(results(_stored_bytes, iter([sample]), min(processes, 1), quiet)) as measured:
        sizes = [size for _, part in measured for size in part]
    per_image = sum(sizes) / max(len(sizes), 1) + 4 * 512  # two tar headers and what fills up their blocks
    there = sum(path.stat().st_size for path in folder.glob("*.tar"))
    needed, free = int(count * per_image * 1.02) - there, shutil.disk_usage(folder).free
    if needed > free:
        raise DatasetError(
            f"not enough room for {folder}: {count:,} images of about {per_image / 1e3:,.0f} kB "
            f"need {needed / 1e9:,.2f} GB more, {free / 1e9:,.2f} GB are free; free some, or choose another destination"
        )


def _every(source: Source, folder: Path, treatment: Treatment, step: int) -> list[Entry]:
    """Return every `step`-th image of the plan."""
    found: list[Entry] = []
    seen = 0
    for task in tasks(source, folder, treatment):
        found += task.entries[-seen % step :: step]
        seen += len(task.entries)
    return found


def _stored_bytes(task: Task, count: Counter) -> list[int]:
    """Return how many bytes each image of a task takes when it is prepared, without those that are rejected."""
    sizes = []
    for entry in task.entries:
        with contextlib.suppress(Rejected):
            sizes.append(len(treat(read_entry(entry, task.treatment.max_bytes), task.treatment).jpeg))
        count()
    return sizes

"""Estimate the size of a prepared data set and compare it with the free disk space, before the work begins."""

import contextlib
import shutil
from pathlib import Path

from dataloading.errors import DatasetError
from dataloading.preparation.images import ImageOptions, Rejected, prepare_entry
from dataloading.preparation.shard_plan import Task, read_tasks
from dataloading.preparation.worker_pool import Tick, run_tasks
from dataloading.progress_bar import ProgressBar
from dataloading.shards import TAR_BLOCK
from dataloading.sources.entries import Entry, Source

_SAMPLE_IMAGES = 32


def check_disk_space(
    source: Source, folder: Path, options: ImageOptions, total: dict[str, int], processes: int
) -> None:
    """Prepare a few images from all parts of the source, extrapolate, and compare with the free space.

    Args:
        source: the source, listed in a plan.
        folder: where the plan is and the shards will be; finished shards in it are not counted again.
        options: how images are prepared.
        total: number of images by split.
        processes: number of worker processes; 0 works in this process.

    Raises:
        DatasetError: there is not enough space.
    """
    count = sum(total.values())
    sample = Task(folder, "sample", 0, 0, _every(source, folder, options, max(1, count // _SAMPLE_IMAGES)), options)
    silent = ProgressBar("", None, shown=False)
    with contextlib.closing(run_tasks(_stored_bytes, iter([sample]), min(processes, 1), silent)) as measured:
        sizes = [size for _, part in measured for size in part]
    per_image = sum(sizes) / max(len(sizes), 1) + 4 * TAR_BLOCK  # two headers and the padding of two members
    finished = sum(path.stat().st_size for path in folder.glob("*.tar"))
    needed, free = int(count * per_image * 1.02) - finished, shutil.disk_usage(folder).free
    if needed > free:
        raise DatasetError(
            f"not enough space for {folder}: {count:,} images of about {per_image / 1e3:,.0f} kB "
            f"need {_size(needed)} more, {_size(free)} are free; free some, or choose another destination"
        )


def _size(count: int) -> str:
    """Return a number of bytes in GB, below one in MB, and below one of these in kB."""
    unit, name = next(((unit, name) for unit, name in ((1e9, "GB"), (1e6, "MB")) if count >= unit), (1e3, "kB"))
    return f"{count / unit:,.{0 if unit == 1e3 else 2}f} {name}"


def _every(source: Source, folder: Path, options: ImageOptions, step: int) -> list[Entry]:
    """Return every `step`-th image of the plan."""
    found: list[Entry] = []
    seen = 0
    for task in read_tasks(source, folder, options):
        found += task.entries[-seen % step :: step]
        seen += len(task.entries)
    return found


def _stored_bytes(task: Task, tick: Tick) -> list[int]:
    """Return the size in bytes of each image of a task after preparation, without rejected images."""
    sizes = []
    for entry in task.entries:
        with contextlib.suppress(Rejected):
            sizes.append(len(prepare_entry(entry, task.options).jpeg))
        tick()
    return sizes

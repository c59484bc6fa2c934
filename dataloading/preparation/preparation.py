"""From a source to a prepared data set.

The source's images are listed first (the plan) and divided into shards with equal numbers of images. The content of a
shard depends on its part of the plan alone, so worker processes can make the shards in any order, and the bytes are the
same for any number of workers.

Only images that were read whole and do not decode are left out. A file that cannot be read stops the preparation, and
nothing is recorded about it.

All work happens in the folder ``DEST.preparing`` beside DEST, which is renamed to DEST at the end. After an
interruption, even by ``kill -9``, the same command continues from the finished shards.
"""

import contextlib
import io
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from dataloading.dataset import Dataset
from dataloading.errors import DatasetError, SourceChanged
from dataloading.files import sync, write_atomically
from dataloading.locks import LOCK, owned
from dataloading.preparation.class_counts import check_listed, check_prepared
from dataloading.preparation.descriptions import remarks, write_descriptions
from dataloading.preparation.destination import resolve_destination
from dataloading.preparation.disk_space import check_disk_space
from dataloading.preparation.images import ImageOptions, Rejected, prepare_entry
from dataloading.preparation.pixels import Color
from dataloading.preparation.shard_plan import PLAN, Task, is_recorded, read_tasks, write_plan, write_record
from dataloading.preparation.statistics import PixelSums
from dataloading.preparation.worker_pool import Tick, run_tasks
from dataloading.progress_bar import ProgressBar
from dataloading.shards import DESCRIPTION, MEAN_IMAGE, REJECTED, ShardWriter, shard_name
from dataloading.sources.detection import open_source
from dataloading.sources.entries import Source
from dataloading.sources.ilsvrc import ILSVRC
from dataloading.sources.notes import note

SHARD_IMAGES = 1024
_SUMS = "sums.npz"  # sums over the training images of the shards finished so far


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
    allow_empty_classes: bool = False,
    verify: bool = False,
    shard_images: int = SHARD_IMAGES,
    max_pixels: int = ImageOptions.max_pixels,
    background: Color | None = None,
    exif: bool = False,
    started: Callable[[], None] = lambda: None,
) -> Dataset:
    """Prepare `source` into the folder `dest` and open the result.

    Args:
        source: class folders, a folder with the archives of ILSVRC2012 or 2010, WebDataset shards, or "digits".
        dest: folder to create; it must not exist, or be empty.
        size: length of the shorter side in pixels after resizing.
        quality: JPEG quality, 1 to 95.
        workers: processes; None: one per processor; 0: this one, which an image that crashes its decoder then ends.
        progress: report progress on stderr.
        keep_aspect: store whole images instead of their centre squares.
        label_order: numbering of ILSVRC's classes: "sorted" by WordNet id, or "devkit" as Krizhevsky had them.
        validation_every: without a validation set, hold out every n-th training image of each class; 0: none.
        allow_empty_classes: accept classes without images in some splits.
        verify: first compare the source's archives with their published MD5 sums.
        shard_images: source images per shard.
        max_pixels: reject images with more pixels.
        background: red, green and blue (0 to 255) to lay transparent images on; None keeps what lies under them.
        exif: turn images upright by their EXIF orientation, which was ignored in 2012.
        started: called when the source has been found usable and the work begins.

    Raises:
        DatasetError: source or destination cannot be used; the message says why.
    """
    options = ImageOptions(size, quality, keep_aspect, max_pixels, background=background, exif=exif)
    _check_options(options, shard_images, workers)
    place = resolve_destination(Path(dest), None if source == "digits" else Path(source))
    with _work_folder(place) as folder:
        found = open_source(
            source,
            label_order=label_order,
            validation_every=validation_every,
            allow_empty_classes=allow_empty_classes,
            scratch=folder,
        )
        if verify:
            _verify(found, source, progress=progress)
        _prepare(
            found, folder, options, shard_images, workers, progress, started, allow_empty_classes=allow_empty_classes
        )
        _finish(folder, place)
    return Dataset(dest)


def _check_options(options: ImageOptions, shard_images: int, workers: int | None) -> None:
    for name, value, low, high in (
        ("size", options.size, 16, 4096),
        ("quality", options.quality, 1, 95),
        ("shard_images", shard_images, 1, 100_000),
        ("workers", workers or 0, 0, 1024),
        ("max_pixels", options.max_pixels, 1, 2 * 89_478_485),
    ):
        if not low <= value <= high:
            raise DatasetError(f"{name} must be {low} to {high}, got {value}")
    background = options.background
    if background is not None and not (len(background) == 3 and all(value in range(256) for value in background)):
        raise DatasetError(f"background must be three numbers from 0 to 255, such as 255,255,255, got {background}")


@contextlib.contextmanager
def _work_folder(dest: Path) -> Iterator[Path]:
    """Create ``DEST.preparing`` and own it while this process works in it."""
    folder = dest.with_name(dest.name + ".preparing")
    with contextlib.ExitStack() as ownership:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            names = set(os.listdir(folder))
            if names and not names & {PLAN, LOCK}:  # the user's own: it would be removed below
                raise DatasetError(
                    f"{folder} exists already and is no interrupted preparation; move it away, or choose another "
                    "destination"
                )
            ownership.enter_context(owned(folder, remedy="wait for it or stop it"))
        except OSError as error:
            raise DatasetError(f"cannot write to {folder}: {error.strerror}; choose another destination") from None
        try:
            resolve_destination(dest)  # another process may have finished it just now
            yield folder
        except SourceChanged:
            (folder / PLAN).unlink(missing_ok=True)  # nothing can continue from it, so the folder is removed below
            raise
        except OSError as error:
            if error.errno is None:
                raise
            raise DatasetError(
                f"{error.filename or folder}: {error.strerror}; once this is fixed, the same command continues from "
                f"the finished shards in {folder}"
            ) from None
        finally:
            if not (folder / PLAN).exists():  # renamed to DEST, or failed before there was anything to keep
                shutil.rmtree(folder, ignore_errors=True)


def _verify(source: Source, path: str | os.PathLike[str], *, progress: bool) -> None:
    """Compare the archives of a source with their published MD5 sums."""
    if not isinstance(source, ILSVRC):
        raise DatasetError(f"no MD5 sums are published for {path}; leave --verify out")
    source.verify(progress=progress)


def _prepare(
    source: Source,
    folder: Path,
    options: ImageOptions,
    shard_images: int,
    workers: int | None,
    progress: bool,
    started: Callable[[], None],
    *,
    allow_empty_classes: bool,
) -> None:
    """Make the whole data set in `folder`, or what an interrupted preparation has left to do."""
    # After an interruption at the very end, the folder already has a whole data set; the plan tells whether it is ours.
    is_complete = all((folder / name).exists() for name in (PLAN, DESCRIPTION))
    is_new = not (folder / PLAN).exists()
    total = write_plan(source, folder, options, shard_images, progress)
    try:
        check_listed(source, folder, options, allow_empty_classes=allow_empty_classes)
    except DatasetError:
        if is_new:
            (folder / PLAN).unlink()  # nothing is worth keeping, and the source will have changed next time
        raise
    if not is_complete:
        processes = len(os.sched_getaffinity(0)) if workers is None else workers
        check_disk_space(source, folder, options, total, processes)
        started()
        _make_shards(source, folder, options, total, processes, progress)
        sums, _ = _load_sums(folder, options.size)
        found = remarks(source, folder, options)
        write_descriptions(source, folder, options, sums)
        for remark in found:
            note(f"{source.name}: {remark}")
    check_prepared(source, folder, allow_empty_classes=allow_empty_classes)
    _remove_work_files(folder)


def _finish(folder: Path, dest: Path) -> None:
    """Give the finished work folder its name."""
    if dest.exists():
        dest.rmdir()
    folder.rename(dest)
    sync(dest.parent)  # before the plan goes, without which nothing would continue from the work folder
    (dest / PLAN).unlink()


# --- one shard --------------------------------------------------------------------------------------------------------


def make_shard(task: Task, tick: Tick) -> PixelSums:
    """Make one shard and its record. `tick` is called after each image.

    Returns:
        The sums over the shard's images; without any image if this is not a training shard.
    """
    sums, sources, rejected = PixelSums(task.options.size), [], []
    transparent = turned = 0
    with ShardWriter(task.folder / shard_name(task.split, task.shard), task.shard) as writer:
        for number, entry in enumerate(task.entries, task.first):
            try:
                image = prepare_entry(entry, task.options)
            except Rejected as reason:
                rejected.append([task.split, entry.name, str(reason)])
            else:
                key = sample_key(number, entry.name)
                writer.add(key, image.jpeg, entry.label, height=image.height, width=image.width)
                sources.append([key, entry.name])
                transparent, turned = transparent + image.is_transparent, turned + image.is_turned
                if task.split == "train":
                    sums.add_image(image.square)
            tick()
        file = writer.finish()
    record = {"shard": file._asdict(), "rows": writer.rows, "sources": sources, "rejected": rejected}
    counts = {"transparent": transparent, "turned": turned}
    write_record(task.record, {**record, **counts})
    return sums


def sample_key(number: int, name: str) -> str:
    """Return the key of a sample: its number in the source and its name, in characters that are safe in a tar file."""
    stem = name.rsplit("/", 1)[-1].rsplit(".", 1)[0]
    return f"{number:09d}-{re.sub('[^A-Za-z0-9_-]', '_', stem)[-60:]}"


# --- all shards -------------------------------------------------------------------------------------------------------


def _make_shards(
    source: Source, folder: Path, options: ImageOptions, total: dict[str, int], processes: int, progress: bool
) -> None:
    """Make the missing shards and add up their training images."""
    # A training shard is finished if it has a record and its images are in the sums.
    sums, summed = _load_sums(folder, options.size)
    images, recorded = {}, set()
    for task in read_tasks(source, folder, options):
        images[task.split, task.shard] = len(task.entries)
        if is_recorded(task):
            recorded.add((task.split, task.shard))
    if not recorded.issuperset(("train", shard) for shard in summed):  # a shard made again would be added twice
        sums, summed = PixelSums(options.size), set()
    finished_before = {(split, shard) for split, shard in recorded if split != "train" or shard in summed}
    missing = images.keys() - finished_before
    done = sum(images[key] for key in finished_before)
    tasks = (task for task in read_tasks(source, folder, options) if (task.split, task.shard) in missing)
    with (
        ProgressBar(f"preparing {source.name}", sum(total.values()), done=done, shown=progress) as bar,
        contextlib.closing(run_tasks(make_shard, tasks, min(processes, len(missing)), bar)) as finished,
    ):
        for task, shard_sums in finished:
            if task.split == "train":
                sums.add(shard_sums)
                summed.add(task.shard)
                _save_sums(folder, sums, summed)


def _load_sums(folder: Path, size: int) -> tuple[PixelSums, set[int]]:
    """Return the sums over finished training shards, and the numbers of these shards."""
    sums, path = PixelSums(size), folder / _SUMS
    if not path.exists():
        return sums, set()
    try:
        with np.load(path) as saved:
            sums.count, sums.pixels, sums.products = int(saved["count"]), saved["pixels"], saved["products"]
            return sums, set(saved["shards"].tolist())
    except OSError:
        raise
    except Exception:  # damaged, for which NumPy and zipfile raise arbitrary exceptions: all shards are made again
        return PixelSums(size), set()


def _save_sums(folder: Path, sums: PixelSums, summed: set[int]) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, count=sums.count, pixels=sums.pixels, products=sums.products, shards=np.array(sorted(summed)))
    write_atomically(folder / _SUMS, buffer.getvalue())


def _remove_work_files(folder: Path) -> None:
    """Remove everything that is not part of the data set, except the plan, which identifies it until it is renamed."""
    kept = {PLAN, DESCRIPTION, MEAN_IMAGE, REJECTED, LOCK}
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in kept and path.suffix != ".tar" and not path.name.endswith(("-index.npy", "-sources.csv")):
            path.unlink()

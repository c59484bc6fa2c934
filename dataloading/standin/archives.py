"""The stand-in's files: the archives and the development kit of ILSVRC2012, named and filled like the real ones.

- ``ILSVRC2012_img_train.tar``: one tar file per class, such as ``n90000001.tar``, with ``n90000001_1.JPEG``, ...
- ``ILSVRC2012_img_val.tar``: ``ILSVRC2012_val_00000001.JPEG``, ..., classes in random order.
- ``ILSVRC2012_devkit_t12.tar.gz``: ``meta.mat`` with the classes and the synsets above them, and
  ``ILSVRC2012_validation_ground_truth.txt``. As in the real one, numbers do not follow the WordNet ids.

WordNet has no ids that begin with n9.
"""

import gzip
import io
import itertools
import multiprocessing
import os
import shutil
import signal
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dataloading.errors import DatasetError
from dataloading.preparation.destination import resolve_destination
from dataloading.process import die_with_parent, install_command
from dataloading.progress_bar import ProgressBar
from dataloading.seeds import check_seed
from dataloading.standin.classes import CLASSES
from dataloading.standin.scenes import draw_scene, jpeg_of

_TRAIN, _VAL, _ORDER = range(3)  # purposes of random numbers
_AT_A_TIME = 64  # images that workers may be ahead of the archive
_META_FIELDS = (
    "ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children", "wordnet_height", "num_train_images"
)  # fmt: skip
_CREATED = b"MATLAB 5.0 MAT-file, the synsets of a stand-in for ILSVRC2012"


class _Synset(NamedTuple):
    number: int
    wnid: str
    words: str
    gloss: str
    children: list[int]
    height: int
    train_images: int


def write_standin(
    dest: Path,
    *,
    classes: int = 20,
    images: int = 2000,
    validation: int = 400,
    seed: int = 0,
    workers: int | None = None,
    progress: bool = True,
) -> None:
    """Write the archives into the new folder `dest`, which appears when all of them are complete.

    An image depends on the seed, its split, its class and its number only: more images or classes leave it as it is.
    The bytes are the same with the same versions of NumPy, SciPy and Pillow on the same kind of processor.

    Args:
        dest: the folder to create.
        classes: number of classes, the first of `CLASSES`.
        images: training images of all classes together.
        validation: validation images of all classes together.
        seed: 0 to 2**64 - 1.
        workers: worker processes; None for one per processor, 0 to draw in this process.
        progress: report progress on stderr.

    Raises:
        DatasetError: a number is out of range, or `dest` has content or cannot be written.
    """
    check_seed(seed)
    if not 1 < classes <= len(CLASSES):
        raise DatasetError(f"classes must be from 2 to {len(CLASSES)}, got {classes}")
    for name, count in (("images", images), ("validation", validation)):
        if count < classes:
            raise DatasetError(f"{name} must be at least {classes}, one for each class, got {count}")
    if workers is not None and workers < 0:
        raise DatasetError(f"workers must be at least 0, got {workers}")
    dest = resolve_destination(dest)
    try:
        dest.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{dest.name}.", dir=dest.parent))
    except OSError as error:
        reason = "a file is in the way" if isinstance(error, FileExistsError) else error.strerror
        raise DatasetError(f"cannot write to {dest}: {reason}; choose another destination") from None
    try:
        _write(folder, classes, images, validation, seed, workers, progress)
        folder.chmod(0o777 & ~_umask())
        folder.replace(dest)
    except OSError as error:
        raise DatasetError(f"cannot write to {dest}: {error.strerror}; choose another destination") from None
    except BrokenProcessPool:
        raise DatasetError("a worker was killed, perhaps for want of memory; try again with fewer workers") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write(
    folder: Path, classes: int, images: int, validation: int, seed: int, workers: int | None, progress: bool
) -> None:
    per_class = [images // classes + (label < images % classes) for label in range(classes)]
    labels = np.arange(validation) % classes
    np.random.default_rng([seed, _ORDER]).shuffle(labels)
    synsets = _synsets(classes, per_class)
    meta = _meta(synsets)
    with ProgressBar("drawing", images + validation, shown=progress) as bar, _Drawing(workers) as drawing:
        with tarfile.open(folder / "ILSVRC2012_img_train.tar", "w", format=tarfile.USTAR_FORMAT) as archive:
            for label, count in enumerate(per_class):
                drawn = drawing.all((seed, _TRAIN, label, number) for number in range(count))
                names = (f"{_wnid(label)}_{number}.JPEG" for number in itertools.count(1))
                _add(archive, f"{_wnid(label)}.tar", _tar(zip(names, _counted(drawn, bar), strict=False)))
        with tarfile.open(folder / "ILSVRC2012_img_val.tar", "w", format=tarfile.USTAR_FORMAT) as archive:
            drawn = drawing.all((seed, _VAL, int(label), number) for number, label in enumerate(labels))
            for number, data in enumerate(_counted(drawn, bar), 1):
                _add(archive, f"ILSVRC2012_val_{number:08d}.JPEG", data)
    truth = "".join(f"{synsets[label].number}\n" for label in labels)
    inside = "ILSVRC2012_devkit_t12/data"
    kit = _tar(
        [
            ("ILSVRC2012_devkit_t12/readme.txt", b"Generated scenes in the layout of ILSVRC2012. Not ImageNet.\n"),
            (f"{inside}/meta.mat", meta),
            (f"{inside}/ILSVRC2012_validation_ground_truth.txt", truth.encode()),
        ]
    )
    (folder / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(gzip.compress(kit, mtime=0))


# --- images -----------------------------------------------------------------------------------------------------------


class _Drawing:
    """Draws images, in worker processes or here; a context manager."""

    def __init__(self, workers: int | None) -> None:
        if workers is None:
            workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self._pool: ProcessPoolExecutor | None = None
        if workers:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(
                workers, mp_context=context, initializer=_begin_worker, initargs=(os.getpid(),)
            )

    def __enter__(self) -> "_Drawing":
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def all(self, keys: Iterable[tuple[int, int, int, int]]) -> Iterator[bytes]:
        """The JPEG files of these images (seed, split, label, number), in order."""
        if self._pool is None:
            yield from map(_image, keys)
            return
        for part in _batches(keys, _AT_A_TIME):
            yield from self._pool.map(_image, part, chunksize=4)


def _begin_worker(parent_pid: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the command, which ends its workers
    die_with_parent(parent_pid)


def _image(key: tuple[int, int, int, int]) -> bytes:
    random = np.random.default_rng(key)
    return jpeg_of(draw_scene(CLASSES[key[2]], random), random)


def _batches(keys: Iterable[tuple[int, int, int, int]], size: int) -> Iterator[list[tuple[int, int, int, int]]]:
    keys = iter(keys)
    while batch := list(itertools.islice(keys, size)):
        yield batch


def _counted(images: Iterator[bytes], bar: ProgressBar) -> Iterator[bytes]:
    for image in images:
        yield image
        bar.update(bar.done + 1)


# --- archives ---------------------------------------------------------------------------------------------------------


def _tar(files: Iterable[tuple[str, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in files:
            _add(archive, name, data)
    return buffer.getvalue()


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)  # of no time and no owner, so that the bytes never vary
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


# --- the development kit ----------------------------------------------------------------------------------------------


def _wnid(label: int) -> str:
    return f"n{90000001 + label}"


def _synsets(classes: int, train_images: list[int]) -> list[_Synset]:
    """The classes in the order of their WordNet ids, then the synsets above them."""
    chosen = CLASSES[:classes]
    by_words = sorted(range(classes), key=lambda label: chosen[label].words)
    numbers = {label: number for number, label in enumerate(by_words, 1)}
    leaves = [
        _Synset(numbers[label], _wnid(label), item.words, item.gloss, [], 0, train_images[label])
        for label, item in enumerate(chosen)
    ]
    of_kind = [[numbers[n] for n, item in enumerate(chosen) if (item.pattern is None) == kind] for kind in (0, 1)]
    pattern, shape, scene = range(classes + 1, classes + 4)
    return [
        *leaves,
        _Synset(pattern, "n99000001", "pattern, texture", "what fills a surface", of_kind[0], 1, 0),
        _Synset(shape, "n99000002", "shape, figure", "what has an outline", of_kind[1], 1, 0),
        _Synset(scene, "n99000003", "generated scene", "a picture of a pattern or a shape", [pattern, shape], 2, 0),
    ]


def _meta(synsets: list[_Synset]) -> bytes:
    """``meta.mat`` with the fields of the real one."""
    try:
        from scipy.io import savemat  # slow to import
    except ImportError:
        raise DatasetError(
            f"SciPy, which writes meta.mat, is not installed; install it with: {install_command('imagenet')}"
        ) from None

    rows = np.empty((len(synsets), 1), dtype=[(name, "O") for name in _META_FIELDS])
    for row, synset in zip(rows[:, 0], sorted(synsets), strict=True):
        number, wnid, words, gloss, children, height, images = synset
        values = (number, wnid, words, gloss, len(children), np.array(children, dtype=np.uint16), height, images)
        for name, value in zip(_META_FIELDS, values, strict=True):
            row[name] = float(value) if isinstance(value, int) else value
    buffer = io.BytesIO()
    savemat(buffer, {"synsets": rows})
    return _CREATED.ljust(116) + buffer.getvalue()[116:]  # the text at the beginning tells the time

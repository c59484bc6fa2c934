"""Which images a user has named, and reading them while the network computes."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from torch import Tensor

from dataloading.sources.folder_listing import files_below, has_image_suffix
from dataloading.sources.names import natural_key
from fastalex.errors import ConfigurationError
from fastalex.prediction.preprocessing import Preprocessing, UnusableImage

LIST_SUFFIX = ".txt"
"""Of text files that list images."""


def images_in(places: Sequence[Path]) -> list[Path]:
    """The files that are named, those in the folders that are named, and those that text files (``.txt``) list.

    Of a folder and its subfolders, files whose names end like an image's count, in natural order.

    Raises:
        ConfigurationError: a place does not exist, or a folder or list has no images.
        dataloading.DatasetError: a link leads back to a folder that contains it.
    """
    found: list[Path] = []
    for place in places:
        if not place.exists():
            raise ConfigurationError(f"no such image or folder: {place}")
        if not place.is_dir():
            found += listed_in(place) if place.suffix == LIST_SUFFIX else [place]
            continue
        inside = [Path(item.path) for item in files_below(place) if has_image_suffix(item.name)]
        if not inside:
            raise ConfigurationError(f"{place} has no images; name a folder of images, such as .jpg or .png files")
        found += sorted(inside, key=lambda path: natural_key(str(path.relative_to(place))))
    return found


def listed_in(path: Path) -> list[Path]:
    """The files that a text file lists, one per line, in its order; relative names count from its folder.

    Raises:
        ConfigurationError: it cannot be read, or lists nothing, or a file that does not exist.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"{path} is no text in UTF-8; list images, one per line") from None
    found = [(number, path.parent / line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise ConfigurationError(f"{path} lists no images; write one file name per line")
    for number, file in found:
        if not file.exists():
            raise ConfigurationError(f"{path}, line {number}: no such image: {file}")
    return [file for _, file in found]


def prepared(
    files: Sequence[Path], preprocessings: Sequence[Preprocessing], views: int
) -> Generator[tuple[Path, list[Tensor] | UnusableImage]]:
    """Each file with its views for each network, or with the reason why it cannot be used; in order.

    Files are read by threads, a few ahead.

    Args:
        preprocessings: of each network.
        views: 1 or 10; see :meth:`Preprocessing.views`.
    """
    threads = len(os.sched_getaffinity(0))

    def prepare(file: Path) -> list[Tensor] | UnusableImage:
        try:
            return [preprocess.views(file, views) for preprocess in preprocessings]
        except UnusableImage as error:
            return error

    with ThreadPoolExecutor(threads) as pool:
        pending: deque[tuple[Path, Future[list[Tensor] | UnusableImage]]] = deque()
        for file in files:
            pending.append((file, pool.submit(prepare, file)))
            if len(pending) > 4 * threads:
                done, future = pending.popleft()
                yield done, future.result()
        for done, future in pending:
            yield done, future.result()

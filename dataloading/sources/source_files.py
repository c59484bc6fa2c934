"""The files that preparing a source reads, as a fingerprint of the source sees them."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from dataloading.errors import DatasetError
from dataloading.sources.folder_listing import ARCHIVE, files_below
from dataloading.sources.names import split_of_folder

# Of the files beside class folders, only archives are read, and what describes them.
_DESCRIPTION = re.compile(r"(^classes\.txt|^dataset\.json|-sources\.csv|_ground_truth\.txt)$")


class SourceFile(NamedTuple):
    """A file: its `name` relative to the source, its length in bytes, and the time of its last change in ns."""

    name: str
    length: int
    changed: int


def source_files(source: Path) -> Iterator[SourceFile]:
    """Yield the files that preparing `source` may read, in no particular order.

    Links are followed: what counts is the file behind a link. Hidden and system files, this project's outputs, and
    files that lie beside class folders are left out.

    Raises:
        DatasetError: a file or folder cannot be read, or a link leads nowhere or back to a folder that contains it.
    """
    try:
        for path in _paths(source):
            about = os.stat(path)
            yield SourceFile(os.path.relpath(path, source), about.st_size, about.st_mtime_ns)
    except OSError as error:
        raise DatasetError(
            f"cannot read {error.filename or source}: {error.strerror or error}; bring it back, or move it out of the "
            "source, and try again"
        ) from None


def _paths(source: Path) -> Iterator[str]:
    if not source.is_dir():
        yield str(source)
        for name in os.listdir(source.parent):
            if _DESCRIPTION.search(name):
                yield os.path.join(source.parent, name)
        return
    for item in files_below(source):
        *folders, name = os.path.relpath(item.path, source).split(os.sep)
        is_beside_classes = not folders or (len(folders) == 1 and split_of_folder(folders[0]) is not None)
        if not is_beside_classes or ARCHIVE.search(name) or _DESCRIPTION.search(name):
            yield item.path

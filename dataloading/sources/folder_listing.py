"""What is in a folder of images: links are followed, hidden and system files and the outputs of this project are not.

Everything that reads folders of images, or decides whether they have changed, lists them with these functions.
"""

import errno
import json
import os
import re
import stat
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from dataloading.errors import DatasetError
from dataloading.sources.entries import IMAGE_SUFFIXES

ARCHIVE = re.compile(r"\.(tar|tgz|tbz2?|txz|zip|7z|rar|tar\.\w+)$", re.IGNORECASE)
COMPRESSED = re.compile(r"\.(tgz|tbz2?|txz|zip|7z|rar|tar\.\w+)$", re.IGNORECASE)

# Folders and files that operating systems and storage devices leave beside a user's files, in lower case.
_SYSTEM = frozenset(
    {"__macosx", "@eadir", "#recycle", "$recycle.bin", "lost+found", "system volume information", "__pycache__"}
    | {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"}
)
_OUTPUTS = ("prepared", "runs", "studies")  # folders that commands make in the working directory
_OUTPUT_FILES = {  # files that describe an output, and a key in each
    "dataset.json": "mean_image_sha256",
    "config.json": "recipe",
    "study.json": "claim",
    "features.json": "activations",
    "baseline.json": "fingerprint",
}


@dataclass
class Level:
    """What lies directly in a folder, by name, sorted.

    Attributes:
        folders: folders, and links to folders, without this project's outputs.
        outputs: this project's outputs.
        files: everything else, without links that lead nowhere.
        broken: links that lead nowhere.
    """

    folders: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    @property
    def images(self) -> list[str]:
        """The files whose names end like an image's."""
        return [name for name in self.files if has_image_suffix(name)]


def is_ignored(name: str) -> bool:
    """Return whether a file or folder is hidden (its name begins with a dot) or is the operating system's."""
    return name.startswith(".") or name.lower() in _SYSTEM


def is_own_output(folder: str | os.PathLike[str]) -> bool:
    """Return whether a folder was made by this project: a prepared data set, a run, or the folder that holds these."""
    folder = Path(folder)
    if any(_has_key(folder / name, key) for name, key in _OUTPUT_FILES.items()):
        return True
    if folder.name.endswith(".preparing"):
        return (folder / "plan.json").is_file() or not look(folder).images
    if folder.name not in _OUTPUTS or look(folder).files:
        return False
    inner = [*folder.glob("*/"), *folder.glob("*/*/")]  # a study has runs
    return any(map(is_own_output, inner)) or not any(files_below(folder))


def has_image_suffix(name: str) -> bool:
    """Return whether a name ends like an image's."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def look(folder: str | os.PathLike[str], left_out: Collection[str] = ()) -> Level:
    """Return what lies directly in `folder`.

    Args:
        left_out: real paths of folders that do not count.

    Raises:
        OSError: the folder cannot be read.
    """
    level = Level()
    for item in _items(folder):
        kind = _kind(item)
        if kind != "folder":
            (level.broken if kind == "broken" else level.files).append(item.name)
        elif not _is_among(item, left_out):
            (level.outputs if is_own_output(item.path) else level.folders).append(item.name)
    return level


def files_below(folder: str | os.PathLike[str], left_out: Collection[str] = ()) -> Iterator[os.DirEntry[str]]:
    """Yield the files in `folder` and its subfolders in sorted order, with links that lead nowhere.

    Args:
        left_out: real paths of folders that do not count.

    Raises:
        DatasetError: a link leads back to a folder that contains it.
        OSError: a folder cannot be read.
    """
    ways = Path(os.path.realpath(folder)), Path(os.path.abspath(folder))
    above = frozenset(_identity(path) for way in ways for path in way.parents)
    return _files_below(os.fspath(folder), above, left_out)


def has_images(folder: str | os.PathLike[str], left_out: Collection[str] = ()) -> bool:
    """Return whether a file in `folder` or its subfolders has a name that ends like an image's."""
    return any(has_image_suffix(item.name) for item in files_below(folder, left_out))


def regular_size(item: os.DirEntry[str]) -> tuple[int, str]:
    """Return a file's length in bytes and, if it cannot be an image, the reason.

    Raises:
        OSError: its folder or disk cannot be read, or the file vanished.
    """
    try:
        about = item.stat()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP) and item.is_symlink():
            return 0, f"cannot be read: {error.strerror}"
        raise
    return (about.st_size, "") if stat.S_ISREG(about.st_mode) else (0, "not a regular file")


def _has_key(path: Path, key: str) -> bool:
    try:
        content = json.loads(path.read_bytes()) if path.is_file() else {}
    except ValueError:
        return False
    return isinstance(content, dict) and key in content


def _items(folder: str | os.PathLike[str]) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as items:
        return sorted((item for item in items if not is_ignored(item.name)), key=lambda item: item.name)


def _kind(item: os.DirEntry[str]) -> str:
    """Return "folder", "file", or "broken" for a link that leads nowhere."""
    try:
        if item.is_dir():
            return "folder"
        if item.is_symlink():
            item.stat()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP) and item.is_symlink():
            return "broken"
        raise
    return "file"


def _is_among(item: os.DirEntry[str], left_out: Collection[str]) -> bool:
    return bool(left_out) and os.path.realpath(item.path) in left_out


def _files_below(
    folder: str, above: frozenset[tuple[int, int]], left_out: Collection[str]
) -> Iterator[os.DirEntry[str]]:
    identity = _identity(folder)
    if identity in above:
        raise DatasetError(f"{folder} is a link to a folder that contains it; remove the link")
    above |= {identity}
    for item in _items(folder):
        if _kind(item) != "folder":
            yield item
        elif not _is_among(item, left_out) and not is_own_output(item.path):
            yield from _files_below(item.path, above, left_out)


def _identity(path: str | os.PathLike[str]) -> tuple[int, int]:
    about = os.stat(path)
    return about.st_dev, about.st_ino

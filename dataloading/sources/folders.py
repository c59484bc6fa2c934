"""Images in class folders."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dataloading.errors import DatasetError
from dataloading.sources.entries import IMAGE_SUFFIXES, SPLITS, Entry


class ClassFolders:
    """Images in class folders: ``train/<class>/*.jpg`` and ``val/<class>/*.jpg``, with the same classes in both.

    Classes are numbered in the order of their sorted names. Every file in a class folder and its subfolders counts as
    an image, except hidden ones (names that begin with a dot). ``test/`` is read if it exists.

    Class folders directly in `root` form a training set without a validation set (`HeldOut` makes one from it).

    Raises:
        DatasetError: there are no class folders, or the splits have different ones.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.name = root, root.resolve().name
        self.words: list[str] | None = None
        folders = _subfolders(root)
        if "val" in folders and "train" not in folders:
            raise DatasetError(f"{root} has val/ but no train/; add train/<class>/*.jpg with the same classes")
        if "train" in folders:
            self._folders = {split: root / split for split in SPLITS if split in folders}
        else:
            self._folders = {"train": root}
        self.splits: tuple[str, ...] = tuple(self._folders)
        self.classes = _subfolders(self._folders["train"])
        if not self.classes:
            raise DatasetError(_no_classes(root, self._folders["train"]))
        for split in self.splits[1:]:
            _check_same_classes(root, self.classes, split)

    def entries(self, split: str) -> Iterator[Entry]:
        """Yield the images of `split` by class, then by path."""
        for label, name in enumerate(self.classes):
            folder, found = self._folders[split] / name, False
            for item in _files(folder):
                found = True
                yield _entry(item, label, os.path.relpath(item.path, self.root))
            if not found:
                raise DatasetError(
                    f"class folder {folder} has no images; add some, or remove the class from every split"
                )

    def made(self) -> dict[str, Any]:
        """Return what `dataset.json` records about the source."""
        return {"source": "class folders"}


def _subfolders(folder: Path) -> list[str]:
    return sorted(item.name for item in os.scandir(folder) if item.is_dir() and not item.name.startswith("."))


def _files(folder: str | os.PathLike[str]) -> Iterator[os.DirEntry[str]]:
    """Yield the files in `folder` and its subfolders in sorted order, without hidden ones."""
    with os.scandir(folder) as items:
        found = sorted(items, key=lambda item: item.name)
    for item in found:
        if item.name.startswith("."):
            continue
        if item.is_dir():
            yield from _files(item.path)
        else:
            yield item


def _entry(item: os.DirEntry[str], label: int, name: str) -> Entry:
    try:
        return Entry(item.path, 0, item.stat().st_size, label, name)
    except OSError as error:  # a broken symbolic link
        return Entry(item.path, 0, 0, label, name, f"cannot be read: {error.strerror}")


def _no_classes(root: Path, folder: Path) -> str:
    remedy = "put the images of each class in a folder of its own, such as train/cat/1.jpg and val/cat/2.jpg"
    if any(os.path.splitext(item.name)[1].lower() in IMAGE_SUFFIXES for item in _files(folder)):
        return f"{folder} has images but no class folders; {remedy}"
    return f"{root} contains no images; {remedy}"


def _check_same_classes(root: Path, classes: list[str], split: str) -> None:
    found, expected = set(_subfolders(root / split)), set(classes)
    missing, extra = sorted(expected - found), sorted(found - expected)
    if missing or extra:
        parts = [f"only train/ has {_first_few(missing)}"] if missing else []
        parts += [f"only {split}/ has {_first_few(extra)}"] if extra else []
        raise DatasetError(
            f"the class folders of {root}/train and {root}/{split} differ: {'; '.join(parts)}; give both the same ones"
        )


def _first_few(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")

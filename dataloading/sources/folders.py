"""What can be read: each source lists its images as `Entry` records, in an order that never changes.

An entry is a run of bytes in some file, so an image in a class folder, a member of a tar file and a member of a tar
file inside a tar file are read alike, in place, by any process.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from dataloading.errors import DatasetError

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpe", ".jpeg", ".jpg", ".png", ".ppm", ".pgm", ".tif", ".tiff", ".webp"})

SPLITS: tuple[str, ...] = ("train", "val", "test")


class Entry(NamedTuple):
    """One image of a source.

    `path` of the file that holds it; `offset` and `length` of its bytes there; its `label`; its
    `name` in messages, in `rejected.csv` and, shortened to plain letters, as key in the shards; and the `problem` that
    keeps it from being used, where the source knows of one.
    """

    path: str
    offset: int
    length: int
    label: int
    name: str
    problem: str = ""


class Source(Protocol):
    """Where images come from.

    `classes` are the class names by label, complete when all entries have been listed; `words` describe each class
    where the source does.
    """

    name: str
    classes: list[str]
    words: list[str] | None
    splits: tuple[str, ...]

    def entries(self, split: str) -> Iterator[Entry]:
        """Yield the images of `split`, always in the same order."""
        ...

    def made(self) -> dict[str, Any]:
        """Return what `dataset.json` should say about the source."""
        ...


class ClassFolders:
    """Images in class folders: ``train/<class>/*.jpg`` and ``val/<class>/*.jpg``, with the same classes in both.

    Classes are numbered in the order of their sorted names. Every file in a class folder and below counts as an image,
    except hidden ones (those that begin with a dot). ``test/`` is read where it exists.

    Class folders that lie directly in `root` are one training set (`HeldOut` makes a validation set from it).
    """

    def __init__(self, root: Path) -> None:
        self.root, self.name = root, root.resolve().name
        self.words: list[str] | None = None
        folders = _subfolders(root)
        if "val" in folders and "train" not in folders:
            raise DatasetError(f"{root} has val/ but no train/; wanted: train/<class>/*.jpg and val/<class>/*.jpg")
        if "train" in folders:
            self._folders = {split: root / split for split in SPLITS if split in folders}
        else:
            self._folders = {"train": root}
        self.splits: tuple[str, ...] = tuple(self._folders)
        self.classes = _subfolders(self._folders["train"])
        if not self.classes:
            raise DatasetError(_no_classes(root, self._folders["train"]))
        for split in self.splits[1:]:
            _same_classes(root, self.classes, split)

    def entries(self, split: str) -> Iterator[Entry]:
        """Yield the images of `split` by class, then by path."""
        for label, name in enumerate(self.classes):
            folder, found = self._folders[split] / name, False
            for item in _files(folder):
                found = True
                yield _entry(item, label, os.path.relpath(item.path, self.root))
            if not found:
                raise DatasetError(
                    f"class folder {folder} has no images; put some in, or remove the class from every split"
                )

    def made(self) -> dict[str, Any]:
        return {"source": "class folders"}


class HeldOut:
    """A source with a training set only, of which every `every`-th image of each class becomes the validation set."""

    def __init__(self, source: Source, every: int) -> None:
        self._source, self._every = source, every
        self.name, self.classes, self.words = source.name, source.classes, source.words
        self.splits = ("train", "val", *(split for split in source.splits if split != "train"))

    def entries(self, split: str) -> Iterator[Entry]:
        """Yield the images of `split` in the source's order; the first of a class is always for training."""
        if split not in ("train", "val"):
            yield from self._source.entries(split)
            return
        seen: dict[int, int] = {}
        for entry in self._source.entries("train"):
            seen[entry.label] = number = seen.get(entry.label, 0) + 1
            if (number % self._every == 0) == (split == "val"):
                yield entry

    def made(self) -> dict[str, Any]:
        return {**self._source.made(), "validation_every": self._every}


def _subfolders(folder: Path) -> list[str]:
    return sorted(item.name for item in os.scandir(folder) if item.is_dir() and not item.name.startswith("."))


def _files(folder: str | os.PathLike[str]) -> Iterator[os.DirEntry[str]]:
    """Yield the files in `folder` and below, sorted, hidden ones left out."""
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
    except OSError as error:  # a link that leads nowhere
        return Entry(item.path, 0, 0, label, name, f"cannot be read: {error.strerror}")


def _no_classes(root: Path, folder: Path) -> str:
    wanted = "wanted: one folder per class with its images, as in train/cat/1.jpg and val/cat/2.jpg"
    if any(os.path.splitext(item.name)[1].lower() in IMAGE_SUFFIXES for item in _files(folder)):
        return f"{folder} has images but no class folders; {wanted}"
    return f"{root} holds no images; {wanted}"


def _same_classes(root: Path, classes: list[str], split: str) -> None:
    found, wanted = set(_subfolders(root / split)), set(classes)
    missing, extra = sorted(wanted - found), sorted(found - wanted)
    if missing or extra:
        parts = [f"only train/ has {_some(missing)}"] if missing else []
        parts += [f"only {split}/ has {_some(extra)}"] if extra else []
        raise DatasetError(
            f"the class folders of {root}/train and {root}/{split} differ: {'; '.join(parts)}; give both the same ones"
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def open_source(
    source: str | os.PathLike[str],
    *,
    label_order: str = "sorted",
    validation_every: int | None = None,
    scratch: Path,
) -> Source:
    """Return the source that `source` names.

    Args:
        source: a folder with the archives of ILSVRC2012 or ILSVRC2010, a folder or tar file of WebDataset shards, class
            folders, or "digits" (written to the folder `scratch` first).
        label_order: "sorted" or "devkit"; only ILSVRC's archives have a choice.
        validation_every: hold out every n-th training image of each class where there is no validation set; 0 does
            without one.
        scratch: where files may be written.

    Raises:
        DatasetError: there is nothing usable.
    """
    found = _find(source, label_order, scratch)
    if "val" in found.splits:
        if validation_every:
            raise DatasetError(f"{source} has a validation set; leave --validation-every out")
        return found
    if validation_every is None:
        raise DatasetError(
            f"{source} has training images but no validation set; add val/ with the same classes, or hold out every "
            f"tenth image: python -m dataloading.prepare {source} DEST --validation-every 10"
        )
    if validation_every == 0:
        return found
    if validation_every < 2:
        raise DatasetError(f"validation_every is {validation_every}; it must be 2 or more, or 0 to do without")
    return HeldOut(found, validation_every)


def _find(source: str | os.PathLike[str], label_order: str, scratch: Path) -> Source:
    from dataloading.ilsvrc import ILSVRC, edition_in
    from dataloading.webdataset import WebDataset, shards_in

    if label_order not in ("sorted", "devkit"):
        raise DatasetError(f"label_order is {label_order!r}; it must be sorted or devkit")
    root = Path(source)
    edition = edition_in(root) if source != "digits" else None
    if edition is not None:
        return ILSVRC(root, edition, "devkit" if label_order == "devkit" else "sorted")
    if label_order == "devkit":
        raise DatasetError(f"{source} has no development kit; --label-order devkit is for ILSVRC's archives")
    if source == "digits":
        from dataloading.digits import write_digits

        digits = ClassFolders(write_digits(scratch / "digits"))
        digits.name = "digits"
        return digits
    if not root.exists():
        raise DatasetError(
            f"no such folder: {root}; wanted: a folder with train/<class>/*.jpg and val/<class>/*.jpg, a folder with "
            f"ILSVRC's archives, WebDataset shards, or the word digits"
        )
    if shards_in(root):
        return WebDataset(root)
    if not root.is_dir():
        raise DatasetError(
            f"{root} is neither a folder nor a tar file; wanted: class folders, ILSVRC's archives or shards"
        )
    return ClassFolders(root)

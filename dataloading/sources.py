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


class Entry(NamedTuple):
    """One image of a source.

    `path` of the file that holds it; `offset` and `length` of its bytes there (length -1: to the end); its `label`; and
    its `name` in messages, in `rejected.csv` and, shortened to plain letters, as key in the shards.
    """

    path: str
    offset: int
    length: int
    label: int
    name: str


class Source(Protocol):
    """Where images come from."""

    name: str
    classes: list[str]
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
    except hidden ones (those that begin with a dot). Further splits, like ``test/``, are read where they exist.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.name = root, root.resolve().name
        folders = _subfolders(root)
        if "train" not in folders or "val" not in folders:
            raise DatasetError(_no_splits(root, folders))
        self.splits = ("train", "val", *(["test"] if "test" in folders else []))
        self.classes = _subfolders(root / "train")
        if not self.classes:
            raise DatasetError(
                f"{root / 'train'} has no class folders; wanted: one folder per class with its images, as in "
                f"train/cat/1.jpg"
            )
        for split in self.splits[1:]:
            _same_classes(root, self.classes, split)

    def entries(self, split: str) -> Iterator[Entry]:
        """Yield the images of `split` by class, then by path."""
        for label, name in enumerate(self.classes):
            folder, found = self.root / split / name, False
            for path in _files(folder):
                found = True
                yield Entry(str(path), 0, -1, label, str(path.relative_to(self.root)))
            if not found:
                raise DatasetError(
                    f"class folder {folder} has no images; put some in, or remove the class from every split"
                )

    def made(self) -> dict[str, Any]:
        return {"source": "class folders"}


def _subfolders(folder: Path) -> list[str]:
    return sorted(item.name for item in os.scandir(folder) if item.is_dir() and not item.name.startswith("."))


def _files(folder: Path) -> Iterator[Path]:
    """Yield the files in `folder` and below, sorted, hidden ones left out."""
    for item in sorted(os.scandir(folder), key=lambda item: item.name):
        if item.name.startswith("."):
            continue
        if item.is_dir():
            yield from _files(Path(item.path))
        else:
            yield Path(item.path)


def _no_splits(root: Path, folders: list[str]) -> str:
    wanted = "wanted: train/<class>/*.jpg and val/<class>/*.jpg"
    missing = " and ".join(f"{name}/" for name in ("train", "val") if name not in folders)
    if not folders and not any(path.suffix.lower() in IMAGE_SUFFIXES for path in _files(root)):
        return f"{root} holds no images; {wanted}"
    if "train" not in folders and folders:
        return (
            f"{root} has no {missing} but folders {_some(folders)}; {wanted}. If these are the classes, move them "
            f"into train/ "
            f"and some images of each into val/"
        )
    return f"{root} has no {missing}; {wanted}"


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


def open_source(source: str | os.PathLike[str], workplace: Path) -> Source:
    """Return the source that `source` names: the path of class folders, or "digits" (written to `workplace` first)."""
    if source == "digits":
        from dataloading.digits import write_digits

        folders = ClassFolders(write_digits(workplace / "digits"))
        folders.name = "digits"
        return folders
    root = Path(source)
    if not root.exists():
        raise DatasetError(
            f"no such folder: {root}; wanted: a folder with train/<class>/*.jpg and val/<class>/*.jpg, or the word "
            f"digits"
        )
    if not root.is_dir():
        raise DatasetError(f"{root} is a file; wanted: a folder with train/<class>/*.jpg and val/<class>/*.jpg")
    return ClassFolders(root)

"""Images in class folders."""

import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from dataloading.sources.entries import Entry
from dataloading.sources.folder_listing import files_below, regular_size
from dataloading.sources.names import check_distinct, name_of_set
from dataloading.sources.notes import note
from dataloading.sources.split_folders import SplitFolders


class ClassFolders:
    """Images in class folders: ``train/<class>/*.jpg`` and ``val/<class>/*.jpg``, with the same classes in both.

    Classes are numbered in the order of their sorted names. Every file in a class folder and its subfolders counts as
    an image, except hidden and system files (`folder_listing`). The folders of splits may also be called training,
    valid, validation and testing, in any case. ``test/`` is read if it has class folders.

    Class folders directly in `root` form a training set without a validation set (`HeldOut` makes one from it).

    Args:
        root: the folder.
        allow_empty_classes: classes may be missing in some splits.
        left_out: real paths of folders that are not read, such as the destination of a preparation.

    Attributes:
        notes: what is left out.
        unusable: why a split's folder is left out, by split.
        beside_train: names of folders beside the one for training that are not the validation set.

    Raises:
        DatasetError: there are no class folders, what is a class is not clear, or the splits have different classes.
    """

    def __init__(self, root: Path, *, allow_empty_classes: bool = False, left_out: Collection[str] = ()) -> None:
        self.root, self.name = root, name_of_set(root)
        self.words: list[str] | None = None
        found = SplitFolders(root, left_out)
        if not allow_empty_classes:
            found.check_same_classes()
        self.notes, self.unusable, self.beside_train = found.notes, found.unusable, found.beside_train
        self.classes = sorted(set().union(*found.classes.values()))
        check_distinct(self.classes, str(root))
        self.splits: tuple[str, ...] = tuple(found.folders)
        self._folders, self._left_out = found.folders, left_out
        self._nested: set[str] = set()

    def entries(self, split: str) -> Iterator[Entry]:
        """Yield the images of `split` by class, then by path."""
        for label in range(len(self.classes)):
            folder = self.class_folder(split, label)
            if not folder.exists():  # an empty class
                continue
            for item in files_below(folder, self._left_out):
                if os.path.dirname(item.path) != os.fspath(folder):
                    self._note_subfolder(split, folder, item.path)
                length, problem = regular_size(item)
                yield Entry(item.path, 0, length, label, os.path.relpath(item.path, self.root), problem)

    def class_folder(self, split: str, label: int) -> Path:
        """Return the folder with the images of a class."""
        return self._folders[split] / self.classes[label]

    def made(self) -> dict[str, Any]:
        """Return what `dataset.json` records about the source."""
        return {"source": "class folders"}

    def _note_subfolder(self, split: str, folder: Path, path: str) -> None:
        """Say once per split that images in subfolders count as images of the class."""
        if split not in self._nested:
            self._nested.add(split)
            place = os.path.relpath(os.path.dirname(path), folder)
            note(f"{folder}: images in its subfolders, such as {place}, count as images of the class {folder.name}")

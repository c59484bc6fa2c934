"""Which folders of a data set are splits, and which are classes."""

import os
from collections.abc import Callable, Collection
from pathlib import Path

from dataloading.errors import DatasetError
from dataloading.process import command
from dataloading.sources.folder_listing import ARCHIVE, Level, has_image_suffix, has_images, look
from dataloading.sources.names import SPLIT_FOLDERS, looks, split_in, split_near, split_of_folder
from dataloading.sources.notes import first_few

_FEW_FOLDERS = 20  # more folders than this are taken for classes without looking into each


class SplitFolders:
    """The folder of each split, and the class folders in it.

    Args:
        root: a folder with ``train/<class>`` and ``val/<class>``, or with class folders for training.
        left_out: real paths of folders that are not read.

    Attributes:
        folders: the folder of each split that can be read.
        classes: the names of the class folders in each of them, sorted.
        unusable: why a split's folder cannot be read, by split.
        beside_train: names of folders beside the one for training that are not the validation set.
        notes: what stands beside splits and class folders and is left out.

    Raises:
        DatasetError: there are no class folders for training, or what is a class is not clear.
    """

    def __init__(self, root: Path, left_out: Collection[str] = ()) -> None:
        self.root, self.notes = root, list[str]()
        self.unusable, self.beside_train = dict[str, str](), list[str]()
        self._left_out = left_out
        self.folders = self._find_splits()
        self.classes = {split: self._find_classes(split) for split in self.folders}
        if not self.classes["train"]:
            raise DatasetError(_no_classes(root, self.folders["train"]))
        if len(self.classes["train"]) == 1:
            self._check_no_subfolders(self.classes["train"][0])
        for split in [split for split in self.folders if split != "train"]:
            if problem := self._problem(split):
                self.unusable[split] = problem
                self.notes.append(problem)
                del self.folders[split], self.classes[split]
            else:
                self._note_same_images(split)

    def check_same_classes(self) -> None:
        """Check that all splits have the same classes. Raises `DatasetError` with those that only one has."""
        train = set(self.classes["train"])
        for split, folder in self.folders.items():
            found = set(self.classes[split])
            missing, extra = sorted(train - found), sorted(found - train)
            if not missing and not extra:
                continue
            parts = [f"only {self.folders['train'].name}/ has {first_few(missing)}"] if missing else []
            parts += [f"only {folder.name}/ has {first_few(extra)}"] if extra else []
            if {looks(name) for name in missing} & {looks(name) for name in extra}:
                parts.append("some of these look the same but are encoded differently")
            raise DatasetError(
                f"the class folders of {self.folders['train']} and {folder} differ: {'; '.join(parts)}; give both the "
                f"same ones, or keep classes without images: "
                f"{command('dataloading.prepare', self.root, 'DEST', '--allow-empty-classes')}"
            )

    # --- splits -------------------------------------------------------------------------------------------------------

    def _find_splits(self) -> dict[str, Path]:
        """Return the folder of each split; `root` itself for training if its folders are classes."""
        level = look(self.root, self._left_out)
        found: dict[str, list[str]] = {}
        for name in sorted(level.folders + level.broken):
            if split := split_of_folder(name):
                found.setdefault(split, []).append(name)
        for split, names in found.items():
            _check_links(self.root, [name for name in names if name in level.broken])
            if len(names) > 1:
                raise DatasetError(f"{self.root} has {'/ and '.join(names)}/, which all mean {split}; keep one")
        if "train" in found:
            self._note_beside_splits(level)
            return {split: self.root / found[split][0] for split in SPLIT_FOLDERS if split in found}
        if found:
            others = "/ and ".join(names[0] for names in found.values())
            raise DatasetError(
                f"{self.root} has {others}/ but no train/; add train/<class>/*.jpg with the same classes"
                f"{_rename(level, split_near)}"
            )
        self._check_not_splits(level)
        return {"train": self.root}

    def _note_beside_splits(self, level: Level) -> None:
        self.beside_train = [name for name in level.folders if split_of_folder(name) not in ("train", "val")]
        others = [f"{name}/" for name in self.beside_train if split_of_folder(name) is None]
        if others:
            self.notes.append(f"{self.root}: left out beside train/: {first_few(others)}; only val/ and test/ are read")
        archives = [name for name in level.files if ARCHIVE.search(name)]
        self._note_files(self.root, archives + level.images + level.broken, "train/")

    def _check_not_splits(self, level: Level) -> None:
        """Check that the folders in `root` are classes, not splits by other names, nor folders around a data set."""
        if len(level.folders) > _FEW_FOLDERS:
            return
        meant = [name for name in level.folders if split_in(name)]
        if len(meant) > 1 and any(split_in(name) == "train" and look(self.root / name).folders for name in meant):
            raise DatasetError(f"{self.root} has {first_few(meant)}, which are not class folders{_rename(level)}")
        for name in level.folders:
            place = _whole_data_set(self.root / name)
            if place is not None:
                raise DatasetError(f"{self.root} has no class folders, but {place} has; name {place} instead")

    def _problem(self, split: str) -> str:
        """Return why a split cannot be read, or an empty string."""
        folder, found = self.folders[split], self.classes[split]
        if not found:
            what = "has files but no class folders" if look(folder).files else "has no class folders"
            return f"{folder} {what}, so its images have no labels; it is left out"
        if split == "test" and not set(found) & set(self.classes["train"]):
            return f"{folder} has {first_few(found)} but none of the classes of train/; it is left out"
        return ""

    def _note_same_images(self, split: str) -> None:
        """Note class folders that are also training images: a link from one split to the other."""
        training = {_identity(self.folders["train"] / name) for name in self.classes["train"]}
        same = [name for name in self.classes[split] if _identity(self.folders[split] / name) in training]
        if same:
            self.notes.append(
                f"{self.folders[split]} has the training images of {first_few(same)}, so the error says nothing about "
                f"other images"
            )

    # --- classes ------------------------------------------------------------------------------------------------------

    def _find_classes(self, split: str) -> list[str]:
        """Return the class folders of a split; note what else is there."""
        folder = self.folders[split]
        level = look(folder, self._left_out)
        broken = [name for name in level.broken if not has_image_suffix(name)]
        if not level.folders and not broken:
            return []
        _check_links(folder, broken)
        self._note_files(folder, sorted({*level.files, *level.broken}), "the class folders")
        if level.outputs:
            self.notes.append(f"{folder}: left out as made by fastalex: {first_few(level.outputs)}")
        seen: dict[tuple[int, int], str] = {}
        for name in level.folders:
            other = seen.setdefault(_identity(folder / name), name)
            if other != name:
                raise DatasetError(
                    f"the class folders {folder / other} and {folder / name} are the same folder; remove the link"
                )
        return level.folders

    def _check_no_subfolders(self, name: str) -> None:
        """Check that the only class folder does not have the class folders in it."""
        folder = self.folders["train"]
        inner = [item for item in look(folder / name).folders if has_images(folder / name / item, self._left_out)]
        if inner:
            remedy = f"name {folder / name} instead" if folder == self.root else f"move them to {folder}"
            if folder == self.root and (meant := split_near(name)):
                remedy += f"; if it is the split {meant}, rename {name}/ to {meant}/: splits are called train/ and val/"
            raise DatasetError(
                f"{folder} has only one class folder, {name}, with the subfolders {first_few(inner)}; if these are the "
                f"classes, {remedy}"
            )

    def _note_files(self, folder: Path, files: list[str], beside: str) -> None:
        archives = [name for name in files if ARCHIVE.search(name)]
        others = [name for name in files if name not in archives]
        if archives:
            self.notes.append(
                f"{folder}: ignored beside {beside}: {first_few(archives)}; unpack what belongs to the data set"
            )
        if others:
            self.notes.append(f"{folder}: left out beside {beside}: {first_few(others)}; they belong to no class")


def has_class_folders(root: Path, left_out: Collection[str] = ()) -> bool:
    """Return whether a folder has class folders with images, so that archives beside them do not count."""
    level = look(root, left_out)
    train = [name for name in level.folders if split_of_folder(name) == "train"]
    if train:
        folder = root / train[0]
        return any(has_images(folder / name, left_out) for name in look(folder, left_out).folders)
    if len(level.folders) < 2 or any(split_of_folder(name) for name in level.folders):
        return False
    return all(has_images(root / name, left_out) for name in level.folders)


def _whole_data_set(folder: Path) -> Path | None:
    """Return `folder` or a folder in it if that has class folders for training."""
    inner = look(folder).folders
    for place in [folder, *(folder / name for name in inner[:_FEW_FOLDERS])]:
        for name in look(place).folders:
            classes = look(place / name).folders if split_of_folder(name) == "train" else []
            if classes and has_images(place / name / classes[0]):
                return place
    return None


def _check_links(folder: Path, names: list[str]) -> None:
    """Raise `DatasetError` if there are links that lead nowhere where splits or classes should be."""
    if names:
        link = folder / names[0]
        raise DatasetError(f"{link} is a link to {os.readlink(link)}, which does not exist; restore or remove it")


def _no_classes(root: Path, folder: Path) -> str:
    remedy = "put the images of each class in a folder of its own, such as train/cat/1.jpg and val/cat/2.jpg"
    if look(folder).images:
        return f"{folder} has images but no class folders; {remedy}"
    return f"{root} contains no images; {remedy}"


def _rename(level: Level, meant: Callable[[str], str | None] = split_in) -> str:
    """Return a remedy: the new names of folders that are splits by other names, as `meant` says."""
    pairs = [(name, split) for name in level.folders if (split := meant(name)) and not split_of_folder(name)]
    renamed = " and ".join(f"{name}/ to {split}/" for name, split in pairs)
    return f"; rename {renamed} if that is what they are" if pairs else ""


def _identity(path: Path) -> tuple[int, int]:
    about = path.stat()
    return about.st_dev, about.st_ino

"""Detect what kind of source is at a path."""

import os
from collections.abc import Collection
from pathlib import Path

from dataloading.errors import DatasetError
from dataloading.process import command
from dataloading.shards import DESCRIPTION
from dataloading.sources.digits import write_digits
from dataloading.sources.entries import Source
from dataloading.sources.folder_listing import COMPRESSED, has_images
from dataloading.sources.folders import ClassFolders
from dataloading.sources.held_out import HeldOut
from dataloading.sources.ilsvrc import ILSVRC, find_edition
from dataloading.sources.names import split_of_folder
from dataloading.sources.notes import note
from dataloading.sources.split_folders import has_class_folders
from dataloading.sources.webdataset import WebDataset, find_shards


def open_source(
    source: str | os.PathLike[str],
    *,
    label_order: str = "sorted",
    validation_every: int | None = None,
    allow_empty_classes: bool = False,
    scratch: Path,
) -> Source:
    """Detect and open the source at the path `source`; print what it leaves out.

    Class folders come first: archives beside them are ignored and named.

    Args:
        source: a folder with the archives of ILSVRC2012 or ILSVRC2010, a folder or tar file of WebDataset shards, class
            folders, or the word "digits" (these are written to `scratch` first).
        label_order: "sorted" or "devkit"; only ILSVRC's archives have "devkit".
        validation_every: if there is no validation set, hold out every n-th training image of each class; 0 means no
            validation set.
        allow_empty_classes: classes may be without images in some splits.
        scratch: folder in which files may be written, ``DEST.preparing``; neither it nor DEST is read as a class.

    Raises:
        DatasetError: there is nothing usable, or an option does not apply to it.
    """
    found = _detect(source, label_order, scratch, allow_empty_classes)
    if len(found.classes) == 1 and isinstance(found, ClassFolders):
        only = f"{source} has only one class folder, {found.classes[0]}"
        if validation_every != 0:
            raise DatasetError(
                f"{only}, but a classifier needs at least two classes; put the images of each class in a folder of its "
                f"own, such as train/cat/1.jpg and train/dog/2.jpg"
            )
        found.notes.append(f"{only}, so nothing can be trained with it")
    found = _with_validation(source, found, validation_every, allow_empty_classes)
    for text in found.notes:
        note(text)
    return found


def _with_validation(
    source: str | os.PathLike[str], found: Source, validation_every: int | None, allow_empty_classes: bool
) -> Source:
    """Return the source with a validation set held out if it has none and `validation_every` says so."""
    if "val" in found.splits:
        if validation_every:
            raise DatasetError(f"{source} has a validation set; leave --validation-every out")
        return found
    if validation_every is None:
        why, others = "", list[str]()
        if isinstance(found, ClassFolders):
            why = f" ({found.unusable['val']})" if "val" in found.unusable else ""
            others = [f"{name}/" for name in found.beside_train if split_of_folder(name) not in found.unusable]
        rename = f", or rename {others[0]} to val/ if that is what it is" if len(others) == 1 else ""
        raise DatasetError(
            f"{source} has training images but no validation set{why}; add val/ with the same classes{rename}, or hold "
            f"out every tenth image: {command('dataloading.prepare', source, 'DEST', '--validation-every', 10)}"
        )
    if validation_every == 0:
        return found
    if validation_every < 2:
        raise DatasetError(f"validation_every must be at least 2, or 0 for no validation set, got {validation_every}")
    return HeldOut(found, validation_every, allow_empty_classes=allow_empty_classes)


def _detect(source: str | os.PathLike[str], label_order: str, scratch: Path, allow_empty_classes: bool) -> Source:
    if label_order not in ("sorted", "devkit"):
        raise DatasetError(f"label_order must be sorted or devkit, got {label_order!r}")
    root, left_out = Path(source), _real_paths(scratch)
    edition = find_edition(root) if source != "digits" else None
    if edition is not None and not has_class_folders(root, left_out):
        return ILSVRC(root, edition, "devkit" if label_order == "devkit" else "sorted")
    if label_order == "devkit":
        found = "no development kit" if edition is None else "class folders, which come before its archives"
        raise DatasetError(f"{source} has {found}, but --label-order devkit needs ILSVRC's archives; leave it out")
    if source == "digits":
        digits = ClassFolders(write_digits(scratch / "digits"))
        digits.name = "digits"
        if root.is_dir():
            digits.notes.append("digits means the bundled digits; the folder of that name is ./digits")
        return digits
    if not os.path.lexists(root):
        raise DatasetError(
            f"no such folder: {root}; name a folder with train/<class>/*.jpg and val/<class>/*.jpg, a folder with "
            f"ILSVRC's archives, WebDataset shards, or the word digits"
        )
    if not root.exists():
        raise DatasetError(f"{root} is a link that leads nowhere; restore what it names, or name another folder")
    if _has_shards(root, left_out):
        return WebDataset(root)
    if not root.is_dir():
        raise DatasetError(
            f"{root} is neither a folder nor a tar file; name class folders, ILSVRC's archives or WebDataset shards"
        )
    return ClassFolders(root, allow_empty_classes=allow_empty_classes, left_out=left_out)


def _has_shards(root: Path, left_out: Collection[str]) -> bool:
    """Return whether `root` is or has WebDataset shards, and no class folders that come before them."""
    shards = find_shards(root)
    if not shards or root.is_file() or (root / DESCRIPTION).is_file():
        return bool(shards)
    if all(COMPRESSED.search(shard.name) for shard in shards):  # `WebDataset` says how to unpack them
        return not has_images(root, left_out)
    return not has_class_folders(root, left_out)


def _real_paths(scratch: Path) -> Collection[str]:
    """Return the real paths of the folder that is written to and of what it becomes."""
    return {os.path.realpath(path) for path in (scratch, scratch.with_name(scratch.name.removesuffix(".preparing")))}

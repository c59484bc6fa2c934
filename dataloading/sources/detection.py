"""Detect what kind of source is at a path."""

import os
from pathlib import Path

from dataloading.errors import DatasetError
from dataloading.sources.digits import write_digits
from dataloading.sources.entries import Source
from dataloading.sources.folders import ClassFolders
from dataloading.sources.held_out import HeldOut
from dataloading.sources.ilsvrc import ILSVRC, find_edition
from dataloading.sources.webdataset import WebDataset, find_shards


def open_source(
    source: str | os.PathLike[str],
    *,
    label_order: str = "sorted",
    validation_every: int | None = None,
    scratch: Path,
) -> Source:
    """Detect and open the source at the path `source`.

    Args:
        source: a folder with the archives of ILSVRC2012 or ILSVRC2010, a folder or tar file of WebDataset shards, class
            folders, or the word "digits" (these are written to `scratch` first).
        label_order: "sorted" or "devkit"; only ILSVRC's archives have "devkit".
        validation_every: if there is no validation set, hold out every n-th training image of each class; 0 means no
            validation set.
        scratch: folder in which files may be written.

    Raises:
        DatasetError: there is nothing usable, or an option does not apply to it.
    """
    found = _detect(source, label_order, scratch)
    if "val" in found.splits:
        if validation_every:
            raise DatasetError(f"{source} has a validation set; leave validation_every out")
        return found
    if validation_every is None:
        raise DatasetError(
            f"{source} has training images but no validation set; add val/ with the same classes, or hold out every "
            f"tenth image: python -m dataloading.prepare {source} DEST --validation-every 10"
        )
    if validation_every == 0:
        return found
    if validation_every < 2:
        raise DatasetError(f"validation_every must be at least 2, or 0 for no validation set, got {validation_every}")
    return HeldOut(found, validation_every)


def _detect(source: str | os.PathLike[str], label_order: str, scratch: Path) -> Source:
    if label_order not in ("sorted", "devkit"):
        raise DatasetError(f"label_order must be sorted or devkit, got {label_order!r}")
    root = Path(source)
    edition = find_edition(root) if source != "digits" else None
    if edition is not None:
        return ILSVRC(root, edition, "devkit" if label_order == "devkit" else "sorted")
    if label_order == "devkit":
        raise DatasetError(
            f"{source} has no development kit; label_order must be sorted, because devkit needs ILSVRC's archives"
        )
    if source == "digits":
        digits = ClassFolders(write_digits(scratch / "digits"))
        digits.name = "digits"
        return digits
    if not root.exists():
        raise DatasetError(
            f"no such folder: {root}; name a folder with train/<class>/*.jpg and val/<class>/*.jpg, a folder with "
            f"ILSVRC's archives, WebDataset shards, or the word digits"
        )
    if find_shards(root):
        return WebDataset(root)
    if not root.is_dir():
        raise DatasetError(
            f"{root} is neither a folder nor a tar file; name class folders, ILSVRC's archives or WebDataset shards"
        )
    return ClassFolders(root)

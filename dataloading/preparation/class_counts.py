"""Check that every class has images in every split: when they are listed, and when they are prepared."""

from collections import Counter
from pathlib import Path

import numpy as np

from dataloading.errors import DatasetError
from dataloading.preparation.images import ImageOptions
from dataloading.preparation.shard_plan import read_tasks
from dataloading.process import command
from dataloading.shards import REJECTED, index_name
from dataloading.sources.entries import Source
from dataloading.sources.notes import first_few, note


def check_listed(source: Source, folder: Path, options: ImageOptions, *, allow_empty_classes: bool) -> None:
    """Check the plan in `folder`, before the work begins.

    Raises:
        DatasetError: there are not two classes, a split has no usable image, or a class has none in a split and
            `allow_empty_classes` is False.
    """
    counts, problems = {split: Counter[int]() for split in source.splits}, dict[str, str]()
    for task in read_tasks(source, folder, options):
        for entry in task.entries:
            if not entry.problem:
                counts[task.split][entry.label] += 1
            else:
                problems.setdefault(task.split, f"; the first, {entry.name}: {entry.problem}")
    for split, count in counts.items():
        if not count:
            raise DatasetError(f"{source.name} has no usable images for {split}{problems.get(split, '; add some')}")
    if len(source.classes) < 2 and len(source.splits) > 1:
        raise DatasetError(
            f"{source.name} has only one class, {source.classes[0]}, but a classifier needs at least two; label the "
            f"images of each class differently"
        )
    empty = _empty(source, counts)
    if empty and not allow_empty_classes:
        raise DatasetError(
            f"{source.name}: no images of {_text(empty)}{_places(source, empty)}; add some, leave the class out of "
            f"every split, or {_how_to_allow(source)}"
        )


def check_prepared(source: Source, folder: Path, *, allow_empty_classes: bool) -> None:
    """Check the indices in `folder`; if empty classes are allowed, print which ones there are.

    Raises:
        DatasetError: all images of a class in a split were rejected, and `allow_empty_classes` is False.
    """
    counts = {split: Counter[int]() for split in source.splits}
    for split, count in counts.items():
        labels, images = np.unique(np.load(folder / index_name(split))["label"], return_counts=True)
        count.update(dict(zip(labels.tolist(), images.tolist(), strict=True)))
    empty = _empty(source, counts)
    if empty and not allow_empty_classes:
        raise DatasetError(
            f"{source.name}: all images of {_text(empty)} were rejected, for the reasons in {folder / REJECTED}; "
            f"replace them and remove {folder} to start again, or {_how_to_allow(source)}"
        )
    if empty:
        note(f"{source.name}: no images of {_text(empty)}")


def _how_to_allow(source: Source) -> str:
    every = source.made().get("validation_every")
    options = ["--allow-empty-classes", *(["--validation-every", every] if every else [])]
    return f"go on although it is empty: {command('dataloading.prepare', source.root, 'DEST', *options)}"


def _places(source: Source, empty: dict[str, list[str]]) -> str:
    """Return where the images of these classes should be, in brackets, or an empty string."""
    labels = {name: label for label, name in enumerate(source.classes)}
    folders = [source.class_folder(split, labels[name]) for split in empty for name in empty[split]]
    names = list(dict.fromkeys(str(folder) for folder in folders if folder))
    return f" ({first_few(names)})" if names else ""


def _empty(source: Source, counts: dict[str, Counter[int]]) -> dict[str, list[str]]:
    """Return the names of the classes without images by split, for splits that have such classes."""
    found = {split: [name for label, name in enumerate(source.classes) if not counts[split][label]] for split in counts}
    return {split: names for split, names in found.items() if names}


def _text(empty: dict[str, list[str]]) -> str:
    return " and of ".join(f"{first_few(names)} for {split}" for split, names in empty.items())

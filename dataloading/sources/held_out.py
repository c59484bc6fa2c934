"""A validation set taken from the training set of a source that has none."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dataloading.errors import DatasetError
from dataloading.sources.entries import IMAGE_SUFFIXES, Entry, Source
from dataloading.sources.notes import first_few

# First bytes of image files. Those in the second line could also begin a text, so they count without a suffix only.
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"II*\0", b"MM\0*", b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51")
_SHORT_SIGNATURES = (b"BM", b"P1", b"P2", b"P3", b"P4", b"P5", b"P6", b"\x1f\x8b")


class HeldOut:
    """Wraps a source without a validation set: every `every`-th training image of each class becomes one.

    Files that are no images, such as captions beside them, are not counted.

    Args:
        source: the source.
        every: at least 2.
        allow_empty_classes: classes may have too few images to hold one out.
    """

    def __init__(self, source: Source, every: int, *, allow_empty_classes: bool = False) -> None:
        self._source, self._every, self._allow_empty_classes = source, every, allow_empty_classes
        self.root = source.root
        self.name, self.classes, self.words, self.notes = source.name, source.classes, source.words, source.notes
        self.splits = ("train", "val", *(split for split in source.splits if split != "train"))

    def entries(self, split: str) -> Iterator[Entry]:
        """Yield the images of `split` in the source's order. The first image of a class is always a training image.

        Raises:
            DatasetError: a class has too few images to hold one out.
        """
        if split not in ("train", "val"):
            yield from self._source.entries(split)
            return
        seen: dict[int, int] = {}
        for entry in self._source.entries("train"):
            is_held_out = False
            if _is_image(entry):
                seen[entry.label] = number = seen.get(entry.label, 0) + 1
                is_held_out = number % self._every == 0
            if is_held_out == (split == "val"):
                yield entry
        if not self._allow_empty_classes:
            self._check_enough(seen)

    def class_folder(self, split: str, label: int) -> Path | None:
        """Return the folder with the images of a class."""
        return self._source.class_folder("train" if split == "val" else split, label)

    def made(self) -> dict[str, Any]:
        """Return what `dataset.json` records about the source."""
        return {**self._source.made(), "validation_every": self._every}

    def _check_enough(self, images: dict[int, int]) -> None:
        """Check that every class has an image to hold out."""
        few = {self.classes[label]: count for label, count in sorted(images.items()) if count < self._every}
        if not few:
            return
        lowest = min(few.values())
        remedy = f"use --validation-every {lowest}" if lowest > 1 else "add images to the classes that have 1"
        raise DatasetError(
            f"--validation-every {self._every} holds no image out of {first_few([*few])}, which "
            f"{'has' if len(few) == 1 else 'have'} {_range([*few.values()])}; {remedy}, or allow classes without "
            f"validation images: --allow-empty-classes"
        )


def _range(counts: list[int]) -> str:
    if max(counts) == 1:
        return "1 image"
    return f"{min(counts)} images" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)} images"


def _is_image(entry: Entry) -> bool:
    """Return whether an entry has a name like an image's or, if that says nothing, begins like one."""
    if entry.problem or not entry.length:
        return False
    suffix = os.path.splitext(entry.name)[1].lower()
    if suffix in IMAGE_SUFFIXES or entry.offset:  # archives list images only
        return True
    with open(entry.path, "rb") as file:
        start = file.read(12)
    is_webp = start.startswith(b"RIFF") and start.endswith(b"WEBP")
    return is_webp or start.startswith(_SIGNATURES) or (not suffix and start.startswith(_SHORT_SIGNATURES))

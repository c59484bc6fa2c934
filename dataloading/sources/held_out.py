"""A validation set taken from the training set of a source that has none."""

from collections.abc import Iterator
from typing import Any

from dataloading.sources.entries import Entry, Source


class HeldOut:
    """Wraps a source without a validation set: every `every`-th training image of each class becomes one."""

    def __init__(self, source: Source, every: int) -> None:
        self._source, self._every = source, every
        self.name, self.classes, self.words = source.name, source.classes, source.words
        self.splits = ("train", "val", *(split for split in source.splits if split != "train"))

    def entries(self, split: str) -> Iterator[Entry]:
        """Yield the images of `split` in the source's order. The first image of a class is always a training image."""
        if split not in ("train", "val"):
            yield from self._source.entries(split)
            return
        seen: dict[int, int] = {}
        for entry in self._source.entries("train"):
            seen[entry.label] = number = seen.get(entry.label, 0) + 1
            if (number % self._every == 0) == (split == "val"):
                yield entry

    def made(self) -> dict[str, Any]:
        """Return what `dataset.json` records about the source."""
        return {**self._source.made(), "validation_every": self._every}

"""What every source provides: a list of entries per split, and class names."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

IMAGE_SUFFIXES = frozenset(
    {".bmp", ".gif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg"}
    | {".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"}
)

SPLITS: tuple[str, ...] = ("train", "val", "test")


class Entry(NamedTuple):
    """One image of a source.

    Attributes:
        path: file that contains the image.
        offset, length: range of the image's bytes in that file.
        label: index of the class.
        name: name of the image in messages, in `rejected.csv` and, reduced to plain letters, in the key of the sample.
        problem: why the image cannot be used, if the source knows a reason. The text is written to `rejected.csv`, so
            rewording one changes the fingerprint of prepared data sets.
    """

    path: str
    offset: int
    length: int
    label: int
    name: str
    problem: str = ""


class Source(Protocol):
    """A list of images to prepare.

    Attributes:
        root: the folder or file with the images.
        name: name of the data set.
        classes: class names by label; complete once all entries have been listed.
        words: a description of each class in words, or None.
        splits: ("train", "val") or more or fewer.
        notes: what the source leaves out, for the person at the terminal.
    """

    root: Path
    name: str
    classes: list[str]
    words: list[str] | None
    splits: tuple[str, ...]
    notes: list[str]

    def entries(self, split: str) -> Iterator[Entry]:
        """Yield the images of `split`, always in the same order."""
        ...

    def class_folder(self, split: str, label: int) -> Path | None:
        """Return the folder with the images of a class, or None if this source has none for each class."""
        ...

    def made(self) -> dict[str, Any]:
        """Return what `dataset.json` records about the source."""
        ...

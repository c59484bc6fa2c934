"""Names of data sets, splits, classes and files: what a set is called, which folder is which split, which names look
alike, and in which order people list them.
"""

import codecs
import difflib
import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

from dataloading.errors import DatasetError

SPLIT_FOLDERS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
"""Folder names by split, in any case."""

_SPLIT_WORDS = {split: re.compile(rf"(?<![a-z])({'|'.join(names)})(?![a-z])") for split, names in SPLIT_FOLDERS.items()}


def split_of_folder(name: str) -> str | None:
    """Return the split that a folder of this name holds, or None."""
    return next((split for split, names in SPLIT_FOLDERS.items() if name.lower() in names), None)


def split_in(name: str) -> str | None:
    """Return the first split that has one of its words in `name`, such as "val" for "set-validation-000.tar"."""
    return next((split for split, words in _SPLIT_WORDS.items() if words.search(name.lower())), None)


def split_near(name: str) -> str | None:
    """Return the split that a folder of this name is probably meant to hold, such as "train" for "trian", or None."""
    folders = {folder: split for split, names in SPLIT_FOLDERS.items() for folder in names}
    near = difflib.get_close_matches(name.lower(), folders, 1, cutoff=0.75)
    return split_in(name) or (folders[near[0]] if near else None)


def name_of_set(source: Path) -> str:
    """Return what to call the data set at a path: its last name that no split has, as "photos" for ``photos/train``."""
    path = Path(os.path.realpath(source))
    names = [place.name for place in (path, *path.parents[:-1])]
    return next((name for name in names if name and not split_of_folder(name)), path.name or "images")


def destination_for(source: Path) -> str:
    """Return a folder to propose for the data set prepared from `source`, or DEST if that exists already."""
    place = Path("prepared", name_of_set(source))
    return "DEST" if os.path.lexists(place) else str(place)


def read_class_names(path: Path) -> list[str]:
    """Read class names, one per line, without byte-order mark, blank lines, and blanks around the names.

    Raises:
        DatasetError: there are none, or some cannot be told apart.
        OSError, ValueError: the file cannot be read or decoded.
    """
    data = path.read_bytes()
    is_utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    lines = re.split(r"\r\n|\r|\n", data.decode("utf-16" if is_utf16 else "utf-8-sig"))
    names = [name for line in lines if (name := line.strip())]
    if not names:
        raise DatasetError(f"{path} has no class names; write one per line, or remove the file")
    check_distinct(names, str(path))
    return names


def check_distinct(names: Iterable[str], where: str) -> None:
    """Check that no two names look the same. Raises `DatasetError` with the two."""
    seen: dict[str, tuple[int, str]] = {}
    for number, name in enumerate(names, 1):
        first, other = seen.setdefault(looks(name), (number, name))
        if first != number:
            raise DatasetError(
                f"{where}: classes {first} and {number} cannot be told apart: {other!r} and {name!r}; give each class "
                f"a name of its own"
            )


def natural_key(name: str) -> tuple[tuple[str | tuple[int, str], ...], str]:
    """Return a sort key that puts names into the order people expect: "img2" before "img10".

    Runs of decimal digits, of any script, compare as numbers; what is between them compares by code points, capitals
    first. Names with the same numbers, such as "img2" and "img02", follow in the order of their code points, so no two
    different names have the same key. Numbers may have any length.
    """
    parts = re.split(r"(\d+)", name)  # text and digits in turn, so keys always compare like with like
    return tuple(_number(part) if index % 2 else part for index, part in enumerate(parts)), name


def _number(digits: str) -> tuple[int, str]:
    """What decimal digits of any script compare as: their count without leading zeros, and the digits themselves."""
    plain = "".join(str(unicodedata.decimal(digit)) for digit in digits).lstrip("0")
    return len(plain), plain


def looks(name: str) -> str:
    """Return a name without what nobody sees: blanks around it, and how its accents are encoded."""
    return unicodedata.normalize("NFC", name).strip()


def classes_in_words(classes: Sequence[str], words: Sequence[str] | None) -> list[str]:
    """Return the names of classes as people read them: "tench" for "n01440764", which "tench, Tinca tinca" describes.

    That is the first synonym, with the class name if another class has the same one. Without words, it is the name.
    """
    if not words:
        return list(classes)
    first = [text.split(",")[0].strip() or name for text, name in zip(words, classes, strict=True)]
    return [word if first.count(word) == 1 else f"{word} ({name})" for word, name in zip(first, classes, strict=True)]

"""WebDataset shards: tar files in which the members of a sample have the same name up to the first dot."""

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dataloading.errors import DatasetError
from dataloading.shards import read_sources, sources_name
from dataloading.sources.archives import Member, members, read_member
from dataloading.sources.entries import IMAGE_SUFFIXES, Entry

_SPLIT_NAMES = {
    "train": re.compile(r"(?<![a-z])(train|training)(?![a-z])"),
    "val": re.compile(r"(?<![a-z])(val|valid|validation)(?![a-z])"),
    "test": re.compile(r"(?<![a-z])test(?![a-z])"),
}
_LABEL_LIMIT = 1 << 20  # largest .cls or .json member in bytes
_CLASS_LIMIT = 10_000_000  # larger labels are taken for damage, not for so many classes


def find_shards(path: Path) -> list[Path]:
    """Return `path` itself if it is a tar file, else the tar files in it and in its train/, val/ and test/, sorted."""
    if path.is_file():
        return [path] if ".tar" in path.name else []
    folders = [path, *(path / name for name in ("train", "val", "validation", "test"))]
    return sorted(file for folder in folders for file in folder.glob("*.tar"))


class WebDataset:
    """Samples with an image and an integer label, in ``<key>.cls`` or as "label" in ``<key>.json``.

    The split of a shard follows from its name or its folder's name ("train", "val" or "validation", "test"). If no name
    has one of these words, all shards are training shards. Class names come from ``classes.txt`` (one per line) or
    ``dataset.json`` beside the shards; otherwise they are the numbers. The samples of a prepared data set keep the
    names of their source files.

    Raises:
        DatasetError: there are no training shards, or the files beside the shards cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.root, shards = path, find_shards(path)
        self.name = path.resolve().name.removesuffix(".tar")
        named = [(split, shard) for shard in shards for split in [_split_of(shard, path)] if split is not None]
        if not named:
            named = [("train", shard) for shard in shards]
        self._shards = {split: [shard for name, shard in named if name == split] for split in _SPLIT_NAMES}
        self.splits = tuple(split for split in _SPLIT_NAMES if self._shards[split])
        if "train" not in self.splits:
            raise DatasetError(
                f"{path} has no training shards; name them with the word train, such as train-000000.tar"
            )
        folder = path if path.is_dir() else path.parent
        self._sources = {split: _sources(folder / sources_name(split)) for split in self.splits}
        self._names = _class_names(folder)
        self.classes: list[str] = self._names or []
        self.words: list[str] | None = None

    def entries(self, split: str) -> Iterator[Entry]:
        """Yield the samples of `split`, shard by shard. Without class names, `classes` grows with the largest label."""
        for shard in self._shards[split]:
            for key, group in itertools.groupby(members(shard), key=lambda member: _key(member.name)):
                parts = {member.name[len(key) + 1 :].lower(): member for member in group}
                yield self._entry(shard, self._sources[split].get(key, f"{shard.name}/{key}"), parts)

    def made(self) -> dict[str, Any]:
        """Return what `dataset.json` records about the source."""
        return {"source": "WebDataset shards"}

    def _entry(self, shard: Path, name: str, parts: dict[str, Member]) -> Entry:
        images = [member for suffix, member in parts.items() if f".{suffix.rsplit('.', 1)[-1]}" in IMAGE_SUFFIXES]
        if len(images) != 1:
            return Entry(str(shard), 0, 0, 0, name, f"{len(images)} images in one sample; wanted: 1")
        image = images[0]
        try:
            label = _label(shard, parts)
        except (ValueError, KeyError, TypeError) as error:
            return Entry(str(shard), image.offset, image.length, 0, name, f"no usable label: {error}")
        self._check_label(label, name)
        return Entry(str(shard), image.offset, image.length, label, name, image.problem)

    def _check_label(self, label: int, name: str) -> None:
        """Check the range of a label, after making room for it in `classes` if there are no class names."""
        if self._names is None and label >= len(self.classes) and label < _CLASS_LIMIT:
            self.classes += [str(number) for number in range(len(self.classes), label + 1)]
        if not 0 <= label < len(self.classes):
            allowed = f"0 to {len(self.classes) - 1}" if self._names else f"0 to {_CLASS_LIMIT - 1:,}"
            raise DatasetError(f"label {label} of {name} is out of range: it must be {allowed}; correct the shard")


def _key(name: str) -> str:
    """Return a member's name up to the first dot of its file name."""
    folder, _, file = name.rpartition("/")
    return f"{folder}/{file.split('.', 1)[0]}" if folder else file.split(".", 1)[0]


def _split_of(shard: Path, root: Path) -> str | None:
    for text in (shard.name.lower(), "" if shard.parent == root or shard == root else shard.parent.name.lower()):
        for split, pattern in _SPLIT_NAMES.items():
            if pattern.search(text):
                return split
    return None


def _label(shard: Path, parts: dict[str, Member]) -> int:
    if "cls" in parts:
        return int(read_member(shard, parts["cls"], _LABEL_LIMIT))
    if "json" in parts:
        label = json.loads(read_member(shard, parts["json"], _LABEL_LIMIT))["label"]
        if type(label) is not int:
            raise ValueError(f"{label!r} is not a whole number")
        return label
    raise ValueError("neither .cls nor .json")


def _sources(path: Path) -> dict[str, str]:
    try:
        return read_sources(path) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise DatasetError(
            f"cannot read the names of source files in {path}: {error}; repair or remove the file"
        ) from None


def _class_names(folder: Path) -> list[str] | None:
    try:
        if (folder / "classes.txt").is_file():
            return (folder / "classes.txt").read_text(encoding="utf-8").splitlines()
        if (folder / "dataset.json").is_file():
            return [str(name) for name in json.loads((folder / "dataset.json").read_bytes())["classes"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"cannot read the class names in {folder}: {error}; repair or remove the file") from None
    return None

"""WebDataset shards: tar files in which the members of a sample have the same name up to the first dot."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dataloading.errors import DatasetError
from dataloading.shards import read_sources, sources_name
from dataloading.sources.archives import Member, how_to_unpack, members, read_member
from dataloading.sources.entries import IMAGE_SUFFIXES, SPLITS, Entry
from dataloading.sources.folder_listing import COMPRESSED, has_images, look
from dataloading.sources.names import check_distinct, name_of_set, read_class_names, split_in, split_of_folder
from dataloading.sources.notes import first_few

_LABEL_LIMIT = 1 << 20  # largest .cls or .json member in bytes
_CLASS_LIMIT = 10_000_000  # larger labels are taken for damage, not for so many classes


def find_shards(path: Path) -> list[Path]:
    """Return `path` itself if it is a tar file, else the tar files in it and in the folders of its splits, sorted.

    Compressed tar files count, so that `WebDataset` can refuse them.
    """
    if path.is_file():
        return [path] if ".tar" in path.name or COMPRESSED.search(path.name) else []
    if not path.is_dir():
        return []
    folders = [path, *(path / name for name in look(path).folders if split_of_folder(name))]
    return sorted(folder / name for folder in folders for name in look(folder).files if _is_shard(name))


class WebDataset:
    """Samples with an image and an integer label, in ``<key>.cls`` or as "label" in ``<key>.json``.

    The members of a sample need not be neighbours in the shard. The split of a shard follows from its name or its
    folder's name ("train" or "training", "val", "valid" or "validation", "test" or "testing"). If no name has one of
    these words, all shards are training shards. A test split without labels is left out. Class names come from
    ``classes.txt`` (one per line) or ``dataset.json`` beside the shards; otherwise they are the numbers. The samples of
    a prepared data set keep the names of their source files.

    Attributes:
        notes: what is left out.

    Raises:
        DatasetError: there are no training shards, some are compressed, or the files beside the shards cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.root, self.notes = path, list[str]()
        self.name = name_of_set(path).removesuffix(".tar")
        self._shards = self._shards_by_split(find_shards(path))
        self.splits = tuple(split for split in SPLITS if self._shards[split])
        if "train" not in self.splits:
            raise DatasetError(
                f"{path} has no training shards; name them with the word train, such as train-000000.tar"
            )
        folder = path if path.is_dir() else path.parent
        self._check_no_class_folders()
        self._sources = {split: _sources(folder / sources_name(split)) for split in self.splits}
        self._names = _class_names(folder)
        self.classes: list[str] = self._names or []
        self.words: list[str] | None = None
        if "test" in self.splits and not self._has_labels("test"):
            self.notes.append(f"{self._shards['test'][0]} has no labels; the test shards are left out")
            self.splits = tuple(split for split in self.splits if split != "test")

    def entries(self, split: str) -> Iterator[Entry]:
        """Yield the samples of `split`, shard by shard, in the order of the shard; then those whose members are apart.

        Without class names, `classes` grows with the largest label.
        """
        incomplete: dict[str, tuple[Path, bool]] = {}
        for shard in self._shards[split]:
            for name, image, label, problem in self._samples(split, shard):
                if problem:
                    _check_not_cut(incomplete, shard, name, has_image=image.length > 0)
                if label == -1 and split == "test":
                    label, problem = 0, problem or "no usable label: -1"
                if not problem:
                    self._check_label(label, name)
                yield Entry(str(shard), image.offset, image.length, label, name, problem or image.problem)

    def class_folder(self, split: str, label: int) -> None:
        """Return None: classes have no folders."""

    def made(self) -> dict[str, Any]:
        """Return what `dataset.json` records about the source."""
        return {"source": "WebDataset shards"}

    # --- shards -------------------------------------------------------------------------------------------------------

    def _shards_by_split(self, shards: list[Path]) -> dict[str, list[Path]]:
        split_of = {shard: _split_of(shard, self.root) for shard in shards}
        if not any(split_of.values()):
            split_of = dict.fromkeys(shards, "train")
        packed = [shard for shard in shards if COMPRESSED.search(shard.name)]
        wanted = [shard for shard in packed if split_of[shard]]
        if wanted:
            raise DatasetError(f"{wanted[0]} is compressed; {how_to_unpack(wanted[0]) or 'decompress it first'}")
        others = [shard.name for shard in shards if split_of[shard] is None]
        if others:
            self.notes.append(
                f"{self.root}: {first_few(others)} left out: no name of a split (train, val, test) in the names"
            )
        return {split: [shard for shard in shards if split_of[shard] == split] for split in SPLITS}

    def _check_no_class_folders(self) -> None:
        """Check that no split has class folders in place of shards."""
        for name in look(self.root).folders if self.root.is_dir() else []:
            split, folder = split_of_folder(name), self.root / name
            if split and not self._shards[split] and any(has_images(folder / inner) for inner in look(folder).folders):
                raise DatasetError(
                    f"{self.root} has shards for train but class folders in {folder}; use shards or class folders for "
                    f"every split"
                )

    def _has_labels(self, split: str) -> bool:
        """Return whether any sample of a split has a label other than -1."""
        return any(
            not problem and label != -1
            for shard in self._shards[split]
            for _, _, label, problem in self._samples(split, shard)
        )

    # --- samples ------------------------------------------------------------------------------------------------------

    def _samples(self, split: str, shard: Path) -> Iterator[tuple[str, Member, int, str]]:
        """Yield the name, image and label of each sample of a shard, and why it cannot be used, if so."""
        apart: dict[str, list[Member]] = {}
        for key, group in itertools.groupby(members(shard), key=lambda member: _key(member.name)):
            parts = list(group)
            image, label, problem = _sample(shard, key, parts)
            if problem:  # the rest may come later
                apart.setdefault(key, []).extend(parts)
            else:
                yield self._name(split, shard, key), image, label, ""
        for key, parts in apart.items():
            image, label, problem = _sample(shard, key, parts)
            if problem:
                _check_dots(shard, key, parts)
            yield self._name(split, shard, key), image, label, problem

    def _name(self, split: str, shard: Path, key: str) -> str:
        return self._sources[split].get(key, f"{shard.name}/{key}")

    def _check_label(self, label: int, name: str) -> None:
        """Check the range of a label, after making room for it in `classes` if there are no class names."""
        if self._names is None and label >= len(self.classes) and label < _CLASS_LIMIT:
            self.classes += [str(number) for number in range(len(self.classes), label + 1)]
        if not 0 <= label < len(self.classes):
            allowed = f"0 to {len(self.classes) - 1}" if self._names else f"0 to {_CLASS_LIMIT - 1:,}"
            raise DatasetError(f"label {label} of {name} is out of range: it must be {allowed}; correct the shard")


def _is_shard(name: str) -> bool:
    return name.lower().endswith(".tar") or COMPRESSED.search(name) is not None


def _key(name: str) -> str:
    """Return a member's name up to the first dot of its file name."""
    folder, _, file = name.rpartition("/")
    return f"{folder}/{file.split('.', 1)[0]}" if folder else file.split(".", 1)[0]


def _suffix(key: str, member: Member) -> str:
    """Return what follows the key in a member's name, such as "jpg"."""
    return member.name[len(key) + 1 :].lower()


def _split_of(shard: Path, root: Path) -> str | None:
    return split_in(shard.name) or (None if root in (shard, shard.parent) else split_of_folder(shard.parent.name))


def _sample(shard: Path, key: str, parts: list[Member]) -> tuple[Member, int, str]:
    """Return the image and the label of a sample, and why it cannot be used, if so."""
    images = [member for member in parts if f".{_suffix(key, member).rsplit('.', 1)[-1]}" in IMAGE_SUFFIXES]
    if len(images) != 1:
        return Member(key, 0, 0), 0, f"{len(images)} images in one sample; wanted: 1"
    try:
        return images[0], _label(shard, key, parts), ""
    except (ValueError, KeyError, TypeError) as error:
        return images[0], 0, f"no usable label: {error}"


def _label(shard: Path, key: str, parts: list[Member]) -> int:
    for suffix in ("cls", "json"):
        found = [member for member in parts if _suffix(key, member) == suffix]
        if len(found) > 1:
            raise ValueError(f"{len(found)} files .{suffix} in one sample")
        if found:
            content = read_member(shard, found[0], _LABEL_LIMIT)
            label = int(content) if suffix == "cls" else json.loads(content)["label"]
            if type(label) is not int:
                raise ValueError(f"{label!r} is not a whole number")
            return label
    raise ValueError("neither .cls nor .json")


def _check_not_cut(incomplete: dict[str, tuple[Path, bool]], shard: Path, name: str, *, has_image: bool) -> None:
    """Raise `DatasetError` if the image and the label of a sample are in two shards.

    Args:
        incomplete: the incomplete samples so far by key: the shard, and whether it has the image. This one is added.
        shard, name, has_image: an incomplete sample.
    """
    key = name.removeprefix(f"{shard.name}/")
    other, other_has_image = incomplete.setdefault(key, (shard, has_image))
    if other != shard and other_has_image != has_image:
        raise DatasetError(
            f"sample {key} is cut in two, one part in {other}, the other in {shard}; write all members of a sample "
            f"into one shard"
        )


def _check_dots(shard: Path, key: str, parts: list[Member]) -> None:
    """Raise `DatasetError` if a sample cannot be used because a name has a dot before the one of its suffix."""
    for member in parts:
        *dots, last = _suffix(key, member).split(".")
        if dots and (f".{last}" in IMAGE_SUFFIXES or last in ("cls", "json")):
            raise DatasetError(
                f"{shard}: {member.name} has a dot in its key, but a key ends at the first dot (here {key}); write "
                f"the shard again with other characters in place of dots"
            )


def _sources(path: Path) -> dict[str, str]:
    try:
        return read_sources(path) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise DatasetError(
            f"cannot read the names of source files in {path}: {error}; repair it or move it away"
        ) from None


def _class_names(folder: Path) -> list[str] | None:
    try:
        if (folder / "classes.txt").is_file():
            return read_class_names(folder / "classes.txt")
        if (folder / "dataset.json").is_file():
            names = [str(name) for name in json.loads((folder / "dataset.json").read_bytes())["classes"]]
            check_distinct(names, str(folder / "dataset.json"))
            return names
    except DatasetError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"cannot read the class names in {folder}: {error}; repair it or move it away") from None
    return None

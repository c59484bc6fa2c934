"""ImageNet as its users have it: the archives of ILSVRC2012 and ILSVRC2010, read in place.

Layouts, from the archives' own documentation and the readers that agree on them (torchvision, fuel, cuda-convnet2):

- the training archive holds one tar file per class, ``n01440764.tar``, which holds that class's images;
- the validation (and 2010's test) archive holds the images; the i-th line of the ground truth belongs to the i-th file
  by name, and gives the class's number in the development kit, from 1;
- the development kit's ``meta.mat`` lists the classes: those without children are the 1,000 of the challenge.

ILSVRC2010's ``patch_images.tar`` holds good versions of images that are blank in the archives; some images of 2010 are
gzip-compressed (`images.gunzip` sees to them).
"""

import hashlib
import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dataloading.archives import Member, members
from dataloading.errors import DatasetError
from dataloading.progress import ProgressReport
from dataloading.sources import Entry

LabelOrder = Literal["sorted", "devkit"]
_DEVKIT_LIMIT = 256 * 1024 * 1024  # bytes that a file of the development kit may have when unpacked


@dataclass(frozen=True)
class Edition:
    """File names, and published MD5 sums where there are any, of one year's challenge."""

    year: int
    archives: dict[str, str]
    devkit: str
    test_truth: str | None
    patches: str | None
    md5: dict[str, str]


EDITIONS = (
    Edition(
        2012,
        {"train": "ILSVRC2012_img_train.tar", "val": "ILSVRC2012_img_val.tar"},
        "ILSVRC2012_devkit_t12.tar.gz",
        None,
        None,
        {
            "ILSVRC2012_img_train.tar": "1d675b47d978889d74fa0da5fadfb00e",
            "ILSVRC2012_img_val.tar": "29b22e2961454d5413ddabcf34fc5622",
            "ILSVRC2012_devkit_t12.tar.gz": "fa75699e90414af021442c21a62c3abf",
        },
    ),
    Edition(
        2010,
        {
            "train": "ILSVRC2010_images_train.tar",
            "val": "ILSVRC2010_images_val.tar",
            "test": "ILSVRC2010_images_test.tar",
        },
        "ILSVRC2010_devkit-1.0.tar.gz",
        "ILSVRC2010_test_ground_truth.txt",
        "patch_images.tar",
        {},
    ),
)


def edition_in(folder: Path) -> Edition | None:
    """Return the edition that has an archive of images in `folder`, or None."""
    for edition in EDITIONS:
        if any((folder / name).is_file() for name in edition.archives.values()):
            return edition
    return None


class ILSVRC:
    """The archives of one edition in one folder.

    Args:
        root: the folder that holds the archives and the development kit, under their original names.
        edition: which year's.
        label_order: "sorted" numbers the classes by sorted WordNet id (torchvision, Caffe, timm); "devkit" by their
            number in the development kit (Krizhevsky).
    """

    def __init__(self, root: Path, edition: Edition, label_order: LabelOrder = "sorted") -> None:
        self.root, self.edition, self.label_order = root, edition, label_order
        self.name = f"ILSVRC{edition.year}"
        self.splits = self._splits()
        synsets, self._truth = self._read_devkit()
        if label_order == "sorted":
            synsets = sorted(synsets, key=lambda synset: synset[1])
        self.classes = [wnid for _, wnid, _ in synsets]
        self.words: list[str] | None = [words for _, _, words in synsets]
        self._label_of_wnid = {wnid: label for label, wnid in enumerate(self.classes)}
        self._label_of_number = {number: label for label, (number, _, _) in enumerate(synsets)}
        if "test" in self.splits and edition.test_truth:
            self._truth["test"] = _numbers((root / edition.test_truth).read_bytes(), root / edition.test_truth)

    def entries(self, split: str) -> Iterator[Entry]:
        """Yield the images of `split`: training images as the archive has them, the others by file name."""
        patches = self._patches(split)
        for entry in self._train() if split == "train" else self._labelled(split):
            patch = patches.get(entry.name.rsplit("/", 1)[-1])
            if patch is not None:
                archive = self.root / str(self.edition.patches)
                entry = entry._replace(
                    path=str(archive), offset=patch.offset, length=patch.length, problem=patch.problem
                )
            yield entry

    def made(self) -> dict[str, Any]:
        return {"source": self.name, "label_order": self.label_order, "patched": self._patch_archive() is not None}

    def verify(self, *, progress: bool = True) -> None:
        """Compare the archives with their published MD5 sums; raise `DatasetError` where one differs."""
        if not self.edition.md5:
            raise DatasetError(f"no MD5 sums were published for {self.name}; leave --verify out")
        sizes = {name: (self.root / name).stat().st_size for name in self.edition.md5}
        done = 0
        with ProgressReport(f"verifying {self.name}", sum(sizes.values()), unit="bytes", shown=progress) as report:
            for name, wanted in self.edition.md5.items():
                digest = hashlib.md5(usedforsecurity=False)
                with (self.root / name).open("rb") as file:
                    while block := file.read(1 << 22):
                        digest.update(block)
                        done += len(block)
                        report.update(done)
                if digest.hexdigest() != wanted:
                    raise DatasetError(
                        f"{self.root / name} has MD5 {digest.hexdigest()}, published is {wanted}; get it again"
                    )

    # --- what is there ------------------------------------------------------------------------------------------------

    def _splits(self) -> tuple[str, ...]:
        wanted = [self.edition.archives["train"], self.edition.archives["val"], self.edition.devkit]
        missing = [name for name in wanted if not (self.root / name).is_file()]
        test = self.edition.archives.get("test")
        has_test = test is not None and (self.root / test).is_file()
        if has_test and not (self.root / str(self.edition.test_truth)).is_file():
            missing.append(str(self.edition.test_truth))
        if missing:
            raise DatasetError(
                f"{self.root} lacks {', '.join(missing)} of {self.name}; put it beside the other archives"
            )
        return ("train", "val", "test") if has_test else ("train", "val")

    def _read_devkit(self) -> tuple[list[tuple[int, str, str]], dict[str, list[int]]]:
        """Return (number, WordNet id, words) of each class by number, and the validation ground truth."""
        path = self.root / self.edition.devkit
        meta, truth = _devkit_file(path, "/data/meta.mat"), "_validation_ground_truth.txt"
        return _synsets(meta, path, self.edition.year), {"val": _numbers(_devkit_file(path, truth), path)}

    def _patch_archive(self) -> Path | None:
        path = self.root / self.edition.patches if self.edition.patches else None
        return path if path is not None and path.is_file() else None

    def _patches(self, split: str) -> dict[str, Member]:
        """Return the replacement images for `split` by file name."""
        path = self._patch_archive()
        if path is None:
            return {}
        found = ((member.name.split("/"), member) for member in members(path))
        return {parts[-1]: member for parts, member in found if parts[-2:-1] == [split]}

    # --- the images ---------------------------------------------------------------------------------------------------

    def _train(self) -> Iterator[Entry]:
        path, seen = self.root / self.edition.archives["train"], set()
        for inner in members(path):
            wnid = inner.name.rsplit("/", 1)[-1].removesuffix(".tar")
            if wnid not in self._label_of_wnid or inner.problem:
                raise DatasetError(f"{path} holds {inner.name}, which is not the tar file of a class; get it again")
            seen.add(wnid)
            for member in members(path, offset=inner.offset, length=inner.length):
                name = f"{wnid}/{member.name}"
                yield Entry(str(path), member.offset, member.length, self._label_of_wnid[wnid], name, member.problem)
        if missing := [wnid for wnid in self.classes if wnid not in seen]:
            raise DatasetError(f"{path} has no images of {len(missing)} classes, among them {missing[0]}; get it again")

    def _labelled(self, split: str) -> Iterator[Entry]:
        path, truth = self.root / self.edition.archives[split], self._truth[split]
        found = sorted(members(path), key=lambda member: member.name.rsplit("/", 1)[-1])
        if len(found) != len(truth):
            raise DatasetError(
                f"{path} holds {len(found):,} images, the ground truth {len(truth):,} labels; get both again"
            )
        for member, number in zip(found, truth, strict=True):
            if number not in self._label_of_number:
                low, high = min(self._label_of_number), max(self._label_of_number)
                raise DatasetError(f"label {number} of {member.name} is out of range: {self.name} has {low} to {high}")
            yield Entry(str(path), *member[1:3], self._label_of_number[number], member.name, member.problem)


def _devkit_file(path: Path, ending: str) -> bytes:
    """Return the one file of the development kit whose name ends with `ending`."""
    try:
        with tarfile.open(path, "r:gz") as kit:
            for info in kit:
                if info.isreg() and f"/{info.name}".endswith(ending):
                    if info.size > _DEVKIT_LIMIT:
                        break
                    file = kit.extractfile(info)
                    return file.read() if file else b""
    except (OSError, EOFError, tarfile.TarError) as error:
        raise DatasetError(f"{path} is damaged: {error}; get it again") from None
    raise DatasetError(f"{path} holds no file *{ending}; get it again")


def _synsets(meta: bytes, path: Path, year: int) -> list[tuple[int, str, str]]:
    """Return (number, WordNet id, words) of the classes without children, by number."""
    from scipy.io import loadmat

    try:
        table = np.atleast_1d(loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"])
        leaves = [row for row in table if int(row["num_children"]) == 0]
        return sorted((int(row[f"ILSVRC{year}_ID"]), str(row["WNID"]), str(row["words"])) for row in leaves)
    except Exception as error:  # SciPy's reader raises whatever the parsing of damaged bytes leads it to
        raise DatasetError(
            f"meta.mat in {path} cannot be read: {type(error).__name__}: {error}; get it again"
        ) from None


def _numbers(text: bytes, path: Path) -> list[int]:
    try:
        return [int(line) for line in text.split()]
    except ValueError as error:
        raise DatasetError(f"the ground truth in {path} is damaged: {error}; get it again") from None

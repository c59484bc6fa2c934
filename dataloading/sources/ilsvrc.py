"""ImageNet: the archives of ILSVRC2012 and ILSVRC2010 as they are downloaded, read in place.

The layout, from the archives' own documentation and from readers that agree on it (torchvision, fuel, cuda-convnet2):

- the training archive contains one tar file per class, such as ``n01440764.tar``, with the images of that class;
- the validation archive, and the test archive of 2010, contain images; line i of the ground truth belongs to file i in
  the order of the names, and is the number of its class in the development kit, counted from 1;
- ``meta.mat`` in the development kit lists the classes: those without children are the 1,000 of the challenge.

ILSVRC2010's ``patch_images.tar`` has replacements for images that are blank in the archives. Some images of 2010 are
compressed with gzip; `preparation.images.gunzip` decompresses them.
"""

import hashlib
import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dataloading.errors import DatasetError
from dataloading.process import install_command
from dataloading.progress_bar import ProgressBar
from dataloading.sources.archives import Member, members
from dataloading.sources.entries import Entry

LabelOrder = Literal["sorted", "devkit"]
_DEVKIT_LIMIT = 256 * 1024 * 1024  # largest file of the development kit, decompressed, in bytes


@dataclass(frozen=True)
class Edition:
    """The files of one year's challenge.

    Attributes:
        year: 2010 or 2012.
        archives: archive of images by split.
        devkit: the development kit.
        test_truth: ground truth of the test set, if it was published.
        patches: archive with replacements for blank images, if there is one.
        md5: published MD5 sums by file name.
    """

    year: int
    archives: dict[str, str]
    devkit: str
    test_truth: str | None
    patches: str | None
    md5: dict[str, str]


EDITIONS = (
    Edition(
        year=2012,
        archives={"train": "ILSVRC2012_img_train.tar", "val": "ILSVRC2012_img_val.tar"},
        devkit="ILSVRC2012_devkit_t12.tar.gz",
        test_truth=None,
        patches=None,
        md5={
            "ILSVRC2012_img_train.tar": "1d675b47d978889d74fa0da5fadfb00e",
            "ILSVRC2012_img_val.tar": "29b22e2961454d5413ddabcf34fc5622",
            "ILSVRC2012_devkit_t12.tar.gz": "fa75699e90414af021442c21a62c3abf",
        },
    ),
    Edition(
        year=2010,
        archives={
            "train": "ILSVRC2010_images_train.tar",
            "val": "ILSVRC2010_images_val.tar",
            "test": "ILSVRC2010_images_test.tar",
        },
        devkit="ILSVRC2010_devkit-1.0.tar.gz",
        test_truth="ILSVRC2010_test_ground_truth.txt",
        patches="patch_images.tar",
        md5={},
    ),
)


def find_edition(folder: Path) -> Edition | None:
    """Return the edition whose archives of images are in `folder`, or None."""
    for edition in EDITIONS:
        if any((folder / name).is_file() for name in edition.archives.values()):
            return edition
    return None


class ILSVRC:
    """The archives of one edition in one folder.

    Args:
        root: the folder with the archives and the development kit, under their original names.
        edition: the files of the year.
        label_order: "sorted" numbers the classes by sorted WordNet id (torchvision, Caffe, timm), "devkit" by their
            number in the development kit (Krizhevsky).

    Raises:
        DatasetError: a file is missing or damaged.
    """

    def __init__(self, root: Path, edition: Edition, label_order: LabelOrder = "sorted") -> None:
        self.root, self.edition, self.label_order = root, edition, label_order
        self.name, self.notes = f"ILSVRC{edition.year}", list[str]()
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
        """Yield the images of `split`: training images in the archive's order, the others sorted by file name."""
        patches = self._patches(split)
        for entry in self._train() if split == "train" else self._labelled(split):
            patch = patches.get(entry.name.rsplit("/", 1)[-1])
            if patch is not None:
                archive = self.root / str(self.edition.patches)
                entry = entry._replace(
                    path=str(archive), offset=patch.offset, length=patch.length, problem=patch.problem
                )
            yield entry

    def class_folder(self, split: str, label: int) -> None:
        """Return None: classes have no folders."""

    def made(self) -> dict[str, Any]:
        """Return what `dataset.json` records about the source."""
        return {"source": self.name, "label_order": self.label_order, "patched": self._patch_archive() is not None}

    def verify(self, *, progress: bool = True) -> None:
        """Compare the archives with their published MD5 sums. Raises `DatasetError` if one differs."""
        if not self.edition.md5:
            raise DatasetError(f"no MD5 sums were published for {self.name}; leave verify out")
        sizes = {name: (self.root / name).stat().st_size for name in self.edition.md5}
        done = 0
        with ProgressBar(f"verifying {self.name}", sum(sizes.values()), unit="bytes", shown=progress) as bar:
            for name, published in self.edition.md5.items():
                digest = hashlib.md5(usedforsecurity=False)
                with (self.root / name).open("rb") as file:
                    while block := file.read(1 << 22):
                        digest.update(block)
                        done += len(block)
                        bar.update(done)
                if digest.hexdigest() != published:
                    raise DatasetError(
                        f"{self.root / name} must have MD5 {published}, got {digest.hexdigest()}; download it again"
                    )

    # --- the files ----------------------------------------------------------------------------------------------------

    def _splits(self) -> tuple[str, ...]:
        needed = [self.edition.archives["train"], self.edition.archives["val"], self.edition.devkit]
        missing = [name for name in needed if not (self.root / name).is_file()]
        test = self.edition.archives.get("test")
        has_test = test is not None and (self.root / test).is_file()
        if has_test and not (self.root / str(self.edition.test_truth)).is_file():
            missing.append(str(self.edition.test_truth))
        if missing:
            raise DatasetError(f"{self.root} lacks {', '.join(missing)} of {self.name}; add it to the other archives")
        return ("train", "val", "test") if has_test else ("train", "val")

    def _read_devkit(self) -> tuple[list[tuple[int, str, str]], dict[str, list[int]]]:
        """Return (number, WordNet id, words) of each class, sorted, and the validation ground truth."""
        path = self.root / self.edition.devkit
        meta, truth = _devkit_file(path, "/data/meta.mat"), "_validation_ground_truth.txt"
        return _synsets(meta, path, self.edition.year), {"val": _numbers(_devkit_file(path, truth), path)}

    def _patch_archive(self) -> Path | None:
        path = self.root / self.edition.patches if self.edition.patches else None
        return path if path is not None and path.is_file() else None

    def _patches(self, split: str) -> dict[str, Member]:
        """Return the replacements for blank images of `split` by file name."""
        path = self._patch_archive()
        if path is None:
            return {}
        found = ((member.name.split("/"), member) for member in members(path))
        return {parts[-1]: member for parts, member in found if parts[-2:-1] == [split]}

    # --- the images ---------------------------------------------------------------------------------------------------

    def _train(self) -> Iterator[Entry]:
        """Yield the training images: the members of each tar file in the training archive."""
        path, seen = self.root / self.edition.archives["train"], set()
        for inner in members(path):
            wnid = inner.name.rsplit("/", 1)[-1].removesuffix(".tar")
            if wnid not in self._label_of_wnid or inner.problem:
                raise DatasetError(
                    f"{path} contains {inner.name}, which is not the tar file of a class; download it again"
                )
            seen.add(wnid)
            for member in members(path, offset=inner.offset, length=inner.length):
                name = f"{wnid}/{member.name}"
                yield Entry(str(path), member.offset, member.length, self._label_of_wnid[wnid], name, member.problem)
        if missing := [wnid for wnid in self.classes if wnid not in seen]:
            raise DatasetError(
                f"{path} has no images of {len(missing)} classes, such as {missing[0]}; download it again"
            )

    def _labelled(self, split: str) -> Iterator[Entry]:
        """Yield the images of a split whose labels are in a ground truth file."""
        path, truth = self.root / self.edition.archives[split], self._truth[split]
        found = sorted(members(path), key=lambda member: member.name.rsplit("/", 1)[-1])
        if len(found) != len(truth):
            raise DatasetError(
                f"{path} has {len(found):,} images, but the ground truth has {len(truth):,} labels; download both again"
            )
        for member, number in zip(found, truth, strict=True):
            if number not in self._label_of_number:
                low, high = min(self._label_of_number), max(self._label_of_number)
                raise DatasetError(f"label {number} of {member.name} is out of range: {self.name} has {low} to {high}")
            yield Entry(str(path), *member[1:3], self._label_of_number[number], member.name, member.problem)


def _devkit_file(path: Path, ending: str) -> bytes:
    """Return the file of the development kit whose name ends with `ending`."""
    try:
        with tarfile.open(path, "r:gz") as kit:
            for info in kit:
                if info.isreg() and f"/{info.name}".endswith(ending):
                    if info.size > _DEVKIT_LIMIT:
                        break
                    file = kit.extractfile(info)
                    return file.read() if file else b""
    except (OSError, EOFError, tarfile.TarError) as error:
        raise DatasetError(f"{path} is damaged: {error}; download it again") from None
    raise DatasetError(f"{path} has no file *{ending}; download it again")


def _synsets(meta: bytes, path: Path, year: int) -> list[tuple[int, str, str]]:
    """Return (number, WordNet id, words) of the classes without children, sorted by number."""
    try:
        from scipy.io import loadmat  # imported here because it is slow to import, and only ILSVRC's archives need it
    except ImportError:
        raise DatasetError(
            f"SciPy, which reads meta.mat in {path}, is not installed; install it with: {install_command('imagenet')}"
        ) from None

    try:
        table = np.atleast_1d(loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"])
        leaves = [row for row in table if int(row["num_children"]) == 0]
        return sorted((int(row[f"ILSVRC{year}_ID"]), str(row["WNID"]), str(row["words"])) for row in leaves)
    except Exception as error:  # SciPy's reader raises arbitrary exceptions for damaged data
        raise DatasetError(
            f"meta.mat in {path} cannot be read: {type(error).__name__}: {error}; download it again"
        ) from None


def _numbers(text: bytes, path: Path) -> list[int]:
    try:
        return [int(line) for line in text.split()]
    except ValueError as error:
        raise DatasetError(f"the ground truth in {path} is damaged: {error}; download it again") from None

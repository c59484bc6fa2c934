"""Which kind of source a path is taken for, and the options that apply to it."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from dataloading import DatasetError
from dataloading.sources.detection import open_source
from dataloading.sources.digits import write_digits
from tests.dataloading.preparation.preparing import quietly
from tests.dataloading.small_sources import class_folders, ilsvrc2012, jpeg, tar_of
from tests.dataloading.sources.listing import listed, opened


def test_a_missing_folder_is_named():
    with pytest.raises(DatasetError, match=r"no such folder: /no/where; name a folder with "):
        opened("/no/where")


def test_a_source_without_validation_set_is_refused_with_the_remedy(tmp_path):
    class_folders(tmp_path)
    shutil.rmtree(tmp_path / "val")
    with pytest.raises(DatasetError, match=r"no validation set; add val/ .* --validation-every 10"):
        opened(tmp_path)
    (tmp_path / "train").rename(tmp_path / "val")
    with pytest.raises(DatasetError, match=r"has val/ but no train/"):
        opened(tmp_path)


@pytest.mark.parametrize("place", ["train", "."])
def test_a_validation_set_can_be_held_out(tmp_path, place):
    class_folders(tmp_path / "all", train=10)
    shutil.rmtree(tmp_path / "all/val")
    root = tmp_path / "all" if place == "train" else tmp_path / "all/train"
    train, val = (listed(root, split, validation_every=5) for split in ("train", "val"))
    assert (len(train), len(val)) == (24, 6)
    assert [entry.label for entry in val] == [0, 0, 1, 1, 2, 2]
    assert not {entry.path for entry in train} & {entry.path for entry in val}
    assert opened(root, validation_every=5).made()["validation_every"] == 5


def test_holding_out_is_refused_where_it_makes_no_sense(folders):
    with pytest.raises(DatasetError, match=r"has a validation set; leave --validation-every out"):
        opened(folders, validation_every=5)
    with pytest.raises(DatasetError, match=r"validation_every must be at least 2, or 0 for no validation set, got 1"):
        opened(folders / "train", validation_every=1)


def test_devkit_order_needs_a_devkit(folders):
    with pytest.raises(DatasetError, match=r"has no development kit, but --label-order devkit needs ILSVRC's archives"):
        opened(folders, label_order="devkit")
    with pytest.raises(DatasetError, match=r"label_order must be sorted or devkit, got 'random'"):
        opened(folders, label_order="random")


@pytest.mark.parametrize(
    "archive",
    ["ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz", "train-000000.tar", "train/n01440764.tar", "photos.zip"],
)
def test_class_folders_come_before_archives_beside_them(tmp_path, archive):
    class_folders(tmp_path)
    (tmp_path / archive).touch()
    source = opened(tmp_path)
    assert source.made() == {"source": "class folders"}
    (note,) = source.notes
    assert archive.rpartition("/")[2] in note
    assert "ignored beside" in note


@pytest.mark.parametrize("archive", ["ILSVRC2012_img_val.tar", "n01440764.tar"])
def test_class_folders_without_splits_come_first_too(tmp_path, archive):
    class_folders(tmp_path)
    (tmp_path / "train" / archive).touch()
    source = opened(tmp_path / "train", validation_every=2)
    assert source.classes == ["class0", "class1", "class2"]
    assert archive in source.notes[0]


def test_the_archives_that_a_user_asks_for_are_not_ignored(tmp_path):
    class_folders(ilsvrc2012(tmp_path))
    assert "ILSVRC2012_img_train.tar" in opened(tmp_path).notes[0]
    with pytest.raises(DatasetError, match=r"has class folders, which come before its archives, but --label-order"):
        opened(tmp_path, label_order="devkit")
    with pytest.raises(DatasetError, match=r"no MD5 sums are published for .*; leave --verify out"):
        quietly(tmp_path, tmp_path / "out", verify=True)


def test_folders_without_images_do_not_hide_archives(tmp_path):
    ilsvrc2012(tmp_path)
    (tmp_path / "train/n01440764").mkdir(parents=True)
    (tmp_path / "train/n01440764/notes.txt").write_text("unpacked later")
    (tmp_path / "val").mkdir()
    assert opened(tmp_path).name == "ILSVRC2012"


@pytest.mark.parametrize(
    ("folders", "wanted"),
    [
        ({"previews": 1}, "WebDataset shards"),
        ({"previews": 1, "texts": 0}, "WebDataset shards"),
        ({"cat": 1, "dog": 1}, "class folders"),
        ({"cat": 1, "dog": 1, "val": 1}, "WebDataset shards"),
        ({"train/cat": 0, "train/dog": 1, "val/cat": 1, "val/dog": 1}, "class folders"),
        ({"train/cat": 0, "train/dog": 0}, "WebDataset shards"),
    ],
)
def test_shards_are_read_unless_class_folders_beside_them_have_images(tmp_path, folders, wanted):
    parts = [part for i in range(4) for part in ((f"{i}.jpg", jpeg(i)), (f"{i}.cls", b"%d" % (i % 2)))]
    (tmp_path / "set.tar").write_bytes(tar_of(parts))
    for name, count in folders.items():
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / ("0.jpg" if count else "0.txt")).write_bytes(jpeg(0))
    source = opened(tmp_path, **({} if "val/cat" in folders else {"validation_every": 2}))
    assert source.made()["source"] == wanted


@pytest.mark.parametrize("count", [0, 1])
def test_a_compressed_archive_beside_images_is_ignored(tmp_path, count):
    (tmp_path / "photos.zip").write_bytes(b"PK\x03\x04...")
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat/0.jpg").write_bytes(jpeg(0)) if count else None
    with pytest.raises(DatasetError, match=r"has only one class folder, cat" if count else r"photos.zip is compressed"):
        opened(tmp_path, validation_every=2)


def test_a_prepared_set_with_folders_in_it_is_still_one(small, tmp_path):
    root = Path(shutil.copytree(small.root, tmp_path / "set"))
    class_folders(root, classes=2)
    assert opened(root).made() == {"source": "WebDataset shards"}


@pytest.mark.parametrize("target", ["/no/where", "loop"])
def test_a_source_that_is_a_link_to_nothing_is_named(tmp_path, target):
    (tmp_path / "loop").symlink_to(tmp_path / target)
    with pytest.raises(DatasetError, match=rf"{tmp_path}/loop is a link that leads nowhere"):
        opened(tmp_path / "loop")


def test_a_folder_called_digits_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    class_folders(tmp_path / "digits")
    assert open_source("digits", scratch=tmp_path / "work").notes == [
        "digits means the bundled digits; the folder of that name is ./digits"
    ]
    assert opened("./digits").made() == {"source": "class folders"}


def test_the_digits_are_written_with_all_their_greys(tmp_path):
    digits = load_digits()
    write_digits(tmp_path, size=8)
    names = {path.stem: path.relative_to(tmp_path).parts[:2] for path in tmp_path.rglob("*.jpg")}
    assert len(names) == 1797
    for label in range(10):
        members = np.flatnonzero(digits.target == label)
        for number, i in enumerate(members):  # the third of every five is for validation
            assert names[f"{i:04d}"] == ("val" if number % 5 == 2 else "train", str(label))
    for i in (0, 1000, 1796):
        pixels = np.asarray(Image.open(tmp_path.joinpath(*names[f"{i:04d}"], f"{i:04d}.jpg"))).astype(float)
        assert pixels.shape == (8, 8)
        assert np.abs(pixels - digits.images[i] * 255 / 16).mean() < 3  # JPEG


def test_a_file_that_is_no_archive_is_refused(tmp_path):
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(b"?")
    with pytest.raises(DatasetError, match=rf"^{photo} is neither a folder nor a tar file; name class folders"):
        open_source(photo, scratch=tmp_path / "scratch")

"""Which kind of source a path is taken for, and the options that apply to it."""

import shutil
from pathlib import Path

import pytest

from dataloading import DatasetError
from dataloading.sources.detection import open_source
from tests.dataloading.preparation.preparing import quietly
from tests.dataloading.small_sources import class_folders, ilsvrc2012
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

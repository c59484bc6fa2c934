"""Which kind of source a path is taken for, and the options that apply to it."""

import shutil

import pytest

from dataloading import DatasetError
from tests.dataloading.small_sources import class_folders
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
    with pytest.raises(DatasetError, match=r"has a validation set; leave validation_every out"):
        opened(folders, validation_every=5)
    with pytest.raises(DatasetError, match=r"validation_every must be at least 2, or 0 for no validation set, got 1"):
        opened(folders / "train", validation_every=1)


def test_devkit_order_needs_a_devkit(folders):
    with pytest.raises(DatasetError, match=r"has no development kit; label_order must be sorted"):
        opened(folders, label_order="devkit")
    with pytest.raises(DatasetError, match=r"label_order must be sorted or devkit, got 'random'"):
        opened(folders, label_order="random")

"""Class folders."""

import pytest

from dataloading import DatasetError
from tests.dataloading.small_sources import class_folders, jpeg
from tests.dataloading.sources.listing import data, listed, opened


def test_class_folders_are_numbered_by_sorted_name(folders):
    source = opened(folders)
    assert source.classes == ["class0", "class1", "class2"]
    assert source.splits == ("train", "val")
    train = listed(folders, "train")
    assert [entry.label for entry in train] == [0] * 8 + [1] * 8 + [2] * 8
    assert [entry.name for entry in train[:2]] == ["train/class0/0000.jpg", "train/class0/0001.jpg"]
    assert data(train[9]) == (folders / "train/class1/0001.jpg").read_bytes()


def test_files_below_a_class_folder_count_and_hidden_ones_do_not(tmp_path):
    class_folders(tmp_path, classes=1, train=1, val=1)
    (tmp_path / "train/class0/more").mkdir()
    (tmp_path / "train/class0/more/a.jpg").write_bytes(jpeg(1))
    (tmp_path / "train/class0/.DS_Store").write_bytes(b"x")
    (tmp_path / "train/.cache").mkdir()
    names = [entry.name for entry in listed(tmp_path, "train")]
    assert names == ["train/class0/0000.jpg", "train/class0/more/a.jpg"]


def test_a_link_that_leads_nowhere_is_listed_with_its_problem(tmp_path):
    class_folders(tmp_path, classes=1, train=1, val=1)
    (tmp_path / "train/class0/b.jpg").symlink_to("nowhere.jpg")
    (tmp_path / "train/class0/c.jpg").symlink_to("0000.jpg")
    _, broken, good = listed(tmp_path, "train")
    assert "No such file" in broken.problem
    assert not good.problem
    assert data(good) == jpeg(0)


def test_a_folder_without_images_is_named(tmp_path):
    with pytest.raises(
        DatasetError, match=f"{tmp_path} contains no images; put the images of each class in a folder of its own"
    ):
        opened(tmp_path)
    (tmp_path / "train").mkdir()
    with pytest.raises(DatasetError, match=r"contains no images"):
        opened(tmp_path)
    (tmp_path / "train/a.jpg").write_bytes(jpeg(0))
    with pytest.raises(DatasetError, match=r"has images but no class folders"):
        opened(tmp_path)


def test_an_empty_class_folder_is_named(tmp_path):
    class_folders(tmp_path)
    (tmp_path / "val/class1/0000.jpg").parent.rename(tmp_path / "away")
    (tmp_path / "val/class1").mkdir()
    with pytest.raises(DatasetError, match=r"class folder .*val/class1 has no images"):
        listed(tmp_path, "val")


def test_class_folders_that_differ_are_named(tmp_path):
    class_folders(tmp_path)
    (tmp_path / "val/class1").rename(tmp_path / "val/klass1")
    with pytest.raises(DatasetError, match=r"only train/ has class1; only val/ has klass1; give both the same"):
        opened(tmp_path)

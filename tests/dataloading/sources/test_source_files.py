"""The files that stand for a source."""

import os
from pathlib import Path

import pytest

from dataloading import DatasetError
from dataloading.sources.source_files import source_files
from tests.dataloading.small_sources import class_folders, ilsvrc2010
from tests.dataloading.sources.listing import listed, opened


def names(source: Path) -> list[str]:
    return sorted(file.name for file in source_files(source))


def test_class_folders_stand_for_the_files_that_are_read(tmp_path):
    source = class_folders(tmp_path / "in", classes=2, train=2, val=1)
    away = tmp_path / "away"
    (source / "train/class1").rename(away)
    (source / "train/class1").symlink_to(away)
    (source / "train/class0/more").mkdir()
    (source / "train/class0/0001.jpg").rename(source / "train/class0/more/0001.jpg")
    for name in ("README.md", "train/Thumbs.db", "train/list.txt", "val/class0/.x.jpg", "val/class0/desktop.ini"):
        (source / name).write_bytes(b"x")
    read = [entry.name for split in opened(source).splits for entry in listed(source, split)]
    assert names(source) == sorted(read)
    assert len(read) == 6


def test_class_folders_without_splits_stand_for_their_files(tmp_path):
    source = class_folders(tmp_path, classes=2, train=1, val=1) / "train"
    for name in ("README.md", "photos.ZIP", "class0/list.txt"):
        (source / name).write_bytes(b"x")
    assert names(source) == ["class0/0000.jpg", "class0/list.txt", "class1/0000.jpg", "photos.ZIP"]
    (source / "class0").rename(source / "train")  # now it is a split
    for name in ("list.txt", "0.tar", "classes.txt", "deep"):
        (source / "train" / name).mkdir() if name == "deep" else (source / "train" / name).touch()
    (source / "train/deep/list.txt").touch()
    assert [name for name in names(source) if name.startswith("train/")] == [
        "train/0.tar",
        "train/classes.txt",
        "train/deep/list.txt",
    ]


def test_archives_stand_for_themselves_and_what_describes_them(tmp_path, small):
    source = ilsvrc2010(tmp_path / "in")
    (source / "README.md").write_text("x")
    assert names(source) == sorted(path.name for path in source.iterdir() if path.name != "README.md")
    found = names(small.root)
    assert "train-000000.tar" in found
    assert "train-sources.csv" in found
    (tmp_path / "x.tar").write_bytes(b"")
    (tmp_path / "classes.txt").write_bytes(b"")
    assert names(tmp_path / "x.tar") == [".", "../classes.txt"]


def test_size_and_time_are_those_of_the_file_behind_a_link(tmp_path):
    source = class_folders(tmp_path / "in", classes=1, train=1, val=1)
    image = source / "val/class0/0000.jpg"
    image.rename(tmp_path / "image.jpg")
    image.symlink_to(tmp_path / "image.jpg")
    os.utime(tmp_path / "image.jpg", ns=(0, 12345))
    assert (f"val/class0/{image.name}", (tmp_path / "image.jpg").stat().st_size, 12345) in list(source_files(source))


def test_a_link_that_leads_nowhere_is_named(tmp_path):
    source = class_folders(tmp_path / "in", classes=1, train=1, val=1)
    (source / "train/class0/a.jpg").symlink_to("nowhere")
    with pytest.raises(
        DatasetError, match=r"cannot read .*/train/class0/a.jpg: No such file or directory; bring it back, or move it"
    ):
        names(source)

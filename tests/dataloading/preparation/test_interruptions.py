"""A preparation that is interrupted continues to the same bytes, and is never mixed with another one."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from dataloading import Dataset, DatasetError, is_prepared
from dataloading.preparation import preparation
from tests.dataloading.preparation.preparing import gone, interrupted, quietly
from tests.dataloading.small_sources import class_folders, contents


def test_a_killed_preparation_continues_to_the_same_bytes(many, many_prepared, tmp_path):
    for after in (2, 9, 17):
        assert gone(interrupted(many, tmp_path / "out", after, signal.SIGKILL)), "workers outlived their parent"
        assert not is_prepared(tmp_path / "out")
    kept = {path: path.stat().st_ino for path in (tmp_path / "out.preparing").glob("train-00000[0-5].tar")}
    assert kept
    quietly(many, tmp_path / "out", size=128, shard_images=14)
    assert contents(tmp_path / "out") == many_prepared
    assert all((tmp_path / "out" / path.name).stat().st_ino == inode for path, inode in kept.items()), "was made again"


def test_an_interruption_while_work_files_are_removed_changes_nothing(folders, small, tmp_path, monkeypatch):
    for removed in range(9):
        dest, left = tmp_path / f"out{removed}", iter(range(removed))

        def unlink(path: Path, missing_ok: bool = False, left: Iterator[int] = left) -> None:
            if next(left, None) is None:
                raise KeyboardInterrupt
            os.unlink(path)

        with monkeypatch.context() as patched:
            patched.setattr(Path, "unlink", unlink)
            with pytest.raises(KeyboardInterrupt):
                quietly(folders, dest, shard_images=10)
        if not is_prepared(dest):
            with pytest.raises(
                DatasetError, match=r"interrupted preparation from another source, by another version or with other"
            ):
                quietly(folders, dest, shard_images=9)
            quietly(folders, dest, shard_images=10)
            assert contents(dest) == contents(small.root)


def test_a_lost_record_of_a_shard_does_not_count_its_images_twice(folders, small, tmp_path, monkeypatch):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(preparation, "write_descriptions", interrupt)
        with pytest.raises(KeyboardInterrupt):
            quietly(folders, tmp_path / "out", shard_images=10)
    (tmp_path / "out.preparing" / "train-000001.json").unlink()
    quietly(folders, tmp_path / "out", shard_images=10)
    assert contents(tmp_path / "out") == contents(small.root)


def test_ctrl_c_ends_with_one_line_and_leaves_no_worker(many, tmp_path):
    process = interrupted(many, tmp_path / "out", 3, signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "interrupted; the same command continues from the finished shards" in errors
    assert "Traceback" not in errors
    assert gone(process)


def test_an_interrupted_preparation_is_not_mixed_with_another_one(many, tmp_path):
    interrupted(many, tmp_path / "out", 2, signal.SIGKILL)
    with pytest.raises(
        DatasetError, match=r"interrupted preparation from another source, by another version or with other options"
    ):
        quietly(many, tmp_path / "out", size=64, shard_images=14)
    with pytest.raises(
        DatasetError, match=r"interrupted preparation from another source, by another version or with other options"
    ):
        quietly(class_folders(tmp_path / "other"), tmp_path / "out", size=128, shard_images=14)
    with pytest.raises(DatasetError, match=r"not a prepared data set|no such folder"):
        Dataset(tmp_path / "out")

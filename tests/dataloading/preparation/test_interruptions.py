"""A preparation that is interrupted continues to the same bytes, and is never mixed with another one."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from dataloading import Dataset, DatasetError, is_prepared
from dataloading.preparation import preparation
from tests.dataloading.damage import copied, flip_bit
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


@pytest.mark.parametrize(("saves", "workers"), [(0, 0), (1, 0), (2, 0), (1, 1)])
def test_a_shard_whose_images_are_not_in_the_sums_is_made_again(
    folders, small, tmp_path, monkeypatch, capsys, saves, workers
):
    """The process ends after `saves` training shards, between the record of the next one and the sums."""
    save, done = preparation._save_sums, []

    def save_or_end(*arguments: object) -> None:
        if len(done) == saves:
            raise KeyboardInterrupt
        done.append(arguments)
        save(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(preparation, "_save_sums", save_or_end)
        with pytest.raises(KeyboardInterrupt):
            quietly(folders, tmp_path / "out", shard_images=10)
    capsys.readouterr()
    quietly(folders, tmp_path / "out", shard_images=10, workers=workers, progress=True)
    assert contents(tmp_path / "out") == contents(small.root)
    assert "preparing photographs: 36 of 36 images" in capsys.readouterr().err


def test_options_that_refuse_what_is_there_do_not_throw_away_what_was_made(tmp_path, monkeypatch):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    root = class_folders(tmp_path / "in", classes=3, train=2, val=1)
    (root / "val/class1/0000.jpg").unlink()
    with monkeypatch.context() as patched:
        patched.setattr(preparation, "write_descriptions", interrupt)
        with pytest.raises(KeyboardInterrupt):
            quietly(root, tmp_path / "out", allow_empty_classes=True)
    shard = (tmp_path / "out.preparing/train-000000.tar").stat().st_ino
    with pytest.raises(DatasetError, match=r"no images of class1 for val"):
        quietly(root, tmp_path / "out")
    quietly(root, tmp_path / "out", allow_empty_classes=True)
    assert (tmp_path / "out/train-000000.tar").stat().st_ino == shard


def test_a_preparation_that_was_killed_after_its_last_shard_leaves_no_plan(folders, small, tmp_path):
    data = copied(small.root, tmp_path / "out")
    (data / "plan.json").write_text("{}")
    with pytest.raises(DatasetError, match=r"out exists already"):
        quietly(folders, data, shard_images=10)
    assert contents(data) == contents(small.root)


@pytest.fixture(scope="module")
def half(folders, tmp_path_factory) -> Path:
    """The working folder of a preparation whose shards are finished, but not described."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    dest = tmp_path_factory.mktemp("half") / "out"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(preparation, "write_descriptions", interrupt)
        with pytest.raises(KeyboardInterrupt):
            quietly(folders, dest, shard_images=10)
    return dest.with_name("out.preparing")


@pytest.mark.parametrize("place", [0.1, 0.3, 0.5, 0.7, 0.99])
@pytest.mark.parametrize("name", ["train-000001.json", "val-000000.json", "sums.npz"])
def test_one_wrong_bit_of_a_work_file_makes_its_shards_again(folders, small, half, tmp_path, name, place):
    copied(half, tmp_path / "out.preparing")
    flip_bit(tmp_path / "out.preparing" / name, place, 1)
    quietly(folders, tmp_path / "out", shard_images=10)
    assert contents(tmp_path / "out") == contents(small.root)


def test_records_of_earlier_versions_have_no_sum(folders, small, half, tmp_path):
    working = copied(half, tmp_path / "out.preparing")
    for path in working.glob("*-0*.json"):
        record = json.loads(path.read_text())
        del record["sha256"]
        path.write_text(json.dumps(record))
    kept = {path.name: path.stat().st_ino for path in working.glob("*.tar")}
    quietly(folders, tmp_path / "out", shard_images=10)
    assert contents(tmp_path / "out") == contents(small.root)
    assert {name: (tmp_path / "out" / name).stat().st_ino for name in kept} == kept


def test_a_damaged_plan_is_named(folders, half, tmp_path):
    plan = copied(half, tmp_path / "out.preparing") / "plan.json"
    plan.write_bytes(plan.read_bytes()[:-1])
    with pytest.raises(DatasetError, match=r"plan.json is damaged: .*; remove .*out.preparing to start again"):
        quietly(folders, tmp_path / "out", shard_images=10)


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

"""Atomic writes."""

import errno
import os
import re
from pathlib import Path

import pytest

from dataloading.files import is_empty, sync, write_atomically


def test_text_and_bytes_are_written_and_replaced(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, "ünï")
    assert path.read_bytes() == "ünï".encode()
    write_atomically(path, b"\xff")
    assert path.read_bytes() == b"\xff"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_keeps_the_old_content_and_leaves_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, "old")

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=r"No space left"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_file_and_folder_reach_the_disk_before_it_returns(tmp_path, monkeypatch):
    synced, fsync = [], os.fsync

    def note(descriptor: int) -> None:
        synced.append((Path(os.readlink(f"/proc/self/fd/{descriptor}")), (tmp_path / "file").exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    write_atomically(tmp_path / "file", "data")
    (temporary, existed), (folder, exists) = synced
    assert (temporary.parent, existed) == (tmp_path, False)
    assert (folder, exists) == (tmp_path, True)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EPERM])
def test_a_file_system_that_cannot_sync_is_no_error(tmp_path, monkeypatch, number):
    def refuse(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    write_atomically(tmp_path / "file", "data")
    assert (tmp_path / "file").read_text() == "data"


@pytest.mark.parametrize("number", [errno.EIO, errno.EDQUOT, errno.ENOSPC])
def test_lost_data_are_an_error_that_names_the_file(tmp_path, monkeypatch, number):
    def fail(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    for action in (lambda: write_atomically(tmp_path / "file", "data"), lambda: sync(tmp_path)):
        with pytest.raises(OSError, match=re.escape(os.strerror(number))) as error:
            action()
        assert str(error.value.filename).startswith(str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_may_hold_what_nobody_has_put_there(tmp_path):
    for name in (".DS_Store", "._photo.jpg", ".nfs0001", ".lock", "Thumbs.db"):
        (tmp_path / name).touch()
    (tmp_path / "lost+found").mkdir()
    assert is_empty(tmp_path)
    (tmp_path / "photo.jpg").touch()
    assert not is_empty(tmp_path)

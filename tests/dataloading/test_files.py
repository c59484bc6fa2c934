"""Atomic writes."""

import errno
import os
import re
from pathlib import Path

import pytest

from dataloading.files import is_empty, sync, write_atomically
from tests.dataloading.recording import Call, disk_calls


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
    calls = disk_calls(monkeypatch)
    write_atomically(tmp_path / "file", "data")
    temporary = calls[0].path
    assert calls == [Call("sync", temporary, 4), Call("rename", tmp_path / "file"), Call("sync", tmp_path)]
    assert (temporary.parent, temporary.name[0]) == (tmp_path, ".")


def test_a_folder_that_may_not_be_listed_is_not_synced_and_no_other_error_is_hidden(tmp_path, monkeypatch):
    opened = os.open

    def refuse(path, *arguments, **more):
        if Path(path) == tmp_path:
            raise OSError(number, os.strerror(number), path)
        return opened(path, *arguments, **more)

    monkeypatch.setattr(os, "open", refuse)
    number = errno.EACCES
    write_atomically(tmp_path / "file", "data")
    assert (tmp_path / "file").read_text() == "data"
    number = errno.EIO
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        write_atomically(tmp_path / "file", "data")


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

"""Atomic writes."""

import errno
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from dataloading.files import check_writable, is_empty, sync, write_atomically
from tests.dataloading.owning import small_disk
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


def test_a_link_stays_and_what_it_leads_to_is_written(tmp_path):
    (tmp_path / "place").mkdir()
    (tmp_path / "link").symlink_to("place/file")
    for content in ("new", "newer"):
        check_writable(tmp_path / "link")
        write_atomically(tmp_path / "link", content)
        assert os.readlink(tmp_path / "link") == "place/file"
        assert (tmp_path / "place" / "file").read_text() == content
    assert [path.name for path in (tmp_path / "place").iterdir()] == ["file"]


def test_what_cannot_be_written_is_known_before_and_nothing_is_left(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("old")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "lost").symlink_to("nowhere/file")
    before = sorted(tmp_path.rglob("*"))
    for name, reason in {
        "folder": "Is a directory",
        "pipe": "Not a regular file",
        "loop": "Too many levels of symbolic links",
        "lost": "No such file or directory",
        "nowhere/file": "No such file or directory",
        "file/below": "Not a directory",
        "x" * 250: "File name too long",  # with the suffix of a temporary file
    }.items():
        with pytest.raises(OSError, match=reason) as error:
            check_writable(tmp_path / name)
        assert error.value.filename == str(tmp_path / name)
    check_writable(tmp_path / "file")
    check_writable(tmp_path / "new")
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "file").read_text() == "old"


def test_a_file_that_is_a_mount_point_cannot_be_replaced(tmp_path):
    with small_disk(tmp_path / "disk", "100k") as disk:
        for name in ("inner", "mounted here"):
            (disk / name).touch()
        mount = [str(shutil.which("mount")), "--bind", str(disk / "inner"), str(disk / "mounted here")]
        if subprocess.run(mount, capture_output=True).returncode:
            pytest.skip("may not mount a file here")
        try:
            with pytest.raises(OSError, match="A mount point cannot be replaced"):
                check_writable(disk / "mounted here")
        finally:
            subprocess.run(["umount", str(disk / "mounted here")], check=True)
        check_writable(disk / "mounted here")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError):
        check_writable(tmp_path / "file")

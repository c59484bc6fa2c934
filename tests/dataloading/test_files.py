"""Atomic writes."""

import os
from pathlib import Path

import pytest

from dataloading.files import write_atomically


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

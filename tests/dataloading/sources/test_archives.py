"""Tar files read in place; damaged ones are tested with the sources that read them."""

import errno
import io
import os
import tracemalloc

import pytest

from dataloading import DatasetError
from dataloading.sources.archives import members
from tests.dataloading.preparation.preparing import quietly
from tests.dataloading.small_sources import tar_of


def test_listing_an_archive_takes_no_memory(tmp_path):
    blocks = tar_of([("n01440764_0.JPEG", b"x" * 100)])[:1024]
    (tmp_path / "large.tar").write_bytes(blocks * 20_000 + bytes(1024))
    tracemalloc.start()
    assert sum(1 for _ in members(tmp_path / "large.tar")) == 20_000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 500_000


def test_a_pipe_with_the_name_of_an_archive_is_named_and_not_opened(tmp_path):
    os.mkfifo(tmp_path / "train-000.tar")
    with pytest.raises(DatasetError, match=r"train-000.tar is not a regular file; remove it"):
        quietly(tmp_path, tmp_path / "out", validation_every=0)


class FailingFile(io.BytesIO):
    def read(self, *_: object) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_a_label_that_cannot_be_read_stops_the_preparation(tmp_path, monkeypatch):
    for split in ("train", "val"):
        parts = [(f"{i}.{kind}", data) for i in range(2) for kind, data in (("jpg", b""), ("cls", b"%d" % i))]
        (tmp_path / f"{split}.tar").write_bytes(tar_of(parts))
    real, opened = io.open, []

    def failing(path: object, *arguments: object, **options: object) -> object:
        opened.append(path)
        is_second = str(path).endswith("val.tar") and opened.count(path) > 1  # the first one lists the members
        return FailingFile() if is_second else real(path, *arguments, **options)

    monkeypatch.setattr(io, "open", failing)
    with pytest.raises(DatasetError, match=r"val.tar: Input/output error; once this is fixed, the same command"):
        quietly(tmp_path, tmp_path / "out")


def test_hidden_and_system_files_in_an_archive_are_skipped(tmp_path):
    names = [".DS_Store", "a/Thumbs.db", "a/desktop.ini", "__MACOSX/a/._1.jpg", "__MACOSX/a/1.jpg", "./a/1.jpg"]
    (tmp_path / "x.tar").write_bytes(tar_of((name, b"x") for name in names))
    assert [member.name for member in members(tmp_path / "x.tar")] == ["./a/1.jpg"]

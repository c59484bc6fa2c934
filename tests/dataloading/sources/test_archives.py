"""Tar files read in place; damaged ones are tested with the sources that read them."""

import errno
import io
import os
import tarfile
import tracemalloc

import pytest

from dataloading import DatasetError
from dataloading.sources.archives import members, read_member
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
    with pytest.raises(DatasetError, match=r"train-000.tar is not a regular file; move it away"):
        quietly(tmp_path, tmp_path / "out", validation_every=0)


def test_what_is_no_plain_file_has_a_problem(tmp_path):
    kinds = {
        "symbolic": (tarfile.SYMTYPE, "a link to other.jpg, not a file"),
        "hard": (tarfile.LNKTYPE, "a link to other.jpg, not a file"),
        "device": (tarfile.CHRTYPE, "not a plain file"),
        "pipe": (tarfile.FIFOTYPE, "not a plain file"),
        "sparse": (tarfile.GNUTYPE_SPARSE, "not a plain file"),
        "old": (tarfile.AREGTYPE, ""),
        "file": (tarfile.REGTYPE, ""),
    }

    def change(info: tarfile.TarInfo) -> None:
        info.type, info.linkname = kinds[info.name][0], "other.jpg"

    (tmp_path / "x.tar").write_bytes(tar_of(((name, b"") for name in kinds), change))
    assert {member.name: member.problem for member in members(tmp_path / "x.tar")} == {
        name: problem for name, (_, problem) in kinds.items()
    }


def test_a_tar_file_inside_a_file_ends_where_it_ends(tmp_path):
    inner = tar_of([("1.jpg", b"x" * 700), ("2.jpg", b"y" * 512)]).rstrip(b"\0")
    inner += bytes(-len(inner) % 512 + 1024)  # without the padding to whole records
    path = tmp_path / "x"
    path.write_bytes(bytes(300) + inner + b"no tar file" * 99)
    found = list(members(path, offset=300, length=len(inner)))
    assert [read_member(path, member, 700) for member in found] == [b"x" * 700, b"y" * 512]
    assert [(member.offset, member.length) for member in found] == [(812, 700), (2348, 512)]
    assert len(list(members(path, offset=300, length=len(inner) - 512))) == 2  # one block of zeros is an end mark, too
    for missing, what in ((513, "the end mark"), (1024, "the end mark"), (1025, "the end of 2.jpg")):
        with pytest.raises(DatasetError, match=rf"x is truncated: it ends at offset [\d,]+, before {what}; download"):
            list(members(path, offset=300, length=len(inner) - missing))
    with pytest.raises(DatasetError, match=r"2.jpg is 512 bytes long; it cannot be used"):
        read_member(path, found[1], 511)


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

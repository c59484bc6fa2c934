"""Files that are read in small pieces."""

import os
import resource
import sys

import numpy as np
import pytest

from dataloading import DatasetError
from dataloading.open_files import OpenFiles


@pytest.fixture
def path(tmp_path) -> str:
    (tmp_path / "file").write_bytes(bytes(range(100)))
    return str(tmp_path / "file")


def test_a_read_that_the_kernel_cuts_short_goes_on_where_it_ended(path, monkeypatch):
    real, places = os.preadv, []

    def at_most_seven(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        places.append(offset)
        return real(descriptor, [buffers[0][:7]], offset)

    monkeypatch.setattr(os, "preadv", at_most_seven)
    assert OpenFiles(1).read(path, 10, 20).tolist() == list(range(10, 30))
    assert places == [10, 17, 24]
    with pytest.raises(DatasetError, match=r"file has been cut off: it ends at byte 100, before byte 101; copy"):
        OpenFiles(1).read(path, 95, 6)


def test_what_is_read_is_a_copy_that_nobody_can_change(path):
    files = OpenFiles(1)
    one, other = files.read(path, 0, 50), files.read(path, 0, 50)
    assert one.dtype == np.uint8
    assert not one.flags.writeable
    assert not np.shares_memory(one, other)


@pytest.mark.parametrize(
    ("soft", "hard", "count", "raised_to", "open_at_once"),
    [
        (1024, 4096, 100, 1224, 612),
        (1024, 1100, 100, 1100, 550),
        (1024, 4096, 0, None, 512),
        (1300, 4096, 100, None, 650),
        (1024, -1, 100, 1224, 612),
        (-1, -1, 100, None, sys.maxsize // 2),
        (1, 1, 100, None, 1),
    ],
)
def test_half_of_the_files_that_may_be_open_are_kept_open(monkeypatch, soft, hard, count, raised_to, open_at_once):
    """-1 is no limit. The soft limit is raised for two descriptors per file and 1024 others, if the hard one allows."""
    asked = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: asked.append(limits))
    kept = OpenFiles(count)._opened.cache_info().maxsize
    assert asked == ([] if raised_to is None else [(raised_to, hard)])
    assert kept == open_at_once


def test_a_limit_that_may_not_be_raised_is_kept(monkeypatch):
    def refuse(*_: object) -> None:
        raise ValueError("not allowed to raise maximum limit")

    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 4096))
    monkeypatch.setattr(resource, "setrlimit", refuse)
    assert OpenFiles(100)._opened.cache_info().maxsize == 512


def test_no_more_files_are_open_than_allowed(tmp_path, monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (4, 4))
    files = OpenFiles(3)
    before = len(os.listdir("/proc/self/fd"))
    for name in "abc":
        (tmp_path / name).write_bytes(name.encode())
        assert files.read(str(tmp_path / name), 0, 1).tobytes() == name.encode()
    assert len(os.listdir("/proc/self/fd")) == before + 2
    del files
    assert len(os.listdir("/proc/self/fd")) == before

"""One owner for a folder, as long as its process lives."""

import errno
import fcntl
import os
import re
import socket
import time
from pathlib import Path

import pytest

from dataloading import DatasetError, locks
from dataloading.locks import LOCK, owned, owner
from tests.dataloading.owning import another_owner


def test_a_folder_has_one_owner_who_is_named_and_ends_with_its_process(tmp_path):
    with another_owner(tmp_path) as process:
        who = rf"process {process.pid} on host {re.escape(socket.gethostname())} since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d"
        assert re.fullmatch(who, owner(tmp_path) or "")
        with pytest.raises(DatasetError, match=rf"is in use by {who}; wait for it, or choose another"), owned(tmp_path):
            pass
        process.kill()
        process.wait()
        assert owner(tmp_path) is None
        with owned(tmp_path):
            assert f"process {os.getpid()} " in (owner(tmp_path) or "")
    assert list(tmp_path.iterdir()) == []


def test_a_process_does_not_share_with_itself_and_may_own_again(tmp_path):
    with (
        owned(tmp_path),
        pytest.raises(ValueError, match=r"is in use by .*; ask"),
        owned(tmp_path, remedy="ask", error=ValueError),
    ):
        pass
    with owned(tmp_path):
        pass


def test_a_lock_file_that_somebody_has_left_is_signed_anew(tmp_path):
    (tmp_path / LOCK).write_text("process 1 on host left since 2012-10-01 00:00:00" + "!" * 300 + "\n")
    assert owner(tmp_path) is None
    with owned(tmp_path):
        assert re.fullmatch(rf"process {os.getpid()} on host \S+ since \S+ \d\d:\d\d:\d\d", owner(tmp_path) or "")


@pytest.mark.parametrize("text", ["", "process 1 on ho", "something else\n"])
def test_an_owner_that_has_not_signed_is_another_process(tmp_path, monkeypatch, text):
    monkeypatch.setattr(locks, "_SECONDS_TO_SIGN", 0.0)
    with owned(tmp_path):
        (tmp_path / LOCK).write_text(text)
        assert owner(tmp_path) == "another process"


def test_an_owner_has_time_to_sign(tmp_path, monkeypatch):
    with owned(tmp_path):
        signed = (tmp_path / LOCK).read_text()
        (tmp_path / LOCK).write_text("")
        monkeypatch.setattr(time, "sleep", lambda _: (tmp_path / LOCK).write_text(signed))
        assert owner(tmp_path) == signed.strip()


def test_a_patient_process_waits_until_its_owner_has_died(tmp_path, monkeypatch):
    with another_owner(tmp_path) as process:
        waits = []

        def end_the_owner(seconds: float) -> None:
            waits.append(seconds)
            process.kill()
            process.wait()

        with monkeypatch.context() as patched:
            patched.setattr(time, "sleep", end_the_owner)
            with owned(tmp_path, patience=30):
                assert f"process {os.getpid()} " in (owner(tmp_path) or "")
    assert len(waits) == 1


def test_patience_ends(tmp_path, monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    waits = []
    monkeypatch.setattr(time, "sleep", waits.append)
    with owned(tmp_path), pytest.raises(DatasetError, match="is in use"), owned(tmp_path, patience=3):
        pass
    assert len(waits) == 2  # at 1 and 2 seconds, not at 3


@pytest.mark.parametrize("number", [errno.EIO, errno.EINTR])
def test_a_lock_that_fails_is_no_missing_lock(tmp_path, monkeypatch, number):
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", fail)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match=os.strerror(number)), owned(tmp_path):
        pytest.fail("the folder is not protected")
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_patient_process_gets_the_folder_when_its_owner_has_died(tmp_path):
    with another_owner(tmp_path) as process:
        process.kill()
        with owned(tmp_path, patience=30):
            pass


def test_an_owned_folder_may_be_renamed(tmp_path):
    (tmp_path / "a").mkdir()
    with owned(tmp_path / "a"):
        (tmp_path / "a").rename(tmp_path / "b")
        assert owner(tmp_path / "b")
    assert list((tmp_path / "b").iterdir()) == []


def test_a_lock_file_that_its_owner_removes_meanwhile_is_not_taken_for_the_lock(tmp_path, monkeypatch):
    flock = fcntl.flock
    removed = []

    def remove_first(file: int, operation: int) -> None:
        if not removed:  # between opening and locking the file
            removed.append(os.fstat(file).st_ino)
            (tmp_path / LOCK).unlink()
            (tmp_path / LOCK).touch()
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", remove_first)
    with owned(tmp_path):
        assert owner(tmp_path)
    assert removed


def test_without_locks_a_line_says_so_and_the_work_goes_on(tmp_path, monkeypatch, capsys):
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with owned(tmp_path):
        pass
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{tmp_path} is not protected from other processes, because its file system has no locks (")


def test_a_folder_that_cannot_be_written_is_an_error_that_names_it(tmp_path, monkeypatch):
    opened = os.open

    def refuse(path, flags, *arguments, **more):
        if path == LOCK:
            raise OSError(errno.EROFS, "Read-only file system", path)
        return opened(path, flags, *arguments, **more)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(OSError, match="Read-only") as error, owned(tmp_path):
        pass
    assert Path(error.value.filename) == tmp_path / LOCK

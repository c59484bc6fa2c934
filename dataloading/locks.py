"""One owner for a folder: a lock that ends with the process that holds it, however the process ends."""

import contextlib
import errno
import fcntl
import os
import socket
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from dataloading.errors import DatasetError

LOCK = ".lock"
"""The locked file in a folder. Its text says who holds the lock; the file alone means nothing."""

_CANNOT_LOCK = {errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK, errno.EINVAL, errno.EBADF}
_SECONDS_BETWEEN_ATTEMPTS = 0.05
_SECONDS_TO_SIGN = 0.5  # a process that has just taken a lock writes its name within this time


@contextlib.contextmanager
def owned(
    folder: Path,
    *,
    remedy: str = "wait for it, or choose another folder",
    error: type[Exception] = DatasetError,
    patience: float = 0.0,
) -> Iterator[None]:
    """Own an existing folder inside the ``with`` block: no other process, and no other block, owns it meanwhile.

    The kernel releases the lock when the process ends. The folder may be renamed inside the block. Where the file
    system has no locks, a line on stderr says so, and the block runs without one.

    Args:
        folder: gets a file ``.lock``, which is removed at the end.
        remedy: what to do if the folder is in use; the end of the message.
        error: the exception to raise then.
        patience: seconds to wait for the present owner.

    Raises:
        DatasetError: the folder is in use, by which process, on which host and since when (or ``error``).
        OSError: the folder cannot be written.
    """
    deadline = time.monotonic() + patience
    directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        while (file := _lock(folder, directory)) is None:
            if time.monotonic() >= deadline:
                raise error(f"{folder} is in use by {_signature(folder)}; {remedy}")
            time.sleep(_SECONDS_BETWEEN_ATTEMPTS)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                os.unlink(LOCK, dir_fd=directory)
            os.close(file)  # only now: whoever opens the file after this makes a new one
    finally:
        os.close(directory)


def owner(folder: Path) -> str | None:
    """Who owns a folder: "process N on host H since ...", or None if nobody does."""
    try:
        file = os.open(folder / LOCK, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _signature(folder)
    except OSError:
        return None
    finally:
        os.close(file)
    return None


def _lock(folder: Path, directory: int) -> int | None:
    """The descriptor of the locked file, or None if another process has locked it.

    Args:
        directory: the open folder.
    """
    while True:
        try:
            file = os.open(LOCK, os.O_RDWR | os.O_CREAT, 0o666, dir_fd=directory)
        except OSError as error:
            error.filename = str(folder / LOCK)
            raise
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            return None
        except OSError as error:
            if error.errno not in _CANNOT_LOCK:
                os.close(file)
                raise
            print(
                f"{folder} is not protected from other processes, because its file system has no locks "
                f"({error.strerror}); do not use it from two commands at once",
                file=sys.stderr,
                flush=True,
            )
            return file
        if _is_current(file, directory):
            _sign(file)
            return file
        os.close(file)  # its owner has removed it since we opened it


def _is_current(file: int, directory: int) -> bool:
    """Whether an open lock file still is the one in the folder."""
    try:
        return os.path.samestat(os.fstat(file), os.stat(LOCK, dir_fd=directory))
    except FileNotFoundError:
        return False


def _sign(file: int) -> None:
    """Write who holds the lock into its file. On a full disk the lock works without."""
    since = datetime.now().isoformat(" ", "seconds")
    with contextlib.suppress(OSError):
        os.ftruncate(file, 0)
        os.pwrite(file, f"process {os.getpid()} on host {socket.gethostname()} since {since}\n".encode(), 0)


def _signature(folder: Path) -> str:
    """Who has signed the folder's lock file."""
    deadline = time.monotonic() + _SECONDS_TO_SIGN
    while True:
        with contextlib.suppress(OSError):
            text = (folder / LOCK).read_text(errors="replace")
            if text.startswith("process ") and text.endswith("\n"):
                return text[:200].strip()
        if time.monotonic() > deadline:
            return "another process"
        time.sleep(_SECONDS_BETWEEN_ATTEMPTS)

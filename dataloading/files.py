"""Writing files so that a crash never leaves a half-written one."""

import contextlib
import errno
import os
import re
import stat
from pathlib import Path

# How file systems such as FUSE and CIFS say that they cannot sync a folder or a file. Other errors mean lost data.
_CANNOT_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM, errno.EACCES, errno.ENOTTY}

UNFINISHED = ".unfinished"
"""Work in progress in a folder that is being written; what a killed command has left of it may be removed."""

# What file managers, file systems and ourselves put into folders that a user calls empty.
_NOBODYS_FILES = {".DS_Store", ".lock", UNFINISHED, "Thumbs.db", "desktop.ini", "lost+found"}
_NOBODYS_PREFIXES = ("._", ".nfs", ".fuse_hidden")


def write_atomically(path: Path, data: str | bytes) -> None:
    """Create or replace a file so that a reader, or a restart after a crash, finds the old or the new content.

    The data go to a temporary file in the same folder, are synced to disk, and take the file's name by a rename, which
    is synced too. A link stays: the file that it leads to is written. A string is encoded as UTF-8.

    Raises:
        OSError: the file cannot be written; the error names it, and no temporary file is left behind.
    """
    given, path = path, _behind_link(path)
    temporary = _temporary(path)
    try:
        with temporary.open("wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            sync_descriptor(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            error.filename, error.filename2 = str(given), None
        raise
    sync(path.parent)


def check_writable(path: Path) -> None:
    """Check that `write_atomically` could create or replace a file now, and leave nothing behind.

    Raises:
        OSError: it could not; the error names the file.
    """
    target = _behind_link(path)
    try:
        if target.is_symlink():
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        if target.is_dir():
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
        if target.exists() and not stat.S_ISREG(target.stat().st_mode):
            raise OSError(errno.EINVAL, "Not a regular file")
        if _is_mount_point(target):
            raise OSError(errno.EBUSY, "A mount point cannot be replaced")
        temporary = _temporary(target)
        temporary.touch()
        temporary.unlink()
    except OSError as error:
        error.filename = str(path)
        raise


def _is_mount_point(path: Path) -> bool:
    """Whether something is mounted at a path. :func:`os.path.ismount` misses what is on the same disk."""
    try:
        mounts = Path("/proc/self/mountinfo").read_text(errors="surrogateescape")
    except OSError:
        return os.path.ismount(path)
    place = re.sub(r"[\\\s]", lambda found: f"\\{ord(found[0]):03o}", os.path.realpath(path))
    return any(line.split(" ")[4:5] == [place] for line in mounts.splitlines())


def _behind_link(path: Path) -> Path:
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}")


def sync(path: Path) -> None:
    """Write a file's content, or a folder's entries, to disk, where the file system can do that.

    Raises:
        OSError: data could not be written; the error names the file.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:  # a folder that may be written and entered, but not listed
        return
    try:
        sync_descriptor(descriptor)
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        os.close(descriptor)


def sync_descriptor(descriptor: int) -> None:
    """As :func:`sync`, for an open file.

    Raises:
        OSError: data could not be written.
    """
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise


def is_empty(folder: Path) -> bool:
    """Whether a folder has no content but what file managers, file systems, locks and killed commands leave in it."""
    return all(path.name in _NOBODYS_FILES or path.name.startswith(_NOBODYS_PREFIXES) for path in folder.iterdir())

"""Writing files so that a crash never leaves a half-written one."""

import os
from pathlib import Path


def write_atomically(path: Path, data: str | bytes) -> None:
    """Create or replace a file so that a reader, or a restart after a crash, finds the old or the new content.

    The data go to a temporary file in the same folder, are synced to disk, and take the file's name by a rename, which
    is synced too. A string is encoded as UTF-8.

    Raises:
        OSError: the file cannot be written; no temporary file is left behind.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def sync(path: Path) -> None:
    """Write a file's content, or a folder's entries, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

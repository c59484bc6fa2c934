"""Files and folders, for every package of fastalex: atomic and durable writes, and folders with one owner."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path

from dataloading import locks
from dataloading.files import UNFINISHED, check_writable, is_empty, sync, sync_descriptor, write_atomically
from fastalex.errors import ConfigurationError

__all__ = [
    "UNFINISHED",
    "check_new_file",
    "check_new_folder",
    "check_place",
    "check_writable",
    "default_folder",
    "is_empty",
    "new_folder",
    "owned",
    "runs_near",
    "sync",
    "sync_descriptor",
    "write_atomically",
]

WAIT = "wait for it, or choose another folder"

RUNS = Path("runs")
"""Folder, relative to the working directory, for the results of commands that are given no other one."""


def runs_near(path: Path) -> str:
    """The end of a message about a path that is no run: which runs there are in it, beside it and in ``runs``."""
    places = (path, path.parent, RUNS)
    found = dict.fromkeys(config.parent for place in places for config in sorted(place.glob("*/config.json")))
    found.pop(path, None)
    names = [str(run) for run in found]
    return f"; there are the runs {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}" if names else ""


def owned(folder: Path, *, remedy: str = WAIT, patience: float = 0.0) -> AbstractContextManager[None]:
    """Own an existing folder inside the ``with`` block; see :func:`dataloading.locks.owned`.

    Raises:
        ConfigurationError: another process owns it.
    """
    return locks.owned(folder, remedy=remedy, error=ConfigurationError, patience=patience)


@contextlib.contextmanager
def new_folder(folder: Path, remedy: str, *, numbered: bool = False) -> Iterator[Path]:
    """Make a folder, or take an empty one, and own it inside the ``with`` block. It may be a link or a mount point.

    If the block fails and leaves the folder empty, what was made of it and of the folders above it is removed.

    Args:
        remedy: what to do if the folder has content; the end of the message.
        numbered: if the folder exists, make one with -2, -3, ... at the end of its name instead.

    Raises:
        ConfigurationError: the folder has content, is a file, or is in use.
        OSError: it cannot be made or written.
    """
    made: list[Path] = []
    try:
        folder = _make(folder, made, numbered=numbered)
        _check_free(folder, remedy)
        with owned(folder):
            _check_free(folder, remedy, is_owned=True)
            yield folder
    except BaseException:
        for path in reversed(made):
            with contextlib.suppress(OSError):  # it is not empty
                path.rmdir()
        raise


def check_new_folder(folder: Path, remedy: str) -> None:
    """Check that :func:`new_folder` would succeed, and leave nothing behind.

    Raises:
        ConfigurationError, OSError: as :func:`new_folder`.
    """

    class Checked(Exception):
        pass

    with contextlib.suppress(Checked), new_folder(folder, remedy):
        raise Checked


def check_new_file(path: Path, suffixes: Sequence[str], *, overwrite: bool, remedy: str) -> None:
    """Check that a file can be written, before the work that it is to hold.

    Args:
        suffixes: one of which the name must have.
        overwrite: an existing file may be replaced.
        remedy: what to do if the file exists, besides choosing another one.

    Raises:
        ConfigurationError: the suffix is wrong, the file exists, or it cannot be written where it is.
    """
    if path.suffix not in suffixes:
        raise ConfigurationError(f"{path} must end with {' or '.join(suffixes)}, got {path.suffix!r}")
    if path.is_file() and not overwrite:
        raise ConfigurationError(f"{path} exists already; choose another file, or {remedy}")
    if not os.path.lexists(path.absolute().parent):
        raise ConfigurationError(f"{path}: the folder {path.parent} does not exist; create it first")
    try:
        check_writable(path)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error.strerror}; choose another file") from None


def check_place(folder: Path, remedy: str) -> None:
    """Check, without making it, that a folder could be made, or written if it is there.

    Raises:
        ConfigurationError: something else is in the way, or the nearest folder that exists is not writable.
    """
    nearest = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not nearest.is_dir():
        raise ConfigurationError(f"{nearest} is in the way of {folder}: it is not a folder; {remedy}")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ConfigurationError(f"{folder} cannot be written: {nearest} is not writable; {remedy}")


def default_folder(name: str) -> Path:
    """The default folder of a result: in ``runs/``, with date, time and name. Another result may have the same."""
    return RUNS / f"{datetime.now():%Y%m%d-%H%M%S}-{name}"


def _make(folder: Path, made: list[Path], *, numbered: bool) -> Path:
    """Make a folder and those above it, and append each to ``made``; return the folder."""
    if folder.is_symlink() and not folder.exists():  # a link to a folder that does not exist yet
        target = Path(os.path.realpath(folder))
        if target.is_symlink():
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(folder))
        folder = target
    for parent in [*reversed(folder.parents), *([] if numbered else [folder])]:
        if not parent.is_dir() and not (parent == folder and parent.exists()):
            if os.path.lexists(parent) and not parent.is_dir():  # another process may make it just now
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
            parent.mkdir(exist_ok=True)
            made.append(parent)
    if not numbered:
        return folder
    for number in itertools.count(1):
        candidate = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
        with contextlib.suppress(FileExistsError):
            candidate.mkdir()
            made.append(candidate)
            return candidate
    raise AssertionError


def _check_free(folder: Path, remedy: str, *, is_owned: bool = False) -> None:
    if not is_owned and (owner := locks.owner(folder)):
        raise ConfigurationError(f"{folder} is in use by {owner}; {WAIT}")
    if not folder.is_dir() or not is_empty(folder):
        raise ConfigurationError(f"{folder} exists already; {remedy}")

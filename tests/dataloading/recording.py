"""In which order files are synced to disk, renamed and removed."""

import os
from pathlib import Path
from typing import NamedTuple

import pytest


class Call(NamedTuple):
    """A call: "sync", "rename" (`path` is the new name) or "remove". `size` is a synced file's size on disk."""

    what: str
    path: Path
    size: int | None = None


def disk_calls(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """Return a list to which every call from now on is added."""
    calls: list[Call] = []
    fsync, replace, rename, unlink = os.fsync, os.replace, os.rename, os.unlink

    def record_sync(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        calls.append(Call("sync", path, None if path.is_dir() else os.fstat(descriptor).st_size))
        fsync(descriptor)

    def record_replace(old: os.PathLike[str], new: os.PathLike[str]) -> None:
        replace(old, new)
        calls.append(Call("rename", Path(new)))

    def record_rename(old: os.PathLike[str], new: os.PathLike[str]) -> None:
        rename(old, new)
        calls.append(Call("rename", Path(new)))

    def record_unlink(path: os.PathLike[str], **more: int) -> None:
        unlink(path, **more)
        calls.append(Call("remove", Path(path)))

    for name, function in {
        "fsync": record_sync,
        "replace": record_replace,
        "rename": record_rename,
        "unlink": record_unlink,
    }.items():
        monkeypatch.setattr(os, name, function)
    return calls

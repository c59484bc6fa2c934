"""Tar files read in place: where each member's bytes lie, also inside a tar file inside a tar file. Nothing is
unpacked.

Names in archives are only ever names here, never paths that something is written to; links are reported, not followed.
"""

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from dataloading.errors import DatasetError

_BLOCK = tarfile.BLOCKSIZE


class Member(NamedTuple):
    """A member of a tar file: its `name`, the `offset` and `length` of its bytes, and what keeps it from being used."""

    name: str
    offset: int
    length: int
    problem: str = ""


def members(path: Path, *, offset: int = 0, length: int | None = None) -> Iterator[Member]:
    """Yield the members of the tar file that lies in `path`, from `offset` on, `length` bytes long (default: to the
    end).

    Directories and hidden files are passed over; what is neither they nor a plain file comes with its `problem`. Memory
    use does not grow with the archive.

    Raises:
        DatasetError: it is no tar file, is compressed, damaged or cut off.
    """
    end = path.stat().st_size if length is None else offset + length
    try:
        with path.open("rb") as file:
            file.seek(offset)
            with tarfile.TarFile(fileobj=file, mode="r", errorlevel=0) as archive:
                while (info := archive.next()) is not None:
                    archive.members.clear()  # type: ignore[attr-defined]  # tarfile would keep all of them
                    if info.offset_data + info.size > end:
                        raise DatasetError(_cut_off(path, info.name, end))
                    if not info.isdir() and not info.name.rsplit("/", 1)[-1].startswith("."):
                        yield Member(info.name, info.offset_data, info.size, _problem(info))
                _check_end(path, file, archive.offset, end)
    except tarfile.ReadError as error:
        raise DatasetError(f"{path} is not a plain tar file, or damaged: {error}; {_remedy(path)}") from None
    except OSError as error:
        raise DatasetError(f"cannot read {path}: {error.strerror or error}") from None


def read(path: Path, member: Member, limit: int) -> bytes:
    """Return the bytes of a member that must not be longer than `limit`."""
    if member.problem or member.length > limit:
        raise DatasetError(
            f"{path}: {member.name} is {member.problem or f'{member.length:,} bytes long'}; it cannot be used"
        )
    with path.open("rb") as file:
        file.seek(member.offset)
        return file.read(member.length)


def _problem(info: tarfile.TarInfo) -> str:
    if info.issym() or info.islnk():
        return f"a link to {info.linkname}, not a file"
    if not info.isreg() or info.issparse():
        return "not a plain file"
    return ""


def _check_end(path: Path, file: Any, position: int, end: int) -> None:
    """A tar file ends with blocks of zeros; anything else says that `tarfile` stopped for another reason."""
    file.seek(position)
    block = file.read(min(_BLOCK, max(end - position, 0)))
    if len(block) < _BLOCK:
        raise DatasetError(_cut_off(path, "its end", end))
    if block.count(0) != _BLOCK:
        raise DatasetError(f"{path} is not a plain tar file, or damaged at offset {position:,}; {_remedy(path)}")


def _cut_off(path: Path, what: str, end: int) -> str:
    return f"{path} is cut off: it ends at offset {end:,}, before {what} does; get it again"


def _remedy(path: Path) -> str:
    return "unpack it first (gunzip)" if path.suffix in (".gz", ".tgz", ".bz2", ".xz", ".zst") else "get it again"

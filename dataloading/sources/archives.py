"""List the members of tar files and their byte ranges, also in a tar file inside a tar file.

Nothing is unpacked. The names in an archive are never used as paths, and links are reported, not followed.
"""

import errno
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from dataloading.errors import DatasetError
from dataloading.sources.folder_listing import is_ignored

_BLOCK = tarfile.BLOCKSIZE

# First bytes of what is often taken for a tar file, and how to get the tar file.
_PACKED = (
    (b"\x1f\x8b", "decompress it first: gunzip"),
    (b"BZh", "decompress it first: bunzip2"),
    (b"\xfd7zXZ", "decompress it first: unxz"),
    (b"\x28\xb5\x2f\xfd", "decompress it first: unzstd"),
    (b"PK\x03\x04", "unpack it first: unzip"),
    (b"7z\xbc\xaf", "unpack it first: 7z x"),
    (b"Rar!", "unpack it first: unrar x"),
    (b"version https://git-lfs", "it is a Git LFS pointer, so fetch the file first: git lfs pull --include"),
)


class Member(NamedTuple):
    """A member of a tar file: its `name`, the `offset` and `length` of its bytes, and why it cannot be used, if so."""

    name: str
    offset: int
    length: int
    problem: str = ""


def members(path: Path, *, offset: int = 0, length: int | None = None) -> Iterator[Member]:
    """Yield the members of a tar file.

    Folders, hidden and system files are skipped. A member that is not a regular file has a `problem`. Memory use does
    not grow with the archive.

    Args:
        path: file that contains the tar file.
        offset, length: range of the tar file's bytes in `path`; by default, all of it.

    Raises:
        DatasetError: it is not a tar file, or is compressed, damaged or truncated.
    """
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):  # reading a pipe could wait for ever
            raise DatasetError(f"{path} is not a regular file; move it away, or put the archive there")
        end = about.st_size if length is None else offset + length
        with path.open("rb") as file:
            file.seek(offset)
            with tarfile.TarFile(fileobj=file, mode="r", errorlevel=0) as archive:
                while (info := archive.next()) is not None:
                    archive.members.clear()  # type: ignore[attr-defined]  # tarfile would keep all of them
                    if info.offset_data + info.size > end:
                        raise DatasetError(_truncated(path, f"the end of {info.name}", end))
                    *folders, name = info.name.split("/")
                    if not info.isdir() and not is_ignored(name) and "__MACOSX" not in folders:
                        yield Member(info.name, info.offset_data, info.size, _problem(info))
                _check_end(path, file, archive.offset, end)
    except tarfile.ReadError as error:
        raise DatasetError(_not_plain(path, f": {error}")) from None
    except OSError as error:
        raise DatasetError(f"cannot read {path}: {error.strerror or error}") from None


def read_member(path: Path, member: Member, limit: int) -> bytes:
    """Return the bytes of a member. Raises `DatasetError` if it is unusable or longer than `limit`."""
    if member.problem or member.length > limit:
        raise DatasetError(
            f"{path.name}: {member.name} is {member.problem or f'{member.length:,} bytes long'}; it cannot be used"
        )
    try:
        with path.open("rb") as file:
            file.seek(member.offset)
            content = file.read(member.length)
    except OSError as error:  # an error of reading does not know the file's name
        raise OSError(error.errno, error.strerror, str(path)) from None
    if len(content) < member.length:  # the file was cut off after it was listed
        raise OSError(errno.EIO, f"ends before the end of {member.name}", str(path))
    return content


def how_to_unpack(path: Path) -> str:
    """Return what to do with a file that is compressed, of another kind of archive, or a pointer; else ""."""
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        start = file.read(32)
    return next((f"{command} {path}" for signature, command in _PACKED if start.startswith(signature)), "")


def _problem(info: tarfile.TarInfo) -> str:
    if info.issym() or info.islnk():
        return f"a link to {info.linkname}, not a file"
    if not info.isreg() or info.issparse():
        return "not a plain file"
    return ""


def _check_end(path: Path, file: Any, position: int, end: int) -> None:
    """A tar file ends with blocks of zeros. Anything else means that `tarfile` stopped early."""
    file.seek(position)
    block = file.read(min(_BLOCK, max(end - position, 0)))
    if len(block) < _BLOCK:
        raise DatasetError(_truncated(path, "the end mark", end))
    if block.count(0) != _BLOCK:
        raise DatasetError(_not_plain(path, f" at offset {position:,}"))


def _truncated(path: Path, what: str, end: int) -> str:
    return f"{path} is truncated: it ends at offset {end:,}, before {what}; download it again"


def _not_plain(path: Path, problem: str) -> str:
    if unpack := how_to_unpack(path):
        return f"{path} is not a plain tar file; {unpack}"
    return f"{path} is damaged or not a plain tar file{problem}; download it again"

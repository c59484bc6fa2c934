"""What a file is that was given in place of weights, and what to do with it."""

from __future__ import annotations

from pathlib import Path

_HEAD = 1024  # bytes that tell what a file is
_OURS = "fastalex reads only .safetensors files that it wrote itself, such as best.safetensors in a run folder"
_UNPACK = "unpack it first"

# The first bytes of a file, what it then is, and what to do.
_KINDS = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself", "fetch the file with: git lfs pull"),
    (b"PK\x03\x04", "a PyTorch file (.pth, .pt) or another zip archive", _OURS),
    (b"\x80\x02", "a PyTorch file or another pickle", _OURS),
    (b"\x80\x03", "a pickle", _OURS),
    (b"\x80\x04", "a pickle", _OURS),
    (b"\x80\x05", "a pickle", _OURS),
    (b"\x89HDF", "an HDF5 file (Keras)", _OURS),
    (b"\x93NUMPY", "a NumPy array", _OURS),
    (b"GGUF", "a GGUF file", _OURS),
    (b"\x1f\x8b", "compressed by gzip", _UNPACK),
    (b"BZh", "compressed by bzip2", _UNPACK),
    (b"\xfd7zXZ", "compressed by xz", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd", _UNPACK),
)
_PAGES = (b"<!doctype html", b"<html", b"<?xml", b"<head", b"<!--")


def what_it_is(path: Path) -> str | None:
    """What a file is that is no ``.safetensors`` file, and the remedy; None if its content does not tell.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if not head:
        return "empty: copy or download the file again"
    if head[2:9] == b"\0\0\0\0\0\0{":  # the length and the start of a header: one of ours, but damaged
        return None
    for start, kind, remedy in _KINDS:
        if head.startswith(start):
            return f"{kind}: {remedy}"
    if head[257:262] == b"ustar":
        return f"a tar archive: {_UNPACK}"
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text.lower().startswith(_PAGES):
        return (
            "a web page, not the file itself: the download failed or needs a login; open the file in a text editor to "
            "see what the server said, and download it again"
        )
    if not head.strip(b"\0"):
        return "full of zeros, as after a copy that failed: copy or download the file again"
    if all(byte >= 32 or byte in b"\t\n\r\f" for byte in head):
        return f"a text file: {_OURS}"
    return None

"""What a file is that was given in place of weights, and what to do with it."""

from __future__ import annotations

from pathlib import Path

from dataloading.process import command
from fastalex.errors import ConfigurationError

_HEAD = 1024  # bytes that tell what a file is
_OURS = "fastalex reads only .safetensors files that it wrote itself, such as best.safetensors in a run folder"
_CONVERT = f"if it holds AlexNet's weights, convert it with: {command('fastalex.convert', 'FILE', 'OUT.safetensors')}"
_CONVERTIBLE = f"fastalex reads only .safetensors files that it wrote itself; {_CONVERT}"
_WEIGHTS_FIRST = "a run folder or a .safetensors file of weights comes first, then the images"
_UNPACK = "unpack it first"

# The first bytes of a file, what it then is, and what to do.
_NOT_THE_FILE = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself", "fetch the file with: git lfs pull"),
    (b"\x1f\x8b", "compressed by gzip", _UNPACK),
    (b"BZh", "compressed by bzip2", _UNPACK),
    (b"\xfd7zXZ", "compressed by xz", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd", _UNPACK),
)
_FORMATS = (
    (b"PK\x03\x04", "a PyTorch file (.pth, .pt) or another zip archive", _CONVERTIBLE),
    (b"\x80\x02", "a PyTorch file or another pickle", _CONVERTIBLE),
    (b"\xff\xd8\xff", "a JPEG image", _WEIGHTS_FIRST),
    (b"\x89PNG", "a PNG image", _WEIGHTS_FIRST),
    (b"GIF8", "a GIF image", _WEIGHTS_FIRST),
    (b"\x80\x03", "a pickle", _OURS),
    (b"\x80\x04", "a pickle", _OURS),
    (b"\x80\x05", "a pickle", _OURS),
    (b"\x89HDF", "an HDF5 file (Keras)", _OURS),
    (b"\x93NUMPY", "a NumPy array", _OURS),
    (b"GGUF", "a GGUF file", _OURS),
)
# Formats whose first bytes tell nothing.
_SUFFIXES = {".onnx": "an ONNX file", ".caffemodel": "Caffe's weights"}
_PAGES = (b"<!doctype html", b"<html", b"<?xml", b"<head", b"<!--")


def what_it_is(path: Path) -> str | None:
    """What a file is that is no ``.safetensors`` file, and the remedy; None if its content does not tell.

    Raises:
        OSError: the file cannot be read.
    """
    head = _head(path)
    if head[2:9] == b"\0\0\0\0\0\0{":  # the length and the start of a header: one of ours, but damaged
        return None
    if instead := what_it_is_instead(path):
        return instead
    for start, kind, remedy in _FORMATS:
        if head.startswith(start):
            return f"{kind}: {remedy}"
    if path.suffix in _SUFFIXES:
        return f"{_SUFFIXES[path.suffix]}: {_CONVERTIBLE}"
    if is_text(path):
        return f"a text file: {_OURS}"
    return None


def what_it_is_instead(path: Path) -> str | None:
    """What a file is that does not hold what its user thinks, such as a failed download, and the remedy; else None.

    Raises:
        OSError: the file cannot be read.
    """
    head = _head(path)
    if not head:
        return "empty: copy or download the file again"
    for start, kind, remedy in _NOT_THE_FILE:
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
    return None


def is_text(path: Path) -> bool:
    """Whether the beginning of a file is plain text.

    Raises:
        OSError: the file cannot be read.
    """
    return all(byte >= 32 or byte in b"\t\n\r\f" for byte in _head(path))


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_HEAD)


def check_file(path: Path) -> None:
    """Check that a file can be read, and that it is no web page, archive or pointer in place of the file.

    Raises:
        ConfigurationError: it is, or it does not exist, or is a folder or a pipe.
    """
    try:
        if not path.exists():
            raise ConfigurationError(f"no such file: {path}")
        if not path.is_file():  # reading a pipe would wait for ever
            raise ConfigurationError(f"{path} is {'a folder' if path.is_dir() else 'not a regular file'}; name a file")
        what = what_it_is_instead(path)
    except OSError as error:  # such as a name that is too long
        raise ConfigurationError(f"cannot read {path}: {error.strerror}") from None
    if what:
        raise ConfigurationError(f"{path} is {what}")

"""Compiles native.c and memory.cpp with the machine's compilers on first use, and loads them.

The library is cached in `$XDG_CACHE_HOME/fastalex` (default `~/.cache/fastalex`). Its file name is a hash of the
source, the compiler, the flags, the processor and PyTorch's version; a change in any of them triggers a rebuild. The
file ends with the SHA-256 of what precedes it, so a damaged one is noticed and built again. Where there is no writable
cache, each process builds the library in a temporary folder, which takes some seconds.

Without a working C compiler, `library` returns None and the operators compute with PyTorch: results are the same up to
rounding, but about four times slower. Both are said in one line on stderr. `CC` names the compiler, as for make;
`CC=none` disables it.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

SOURCE = Path(__file__).with_name("native.c")
# Not -ffast-math, which breaks NaN. -fopenmp uses the OpenMP runtime that PyTorch has loaded, and its threads.
FLAGS = ("-O3", "-std=gnu11", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-shared", "-fPIC")
_TIMEOUT_SECONDS = 120
_SUM_BYTES = hashlib.sha256().digest_size

_POINTER, _LONG, _FLOAT, _INT = ctypes.c_void_p, ctypes.c_long, ctypes.c_float, ctypes.c_int
_NORM = [_LONG, _FLOAT, _FLOAT, _FLOAT]
_MAPS = [_LONG] * 5
TASK = ctypes.CFUNCTYPE(None, _LONG)
_ARGUMENTS = {
    "norm_over_channels": [_POINTER] * 3 + [_LONG] * 3 + _NORM + [_INT] * 2,
    "norm_over_map": [_POINTER] * 3 + [_LONG] * 4 + _NORM + [_INT] * 2,
    "lrn_pool_forward": [_POINTER] * 4 + _MAPS + _NORM + [_LONG, _LONG] + [_INT] * 3,
    "lrn_pool_backward": [_POINTER] * 6 + _MAPS + _NORM + [_LONG, _LONG] + [_INT] * 3,
    "lrn_pool_bias_parts": [_LONG, _LONG],
    "sgd_update": [_POINTER] * 4 + [_LONG] + [_FLOAT] * 3 + [_INT] * 2,
    "run_in_threads": [TASK, _LONG, _INT],
    "maps_to_tiles": [_POINTER] * 5 + [_LONG] * 16 + [_INT] * 2,
    "tiles_to_maps": [_POINTER] * 4 + [_LONG] * 2 + [_INT] + [_LONG] * 14 + [_INT] * 2,
}


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled functions, or None if they cannot be built; a line on stderr then gives the reason, once."""
    try:
        loaded = load(SOURCE, [*_compiler(), *FLAGS], ["-lm"])
    except (OSError, subprocess.SubprocessError) as error:
        _say(f"CPU operators fall back to PyTorch, which is slower: native.c could not be compiled ({_reason(error)})")
        return None
    return declared(loaded)


def declared(loaded: ctypes.CDLL) -> ctypes.CDLL:
    """`loaded`, a compiled native.c, with the types of its functions."""
    for name, arguments in _ARGUMENTS.items():
        function = getattr(loaded, name)
        function.argtypes = arguments
        function.restype = _LONG if name == "lrn_pool_bias_parts" else _INT
    return loaded


def compiler_version() -> str | None:
    """The first line of `cc --version` for the compiler that built the library; None if there is no library."""
    return None if library() is None else _run([_compiler()[0], "--version"]).splitlines()[0]


def load(source: Path, command: list[str], libraries: list[str]) -> ctypes.CDLL:
    """Load a library from the cache, or build it there, else in a temporary folder.

    Args:
        source: its only file.
        command: compiler and flags.
        libraries: the linker's flags, which come after the source.

    Raises:
        OSError, subprocess.SubprocessError: no compiler, a failed compilation, or nowhere to write.
    """
    parts = (source.read_text(), *command, _run([command[0], "--version"]), _processor(), torch.__version__)
    name = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24] + ".so"
    try:
        path = _cache() / name
        if not _is_intact(path):
            _build(source, command, libraries, path)
        return ctypes.CDLL(str(path))
    except subprocess.TimeoutExpired:  # it would be no faster elsewhere
        raise
    except (OSError, subprocess.SubprocessError) as error:  # a compiler also fails where the disk is full
        reason = _reason(error)
    with tempfile.TemporaryDirectory(prefix="fastalex-") as folder:
        path = Path(folder) / name
        _build(source, command, libraries, path)
        loaded = ctypes.CDLL(str(path))  # which stays in memory without its file
    _say(
        f"the compiled CPU operators cannot be kept ({reason}), so every start compiles them again; set XDG_CACHE_HOME "
        "to a writable folder"
    )
    return loaded


def _cache() -> Path:
    """The folder of cached libraries.

    Raises:
        OSError: this user has no home.
    """
    given = os.environ.get("XDG_CACHE_HOME")
    home = given or os.path.expanduser("~/.cache")
    if not given and not os.path.isabs(home):
        raise FileNotFoundError("there is no home folder")
    return Path(home) / "fastalex"


def _is_intact(path: Path) -> bool:
    """Whether a file is a complete library. Loading a damaged one could end this process."""
    if not path.exists():
        return False
    content = path.read_bytes()
    return content[-_SUM_BYTES:] == hashlib.sha256(content[:-_SUM_BYTES]).digest()


def _build(source: Path, command: list[str], libraries: list[str], path: Path) -> None:
    """Compile `source` into `path`, followed by the SHA-256 of the library, which the loader ignores.

    Raises:
        OSError, subprocess.SubprocessError: the compilation fails, or the folder cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Built in a temporary folder and renamed, so that processes starting together never load a partial file.
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        output = Path(scratch) / path.name
        _run([*command, "-o", str(output), str(source), *libraries])
        with output.open("ab") as file:
            file.write(hashlib.sha256(output.read_bytes()).digest())
        output.replace(path)


def _reason(error: OSError | subprocess.SubprocessError) -> str:
    """The compiler's first error, or the exception's message."""
    if isinstance(error, subprocess.TimeoutExpired):
        return f"{error.cmd[0]} took more than {error.timeout:g} seconds"
    output = getattr(error, "stderr", None) or ""
    return next((line for line in output.splitlines() if "error" in line), str(error))


def _say(line: str) -> None:
    """Print a line on stderr; of several workers on this machine, only the first one does."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"note: {line}", file=sys.stderr, flush=True)


def _compiler() -> list[str]:
    return shlex.split(os.environ.get("CC") or "cc")


def _run(command: list[str]) -> str:
    """Run a command in the C locale and return its standard output."""
    environment = os.environ | {"LC_ALL": "C"}
    completed = subprocess.run(
        command, env=environment, capture_output=True, text=True, errors="replace", check=True, timeout=_TIMEOUT_SECONDS
    )
    return completed.stdout


def _processor() -> str:
    """The processor's model and features, on which -march=native depends."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    fields = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(fields)}))

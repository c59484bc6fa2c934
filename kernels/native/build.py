"""Compiles native.c with the machine's C compiler on first use, and loads it.

The library is cached in `$XDG_CACHE_HOME/fastalex` (default `~/.cache/fastalex`). Its file name is a hash of the
source, the compiler, the flags, the processor and PyTorch's version; a change in any of them triggers a rebuild.
Without a working C compiler, `library` returns None and the operators compute with PyTorch: results are the same up to
rounding, but about four times slower. `CC` names the compiler, as for make; `CC=none` disables it.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import shlex
import subprocess
import tempfile
from pathlib import Path

import torch

_log = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("native.c")
# Not -ffast-math, which breaks NaN. -fopenmp uses the OpenMP runtime that PyTorch has loaded, and its threads.
FLAGS = ("-O3", "-std=gnu11", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-shared", "-fPIC")
_TIMEOUT_SECONDS = 120

_POINTER, _LONG, _FLOAT, _INT = ctypes.c_void_p, ctypes.c_long, ctypes.c_float, ctypes.c_int
_NORM = [_LONG, _FLOAT, _FLOAT, _FLOAT]
_MAPS = [_LONG] * 5
TASK = ctypes.CFUNCTYPE(None, _LONG)
_ARGUMENTS = {
    "norm_over_channels": [_POINTER] * 3 + [_LONG] * 3 + _NORM + [_INT],
    "norm_over_map": [_POINTER] * 3 + [_LONG] * 4 + _NORM + [_INT],
    "lrn_pool_forward": [_POINTER] * 4 + _MAPS + _NORM + [_LONG, _LONG, _INT, _INT],
    "lrn_pool_backward": [_POINTER] * 6 + _MAPS + _NORM + [_LONG, _LONG, _INT, _INT],
    "lrn_pool_bias_parts": [_LONG, _LONG],
    "run_in_threads": [TASK, _LONG, _INT],
    "maps_to_tiles": [_POINTER] * 5 + [_LONG] * 13 + [_INT],
    "tiles_to_maps": [_POINTER] * 4 + [_LONG] * 2 + [_INT] + [_LONG] * 11 + [_INT],
}


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled functions, or None if they cannot be built; the reason is logged once per process."""
    try:
        loaded = ctypes.CDLL(str(_build()))
    except (OSError, subprocess.SubprocessError) as error:
        output = (getattr(error, "stderr", None) or "").splitlines()
        reason = next((line for line in output if "error" in line), str(error))
        _log.info("CPU operators fall back to PyTorch, which is slower: native.c could not be compiled (%s)", reason)
        return None
    for name, arguments in _ARGUMENTS.items():
        function = getattr(loaded, name)
        function.argtypes = arguments
        function.restype = _LONG if name == "lrn_pool_bias_parts" else _INT
    return loaded


def compiler_version() -> str | None:
    """The first line of `cc --version` for the compiler that built the library; None if there is no library."""
    return None if library() is None else _run([_compiler()[0], "--version"]).splitlines()[0]


def _build() -> Path:
    """Build the library unless it is cached, and return its path.

    Raises:
        OSError, subprocess.SubprocessError: no compiler, a failed compilation, or a cache that cannot be written.
    """
    command = [*_compiler(), *FLAGS]
    parts = (SOURCE.read_text(), *command, _run([command[0], "--version"]), _processor(), torch.__version__)
    name = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24] + ".so"
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastalex"
    path = folder / name
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    # Built in a temporary folder and renamed, so that processes starting together never load a partial file.
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        output = Path(scratch) / name
        _run([*command, "-o", str(output), str(SOURCE), "-lm"])
        output.replace(path)
    return path


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

"""Memory for large CPU tensors that is kept and used again, so that a process stays at its size: memory.cpp."""

from __future__ import annotations

import ctypes
import functools
import os
import shlex
import subprocess
from pathlib import Path
from typing import NamedTuple

import torch

from kernels.native.build import load

SOURCE = Path(__file__).with_name("memory.cpp")
FLAGS = ("-O2", "-std=c++20", "-shared", "-fPIC")


class TensorMemory(NamedTuple):
    """Bytes of large tensors: in use, waiting to be used again, and most in use so far."""

    in_use: int
    waiting: int
    most_in_use: int


def keep_tensor_memory() -> bool:
    """Let PyTorch keep the memory of freed CPU tensors of 1 MiB and more, for tensors of about the same size.

    What waits is returned to the kernel before the process would exceed 1.1 times the most that was in use. Tensors
    that exist are not affected. It holds for the rest of the process; another call changes nothing.

    Returns:
        Whether PyTorch does so now. It needs a C++ compiler: `CXX`, or `c++`; `CC=none` or `CXX=none` disables it.
    """
    library = _library()
    if library is None:
        return False
    library.keep_tensor_memory()
    return True


def tensor_memory() -> TensorMemory:
    """The bytes that :func:`keep_tensor_memory` has counted; zeros without it."""
    library, values = _library(), (ctypes.c_size_t * 3)()
    if library is not None:
        library.tensor_memory(values)
    return TensorMemory(*values)


@functools.cache
def _library() -> ctypes.CDLL | None:
    """The compiled allocator; None if it cannot be compiled."""
    if os.environ.get("CC") == "none":  # which asks to do without compilers
        return None
    folder = Path(torch.__file__).parent
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
    command = [*shlex.split(os.environ.get("CXX") or "c++"), *FLAGS, abi, f"-I{folder / 'include'}"]
    try:
        return load(SOURCE, command, [f"-L{folder / 'lib'}", "-lc10"])
    except (OSError, subprocess.SubprocessError):
        return None

"""native.c, built by the machine's own C compiler when it is first wanted, and its functions on tensors.

The library is kept in `$XDG_CACHE_HOME/fastalex` (else `~/.cache/fastalex`) under a name made from everything that it
depends on, so that another source, compiler or processor gets one of its own. Without a C compiler, or where it cannot
build this one file, `library` is None and `kernels.native` computes with PyTorch: the same results to rounding, slower
by a factor of about four. `CC` names the compiler, as for make; `CC=none` does without.
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
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")

_log = logging.getLogger(__name__)

_SOURCE = Path(__file__).with_name("native.c")
# Without -ffast-math, which knows no NaN. The OpenMP runtime is the one that PyTorch has loaded, and its threads.
_FLAGS = ("-O3", "-std=gnu11", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-shared", "-fPIC")
_SECONDS = 120

_POINTER, _LONG, _FLOAT, _INT = ctypes.c_void_p, ctypes.c_long, ctypes.c_float, ctypes.c_int
_SHARE = ctypes.CFUNCTYPE(None, _LONG)
_NORM = [_LONG, _FLOAT, _FLOAT, _FLOAT]
_MAPS = [_LONG] * 5
_ARGUMENTS = {
    "norm_over_channels": [_POINTER] * 3 + [_LONG] * 3 + _NORM + [_INT],
    "norm_over_map": [_POINTER] * 3 + [_LONG] * 4 + _NORM + [_INT],
    "lrn_pool_forward": [_POINTER] * 4 + _MAPS + _NORM + [_LONG, _LONG, _INT, _INT],
    "lrn_pool_backward": [_POINTER] * 6 + _MAPS + _NORM + [_LONG, _LONG, _INT, _INT],
    "lrn_pool_bias_parts": [_LONG, _LONG],
    "in_threads": [_SHARE, _LONG, _INT],
    "tiles_of_maps": [_POINTER] * 5 + [_LONG] * 13 + [_INT],
    "maps_of_tiles": [_POINTER] * 4 + [_LONG] * 2 + [_INT] + [_LONG] * 11 + [_INT],
}
_RELU = {None: 0, "before": 1, "after": 2}


# --------------------------------------------------------------------------------------------------- the library


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled functions, or None where they cannot be had; the log says why, once a process."""
    try:
        built = ctypes.CDLL(str(_build()))
    except (OSError, subprocess.SubprocessError) as error:
        told = (getattr(error, "stderr", None) or "").splitlines()
        reason = next((line for line in told if "error" in line), str(error))
        _log.info("normalisation on the CPU is computed by PyTorch, which is slower: no compiled native.c (%s)", reason)
        return None
    for name, arguments in _ARGUMENTS.items():
        function = getattr(built, name)
        function.argtypes = arguments
        function.restype = _LONG if name == "lrn_pool_bias_parts" else _INT
    return built


def _build() -> Path:
    """The path of the library, built unless it is there.

    Raises:
        OSError, subprocess.SubprocessError: there is no compiler, it fails, or there is no place for the result.
    """
    command = [*_compiler(), *_FLAGS]
    parts = (_SOURCE.read_text(), *command, _run([command[0], "--version"]), _processor(), torch.__version__)
    name = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24] + ".so"
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastalex"
    path = folder / name
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    # Built beside its place and renamed: of several processes that begin at once, each finds a whole file.
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        made = Path(scratch) / name
        _run([*command, "-o", str(made), str(_SOURCE), "-lm"])
        made.replace(path)
    return path


def _compiler() -> list[str]:
    return shlex.split(os.environ.get("CC") or "cc")


def compiler_version() -> str | None:
    """The compiler that built the library, in its own words, or None where there is no library."""
    return None if library() is None else _run([_compiler()[0], "--version"]).splitlines()[0]


def _run(command: list[str]) -> str:
    """What the command prints, in English."""
    environment = os.environ | {"LC_ALL": "C"}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, errors="replace", check=True, timeout=_SECONDS
    )
    return done.stdout


def _processor() -> str:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))


def computes(x: Tensor) -> bool:
    """Whether the compiled functions take `x`: fp32 on a CPU."""
    return x.dtype == torch.float32 and x.device.type == "cpu" and library() is not None


# ------------------------------------------------------------------------------------------------- its functions
# Images are fp32, dense, and of one layout unless it says otherwise; none of them is empty.


def _call(name: str, *arguments) -> None:
    functions = library()
    assert functions is not None
    tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
    assert all(tensor.device.type == "cpu" for tensor in tensors)
    pointers = (argument.data_ptr() if isinstance(argument, Tensor) else argument for argument in arguments)
    if not getattr(functions, name)(*pointers, torch.get_num_threads()):
        raise MemoryError(f"{name}: no memory for the buffers of {torch.get_num_threads()} threads")


def share_out(run: Callable[[slice], Result], images: int) -> list[Result]:
    """What `run` returns for each thread's share of so many images, in order.

    Where PyTorch shares out each operation by itself, threads wait for each other after every one, and what one has
    written the next operation reads in another, out of another core's cache. Here a thread makes all steps of its
    images. No gradients are recorded. PyTorch's operators have one thread each within, as all are OpenMP's.
    """
    shares = min(torch.get_num_threads(), images)
    results: list[Any] = [None] * shares
    errors: list[BaseException] = []
    inference = torch.is_inference_mode_enabled()

    def run_share(number: int) -> None:
        try:
            with torch.inference_mode(inference), torch.no_grad():
                results[number] = run(slice(images * number // shares, images * (number + 1) // shares))
        except BaseException as error:  # which C would not hand on
            errors.append(error)

    _call("in_threads", _SHARE(run_share), shares)
    if errors:
        raise errors[0]
    return results


def norm_over_channels(
    x: Tensor, grad: Tensor | None, result: Tensor, options: tuple[int, float, float, float], groups: int, inner: int
) -> None:
    """Write y, or with a gradient grad_x, to `result`; the channels of `x` lie `inner` elements apart."""
    size, alpha, beta, k = options
    channels = x.shape[1] // groups
    rows = x.numel() // (channels * inner)
    _call("norm_over_channels", x, grad, result, rows, channels, inner, size, alpha / size, beta, k)


def norm_over_map(x: Tensor, grad: Tensor | None, result: Tensor, options: tuple[int, float, float, float]) -> None:
    """Write y, or with a gradient grad_x, to `result`; all in channels_last."""
    size, alpha, beta, k = options
    batch, channels, height, width = x.shape
    _call("norm_over_map", x, grad, result, batch, height, width, channels, size, alpha / size**2, beta, k)


def lrn_pool_forward(
    x: Tensor,
    bias: Tensor | None,
    y: Tensor,
    kept: Tensor,
    options: tuple[int, float, float, float],
    groups: int,
    pool: tuple[int, int],
    relu: str | None,
) -> None:
    """Write the pooled result and the places of its elements (uint8) to `y` and `kept`; all in channels_last."""
    bias = None if bias is None else bias.contiguous()
    _call("lrn_pool_forward", x, bias, y, kept, *_lrn_pool(x, options, groups, pool, relu))


def lrn_pool_backward(
    grad: Tensor,
    kept: Tensor,
    x: Tensor,
    bias: Tensor | None,
    grad_x: Tensor,
    options: tuple[int, float, float, float],
    groups: int,
    pool: tuple[int, int],
    relu: str | None,
) -> Tensor:
    """Write the gradient of x to `grad_x` and return that of the bias; all in channels_last."""
    functions = library()
    assert functions is not None
    bias = None if bias is None else bias.contiguous()
    parts = x.new_empty(functions.lrn_pool_bias_parts(x.shape[0], x.shape[2]), x.shape[1])
    _call("lrn_pool_backward", grad, kept, x, bias, grad_x, parts, *_lrn_pool(x, options, groups, pool, relu))
    return parts.sum(0)


def _lrn_pool(x, options, groups, pool, relu) -> tuple:
    size, alpha, beta, k = options
    batch, channels, height, width = x.shape
    return batch, height, width, channels, groups, size, alpha / size, beta, k, *pool, _RELU[relu]


def tiles_of_maps(
    maps: Tensor, mask: Tensor | None, values: Tensor, sums: Tensor | None, matrix: Tensor, grid: tuple[int, ...]
) -> None:
    """Write the transforms of all tiles to `values`, and if wanted the sums over each map's pixels.

    Args:
        maps: images x height x width x channels.
        mask: of the same shape; where it is not above 0, a map counts as 0.
        values: by place, group, tile and term.
        sums: images x channels.
        matrix: p x q, for matrix @ tile @ matrix^T; p and q are at most 8.
        grid: images, height, width, channels of a group, groups, stride, padding above and left, cells from one tile to
            the next, tiles below and beside each other.
    """
    _call("tiles_of_maps", maps, mask, values, sums, matrix, *matrix.shape, *grid)


def maps_of_tiles(
    values: Tensor, bias: Tensor | None, maps: Tensor, matrix: Tensor, grid: tuple[int, ...], *, relu: bool
) -> None:
    """The adjoint of :func:`tiles_of_maps`, of the matrix and grid given, with a bias and a ReLU: write to `maps`."""
    bias = None if bias is None else bias.contiguous()
    _call("maps_of_tiles", values, bias, maps, matrix, *matrix.shape, relu, *grid)

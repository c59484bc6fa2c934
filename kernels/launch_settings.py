"""How the Triton kernels are launched: what all launches share, and the tile sizes of the convolution.

Most kernels are limited by memory bandwidth. A thread makes one load of 16 bytes, the widest possible, per tensor and
item, and a program has 128 threads. This gives enough programs to fill a GPU even at AlexNet's smallest maps, and uses
few enough registers for several programs per multiprocessor. Where tuning has found a faster launch of
normalisation or pooling on a GPU, that is used (`kernels.tuned`). Nothing is tuned at run time.

The convolution's tile sizes come from a measured table, `kernels/tuned/<gpu>.json`, which
`python bench/conv_relu.py --tune` writes on that GPU:

    {"device": "...", "versions": {...}, "date": "...", "entries": [
        {"direction": "forward", "problem": {...}, "settings": {...}, "ms": 0.1, "library_ms": 0.2}, ...]}

`direction` is one of `DIRECTIONS`, `problem` has the fields of `Problem`, `settings` those of `Settings`. `ms` is the
time with these settings, `library_ms` the time of cuDNN including all that it needs to compute the same. A problem
uses the entry of its own batch size, or else the entry of the nearest one up to eight times as large or small. Triton
computes where the entry says that it is clearly faster, cuDNN elsewhere. If Triton is forced and no entry fits,
`heuristic` chooses the settings.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import logging
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from kernels import arguments
from kernels.dispatch import triton

# Triton enables floating-point contraction by default only until 3.10; results must not change with the version.
OPTIONS: dict[str, Any] = {"num_warps": 4, "enable_fp_fusion": True}
# Items per program.
ITEMS = 128
_VECTOR_BYTES = 16
_MAX_VECTOR = 8

Direction = Literal["forward", "data_gradient", "weight_gradient"]
DIRECTIONS: tuple[Direction, ...] = get_args(Direction)
TABLES = Path(__file__).parent / "tuned"

# Two programs on each of the 108 to 148 multiprocessors of today's largest GPUs.
_MIN_PROGRAMS = 256
_MIN_STEPS_PER_SPLIT = 8
# Triton wins if its time is below this fraction of cuDNN's: two measurements of the same differ by up to 3 %.
WIN_RATIO = 0.97
# Largest ratio between a problem's batch and that of the entry it may use.
_MAX_BATCH_RATIO = 8.0
# Largest ratio of the terms of a rearranged convolution, its zero taps included, to those of the original.
_MAX_TERM_RATIO = 1.5

_log = logging.getLogger(__name__)


def vector_width(channels: int, itemsize: int) -> int:
    """Number of neighbouring channels in one item: a power of two that divides `channels`, 16 bytes at most."""
    return math.gcd(channels, min(_MAX_VECTOR, _VECTOR_BYTES // itemsize))


def programs(items: int) -> int:
    """Number of programs for one image, or one row, of `items` items."""
    return triton.cdiv(items, ITEMS)


def on_device_of(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Context manager that makes x's GPU the current device for a launch."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


@dataclasses.dataclass(frozen=True)
class Problem:
    """One convolution: everything that its launch settings may depend on.

    `padding` is (top, bottom, left, right). `precision` is "tf32" if fp32 factors may be rounded to TF32, else "ieee".
    `epilogue` says whether bias or ReLU follow; it is False for gradients.
    """

    batch: int
    channels: int
    height: int
    width: int
    filters: int
    kernel: tuple[int, int]
    stride: int
    padding: tuple[int, int, int, int]
    groups: int
    dtype: str
    precision: str
    epilogue: bool = False

    @property
    def out_height(self) -> int:
        return (self.padding[0] + self.height + self.padding[1] - self.kernel[0]) // self.stride + 1

    @property
    def out_width(self) -> int:
        return (self.padding[2] + self.width + self.padding[3] - self.kernel[1]) // self.stride + 1

    @property
    def itemsize(self) -> int:
        return getattr(torch, self.dtype).itemsize

    def product(self, direction: Direction) -> tuple[int, int, int]:
        """Rows, columns and terms (M, N, K) of the matrix product of one group and, in a data gradient, one phase."""
        channels, filters = self.channels // self.groups, self.filters // self.groups
        out_pixels = self.batch * self.out_height * self.out_width
        taps = self.kernel[0] * self.kernel[1]
        if direction == "forward":
            return out_pixels, filters, taps * channels
        if direction == "weight_gradient":
            return filters, taps * channels, out_pixels
        pixels = self.batch * triton.cdiv(self.height, self.stride) * triton.cdiv(self.width, self.stride)
        return pixels, channels, triton.cdiv(taps, self.stride**2) * filters

    def rearranged(self) -> Problem:
        """The same convolution with stride 1, after space-to-depth: stride x stride pixels of x become one pixel.

        The new x contains the padding, and the kernel is padded with zeros to a multiple of the stride.
        """
        kernel = (triton.cdiv(self.kernel[0], self.stride), triton.cdiv(self.kernel[1], self.stride))
        return dataclasses.replace(
            self,
            channels=self.channels * self.stride**2,
            height=self.out_height + kernel[0] - 1,
            width=self.out_width + kernel[1] - 1,
            kernel=kernel,
            stride=1,
            padding=(0, 0, 0, 0),
        )

    def can_be_rearranged(self) -> bool:
        """Whether `rearranged` replaces narrow loads of few channels by wide ones without adding many zero terms."""
        if self.stride == 1:
            return False
        new = self.rearranged()
        terms, new_terms = (problem.product("forward")[2] for problem in (self, new))
        fits = new.channels * new.height * new.width <= arguments.MAX_ELEMENTS
        return _loads_narrowly("forward", self) and new_terms <= _MAX_TERM_RATIO * terms and fits


@dataclasses.dataclass(frozen=True)
class Settings:
    """Tile sizes of a matrix product: block_m x block_n results, block_k terms per step, and Triton's launch options.

    In a weight gradient, `splits` programs divide the terms of each tile among them (split-K); the other directions
    have one. `rearranged` applies space-to-depth first (`Problem.rearranged`), which a data gradient does not support.
    """

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int
    splits: int = 1
    rearranged: bool = False

    def __post_init__(self) -> None:
        for name in ("block_m", "block_n", "block_k", "num_warps"):
            value = getattr(self, name)
            least = 1 if name == "num_warps" else 16
            if not isinstance(value, int) or value < least or value & (value - 1):
                raise ValueError(f"{name} must be a power of two and at least {least}, got {value!r}")
        for name in ("num_stages", "splits"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be an int and at least 1, got {value!r}")
        if not isinstance(self.rearranged, bool):
            raise ValueError(f"rearranged must be true or false, got {self.rearranged!r}")


@dataclasses.dataclass(frozen=True)
class Entry:
    """One entry of a table: the best settings of a problem and direction, their time, and cuDNN's."""

    settings: Settings
    ms: float
    library_ms: float

    @property
    def wins(self) -> bool:
        """Whether Triton is faster by more than measurement noise."""
        return self.ms < WIN_RATIO * self.library_ms


Table = Mapping[tuple[Direction, Problem], Entry]


def problem_of(
    x: Tensor, weight: Tensor, stride: int, padding: Sequence[int], groups: int, epilogue: bool = False
) -> Problem:
    """The convolution of these tensors. `padding` is (top, bottom, left, right)."""
    batch, channels, height, width = x.shape
    # This flag follows both `torch.backends.cudnn.allow_tf32` and its successors.
    tf32 = x.dtype == torch.float32 and torch.backends.cudnn.conv.fp32_precision == "tf32"  # type: ignore[attr-defined]
    return Problem(
        batch, channels, height, width, weight.shape[0], (weight.shape[2], weight.shape[3]), stride,
        (padding[0], padding[1], padding[2], padding[3]), groups, str(x.dtype).removeprefix("torch."),
        "tf32" if tf32 else "ieee", epilogue,
    )  # fmt: skip


def gpu_of(x: Tensor) -> str | None:
    """Name of x's GPU, or None on a CPU."""
    return _device_name(x.device) if x.is_cuda else None


@functools.cache
def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device)


@functools.lru_cache(maxsize=1024)
def choose(direction: Direction, problem: Problem, gpu: str | None, forced: bool) -> Settings | None:
    """The settings of a Triton launch, or None if cuDNN computes this product.

    Args:
        gpu: name of the GPU; None without one.
        forced: use Triton even if no measurement says that it is faster.

    Raises:
        ValueError: the GPU's table is damaged.
    """
    entry = _nearest(load_table(table_path(gpu)), direction, problem) if gpu is not None else None
    if entry is not None and (entry.wins or forced):
        return entry.settings
    if not forced:
        return None
    settings = heuristic(direction, problem)
    _log.debug("%s of %s: no entry for %s; the heuristic chose %s", direction, problem, gpu or "the CPU", settings)
    return settings


def _nearest(table: Table, direction: Direction, problem: Problem) -> Entry | None:
    """The entry of the same problem with the nearest batch; of two equally near, the smaller batch."""
    candidates = {}
    for (entry_direction, entry_problem), entry in table.items():
        distance = abs(math.log(entry_problem.batch / problem.batch))
        if entry_direction == direction and dataclasses.replace(entry_problem, batch=problem.batch) == problem:
            candidates[distance, entry_problem.batch] = entry
    best = min(candidates, default=None)
    return None if best is None or best[0] > math.log(_MAX_BATCH_RATIO) + 1e-9 else candidates[best]


def heuristic(direction: Direction, problem: Problem) -> Settings:
    """Settings that compile without spills on any GPU with tensor cores, for any problem.

    Pixels that cannot be loaded 16 bytes at a time are rearranged if the stride allows it. Tiles are as large as the
    registers of four warps hold, or smaller if they would mostly overhang the edge or be too few to fill a GPU. Four
    warps, because some compilers have produced silently wrong convolutions with eight.
    """
    if direction != "data_gradient" and problem.can_be_rearranged():
        return dataclasses.replace(heuristic(direction, problem.rearranged()), rearranged=True)
    rows, columns, terms = problem.product(direction)
    # The tile of the result.
    max_m, max_n = _largest_tile(direction, problem)
    block_n = _tile_length(columns, max_n)
    if direction == "weight_gradient":
        block_m = _tile_length(rows, max_m)
    else:
        block_m = _power_of_two(rows, max_m)
        if problem.groups * triton.cdiv(rows, block_m) * triton.cdiv(columns, block_n) < _MIN_PROGRAMS:
            block_m = min(block_m, 64)
    # The terms per step: 128 bytes of a row are a cache line. Addresses of single pixels or terms take so many
    # registers that only half of that fits.
    depth = problem.channels // problem.groups
    few_registers = direction == "data_gradient" or _without_tensor_cores(problem) or block_m * block_n == 128 * 128
    # Terms of a tile that belong to several taps need an address each.
    few_registers |= direction == "weight_gradient" and depth % block_n != 0
    max_k = max(16, (64 if few_registers else 128) // problem.itemsize)
    if _loads_narrowly(direction, problem):
        # Narrow loads pass through registers.
        max_k = min(max_k, 32)
    block_k = _power_of_two(terms, max_k)
    # The splits: enough programs to fill a GPU, each with enough steps.
    splits = 1
    if direction == "weight_gradient":
        tiles = problem.groups * triton.cdiv(rows, block_m) * triton.cdiv(columns, block_n)
        max_splits = max(1, terms // (block_k * _MIN_STEPS_PER_SPLIT))
        splits = min(max_splits, triton.cdiv(_MIN_PROGRAMS, tiles))
    return Settings(block_m, block_n, block_k, num_warps=4, num_stages=3, splits=splits)


def _largest_tile(direction: Direction, problem: Problem) -> tuple[int, int]:
    """Rows and columns of the largest tile whose accumulators and addresses fit the registers of four warps."""
    if _without_tensor_cores(problem):
        return 64, 64
    depth = problem.channels // problem.groups
    narrow = _loads_narrowly(direction, problem)
    if direction == "forward" and depth % (128 // problem.itemsize):
        # A step crosses from tap to tap, so each pixel needs its own addresses.
        return 64, 128 if problem.itemsize == 2 else 64
    if direction == "weight_gradient" and problem.itemsize > 2 and depth % 64 and not narrow:
        # Each term needs its own address, and so does each element that is transposed on its way.
        return 64, 64
    return 128, 64 if problem.itemsize > 2 or narrow else 128


def _without_tensor_cores(problem: Problem) -> bool:
    """Whether products are computed one or two at a time: in fp64, and in fp32 that may not be rounded to TF32."""
    return problem.dtype == "float64" or (problem.dtype == "float32" and problem.precision == "ieee")


def _loads_narrowly(direction: Direction, problem: Problem) -> bool:
    """Whether x cannot be loaded 16 bytes at a time."""
    return direction != "data_gradient" and problem.channels // problem.groups % (16 // problem.itemsize) != 0


def _power_of_two(length: int, largest: int) -> int:
    """The power of two that covers `length`, between 16 and `largest`."""
    return min(largest, max(16, triton.next_power_of_2(length)))


def _tile_length(length: int, largest: int) -> int:
    """The largest tile length of at least 64 that wastes no more than a sixth of `length`; else the largest of all.

    A tile reads its operands again for each neighbour, so small tiles cost more than they save.
    """
    sizes = [size for size in (128, 64, 32, 16) if size <= _power_of_two(length, largest)]
    covered = {size: triton.cdiv(length, size) * size for size in sizes}
    fitting = [size for size in sizes if size >= 64 and covered[size] <= length * 7 / 6]
    return fitting[0] if fitting else sizes[0]


def table_path(gpu: str) -> Path:
    """The file of a GPU's table."""
    return TABLES / (re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-") + ".json")


@functools.lru_cache(maxsize=16)
def load_table(path: Path) -> Table:
    """The entries of a table; empty if the file does not exist.

    Raises:
        ValueError: the file is not a table.
    """
    if not path.exists():
        return {}
    try:
        entries = json.loads(path.read_text())["entries"]
        return dict(_entry(entry) for entry in entries)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(damaged(path, error)) from error


def damaged(path: Path, error: Exception) -> str:
    """The message about a file that is not a table."""
    return (
        f"{path} is not a table of launch settings ({type(error).__name__}: {error}): delete it or write it again with "
        "python bench/conv_relu.py --tune"
    )


def positive(name: str, value: Any) -> float:
    """A time in a table, checked."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise ValueError(f"{name} must be a positive number, got {value!r}")
    return value


def _entry(entry: Mapping[str, Any]) -> tuple[tuple[Direction, Problem], Entry]:
    direction = entry["direction"]
    if direction not in DIRECTIONS:
        raise ValueError(f"direction must be one of {', '.join(DIRECTIONS)}, got {direction!r}")
    fields: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in entry["problem"].items()
    }
    times = {name: positive(name, entry[name]) for name in ("ms", "library_ms")}
    problem, settings = Problem(**fields), Settings(**entry["settings"])
    if settings.rearranged and (direction == "data_gradient" or not problem.can_be_rearranged()):
        raise ValueError(f"rearranged must be false for the {direction} of {problem}, got true")
    return (direction, problem), Entry(settings, **times)


def table_entry(direction: Direction, problem: Problem, entry: Entry) -> dict[str, Any]:
    """One entry in the format that `load_table` reads."""
    return {
        "direction": direction,
        "problem": dataclasses.asdict(problem),
        "settings": dataclasses.asdict(entry.settings),
        "ms": entry.ms,
        "library_ms": entry.library_ms,
    }

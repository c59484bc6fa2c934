"""How the convolution kernels are launched: what they are asked, measured tables per GPU, and a rule without a table.

A table is `kernels/tuned/<gpu>.json`, written by `python bench/conv_relu.py --tune` on that GPU:

    {"device": "...", "versions": {...}, "date": "...", "entries": [
        {"direction": "forward", "problem": {...}, "settings": {...}, "ms": 0.1, "library_ms": 0.2}, ...]}

`direction` is one of `DIRECTIONS`, `problem` has the fields of `Problem`, `settings` those of `Settings`; `ms` is the
time of these settings and `library_ms` that of cuDNN with what it takes to compute the same. A problem takes the entry
of its own batch size, else that of the nearest one up to eight times as large or small. Triton computes where the entry
says that it is clearly faster, and cuDNN elsewhere; where Triton is forced and no entry fits, `heuristic` chooses the
settings. Nothing is tuned while a network trains.
"""

from __future__ import annotations

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
import triton
from torch import Tensor

from kernels import launch

Direction = Literal["forward", "data_gradient", "weight_gradient"]
DIRECTIONS: tuple[Direction, ...] = get_args(Direction)
TABLES = Path(__file__).parent / "tuned"

# Programs that keep the 108 to 148 multiprocessors of today's largest GPUs busy, two on each.
_PROGRAMS = 256
_LEAST_STEPS_PER_SPLIT = 8
_CLEARLY = 0.97
# How far the batch of an entry may be from that of a problem that has none of its own.
_NEAR = 8.0
# Terms of a rearranged convolution, those of its zero taps included, for each term there was.
_MOST_TERMS = 1.5

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Problem:
    """One convolution: all that its launch settings may depend on.

    `padding` is (top, bottom, left, right). `precision` is "tf32" where fp32 factors may be rounded to TF32, else
    "ieee". `epilogue` says whether bias or ReLU follow; it is False for gradients.
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
        """Rows, columns and terms of the matrix product, for one group (and one phase of a strided data gradient)."""
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
        """The same convolution with stride 1, of x's squares of stride x stride pixels as one pixel's channels each.

        Padding is part of the new x, and zeros fill the last squares of the kernel.
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
        """Whether that turns pixels of few channels, which are loaded narrowly, into wide ones without much waste."""
        if self.stride == 1:
            return False
        other = self.rearranged()
        terms, others = (p.product("forward")[2] for p in (self, other))
        fits = other.channels * other.height * other.width <= launch.MOST_ELEMENTS
        return _is_narrow("forward", self) and others <= _MOST_TERMS * terms and fits


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a matrix product is cut up: the tile of the result, the terms per step, and Triton's own two.

    `splits` programs share the terms of a weight gradient's tile; the other directions have one. `rearranged` has a
    strided convolution's squares of pixels laid into channels first (`Problem.rearranged`); a data gradient has no such
    form.
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
                raise ValueError(f"{name} must be a power of two and at least {least}, not {value!r}")
        for name in ("num_stages", "splits"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be an int and at least 1, not {value!r}")
        if not isinstance(self.rearranged, bool):
            raise ValueError(f"rearranged must be true or false, not {self.rearranged!r}")


@dataclasses.dataclass(frozen=True)
class Entry:
    """What a table says of one problem and direction."""

    settings: Settings
    ms: float
    library_ms: float

    @property
    def wins(self) -> bool:
        """Whether Triton is faster by more than what two measurements of the same differ by."""
        return self.ms < _CLEARLY * self.library_ms


Table = Mapping[tuple[Direction, Problem], Entry]


def problem_of(
    x: Tensor, weight: Tensor, stride: int, padding: Sequence[int], groups: int, epilogue: bool = False
) -> Problem:
    batch, channels, height, width = x.shape
    # The one flag that follows both `torch.backends.cudnn.allow_tf32` and its successors.
    tf32 = x.dtype == torch.float32 and torch.backends.cudnn.conv.fp32_precision == "tf32"  # type: ignore[attr-defined]
    return Problem(
        batch,
        channels,
        height,
        width,
        weight.shape[0],
        (weight.shape[2], weight.shape[3]),
        stride,
        (padding[0], padding[1], padding[2], padding[3]),
        groups,
        str(x.dtype).removeprefix("torch."),
        "tf32" if tf32 else "ieee",
        epilogue,
    )


def gpu_of(x: Tensor) -> str | None:
    return _device_name(x.device) if x.is_cuda else None


@functools.cache
def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device)


@functools.lru_cache(maxsize=1024)
def choose(direction: Direction, problem: Problem, gpu: str | None, forced: bool) -> Settings | None:
    """The settings for a Triton launch, or None where cuDNN is to compute.

    Args:
        gpu: the device's name, or None where there is none.
        forced: whether Triton computes even where nothing says that it is faster.

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
    """The entry of the same problem whose batch is the nearest; of two as near, that of the smaller batch."""
    same = {}
    for (of_direction, of_problem), entry in table.items():
        distance = abs(math.log(of_problem.batch / problem.batch))
        if of_direction == direction and dataclasses.replace(of_problem, batch=problem.batch) == problem:
            same[distance, of_problem.batch] = entry
    best = min(same, default=None)
    return None if best is None or best[0] > math.log(_NEAR) + 1e-9 else same[best]


def heuristic(direction: Direction, problem: Problem) -> Settings:
    """Settings that compile without spills on any GPU with matrix units, for any problem.

    Pixels that cannot be loaded 16 bytes at a time are rearranged, where the convolution's stride allows that. Tiles
    are as large as the registers of four warps hold, and smaller where they would mostly hang over the edge or be too
    few to fill a GPU. Four warps, because convolutions with eight have been silently wrong on some compilers.
    """
    if direction != "data_gradient" and problem.can_be_rearranged():
        return dataclasses.replace(heuristic(direction, problem.rearranged()), rearranged=True)
    rows, columns, terms = problem.product(direction)
    widest_m, widest_n = _widest(direction, problem)
    block_n = _snug(columns, widest_n)
    if direction == "weight_gradient":
        block_m = _snug(rows, widest_m)
    else:
        block_m = _power_of_two(rows, widest_m)
        if problem.groups * triton.cdiv(rows, block_m) * triton.cdiv(columns, block_n) < _PROGRAMS:
            block_m = min(block_m, 64)
    # 128 bytes of a row are a line of a cache; where pixels take more addresses, registers are left for half of that.
    depth = problem.channels // problem.groups
    crowded = direction == "data_gradient" or _by_scalars(problem) or block_m * block_n == 128 * 128
    # So are terms that cross from tap to tap.
    crowded |= direction == "weight_gradient" and depth % block_n != 0
    step = max(16, (64 if crowded else 128) // problem.itemsize)
    if _is_narrow(direction, problem):
        # Such loads pass through registers.
        step = min(step, 32)
    block_k = _power_of_two(terms, step)
    splits = 1
    if direction == "weight_gradient":
        tiles = problem.groups * triton.cdiv(rows, block_m) * triton.cdiv(columns, block_n)
        most = max(1, terms // (block_k * _LEAST_STEPS_PER_SPLIT))
        splits = min(most, triton.cdiv(_PROGRAMS, tiles))
    return Settings(block_m, block_n, block_k, num_warps=4, num_stages=3, splits=splits)


def _widest(direction: Direction, problem: Problem) -> tuple[int, int]:
    """Rows and columns of the largest tile whose sums and addresses four warps have registers for."""
    if _by_scalars(problem):
        return 64, 64
    depth = problem.channels // problem.groups
    if direction == "forward" and depth % (128 // problem.itemsize):
        # A step crosses from tap to tap, so that each pixel has addresses of its own.
        return 64, 128 if problem.itemsize == 2 else 64
    if direction == "weight_gradient" and problem.itemsize > 2 and depth % 64 and not _is_narrow(direction, problem):
        # Each term has an address of its own, and so has each element that is transposed on its way.
        return 64, 64
    return 128, 64 if problem.itemsize > 2 or _is_narrow(direction, problem) else 128


def _by_scalars(problem: Problem) -> bool:
    """Whether products are made one by one, or two by two: fp64, and fp32 that may not be rounded to TF32."""
    return problem.dtype == "float64" or (problem.dtype == "float32" and problem.precision == "ieee")


def _is_narrow(direction: Direction, problem: Problem) -> bool:
    """Whether x cannot be loaded 16 bytes at a time."""
    return direction != "data_gradient" and problem.channels // problem.groups % (16 // problem.itemsize) != 0


def _power_of_two(length: int, most: int) -> int:
    return min(most, max(16, triton.next_power_of_2(length)))


def _snug(length: int, most: int) -> int:
    """The tile of at most `most` that covers `length` with a sixth of waste or less; else the one that wastes least."""
    sizes = [size for size in (128, 64, 32, 16) if size <= _power_of_two(length, most)]
    covered = {size: triton.cdiv(length, size) * size for size in sizes}
    # Each tile is read once for each of the others, so small ones cost more than they save.
    fits = [size for size in sizes if size >= 64 and covered[size] <= length * 7 / 6]
    return fits[0] if fits else sizes[0]


def table_path(gpu: str) -> Path:
    return TABLES / (re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-") + ".json")


@functools.lru_cache(maxsize=16)
def load_table(path: Path) -> Table:
    """The entries of a table; none where there is no such file.

    Raises:
        ValueError: the file is no table.
    """
    if not path.exists():
        return {}
    try:
        entries = json.loads(path.read_text())["entries"]
        return dict(_entry(entry) for entry in entries)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(
            f"{path} is no table of launch settings ({reason}): delete it, or write it anew with "
            "python bench/conv_relu.py --tune"
        ) from error


def _entry(entry: Mapping[str, Any]) -> tuple[tuple[Direction, Problem], Entry]:
    direction = entry["direction"]
    if direction not in DIRECTIONS:
        raise ValueError(f"direction must be one of {', '.join(DIRECTIONS)}, not {direction!r}")
    fields: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in entry["problem"].items()
    }
    times = {name: entry[name] for name in ("ms", "library_ms")}
    for name, value in times.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
            raise ValueError(f"{name} must be a positive number, not {value!r}")
    problem, settings = Problem(**fields), Settings(**entry["settings"])
    if settings.rearranged and (direction == "data_gradient" or not problem.can_be_rearranged()):
        raise ValueError(f"settings are rearranged, which a {direction} of {problem} cannot be")
    return (direction, problem), Entry(settings, **times)


def table_entry(direction: Direction, problem: Problem, entry: Entry) -> dict[str, Any]:
    """What `load_table` reads back."""
    return {
        "direction": direction,
        "problem": dataclasses.asdict(problem),
        "settings": dataclasses.asdict(entry.settings),
        "ms": entry.ms,
        "library_ms": entry.library_ms,
    }

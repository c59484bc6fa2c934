"""Measured launches of the memory-bound kernels: how many items a program has, and how many warps.

`python bench/conv_relu.py --tune` writes them into a GPU's table, `kernels/tuned/<gpu>.json`, beside the convolution's
settings (`kernels.launch_settings`):

    {..., "launches": [
        {"kernel": "lrn_fwd_kernel", "dtype": "bfloat16", "items": 256, "num_warps": 8, "ms": 0.1, "default_ms": 0.2}]}

`ms` is the time with this launch, `default_ms` with the default one. They are measured in channels_last at the shapes
of AlexNet's layers, and used for channels_last tensors of any shape. Everything else has the default launch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from kernels import launch_settings
from kernels.dispatch import triton
from kernels.memory_format import is_channels_last


@dataclasses.dataclass(frozen=True)
class Launch:
    """Items and warps of a program."""

    items: int = launch_settings.ITEMS
    num_warps: int = launch_settings.OPTIONS["num_warps"]

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1 or value & (value - 1):
                raise ValueError(f"{name} must be a power of two, got {value!r}")

    @property
    def options(self) -> dict[str, Any]:
        """The kernel's constant ITEMS, and Triton's launch options."""
        return launch_settings.OPTIONS | {"ITEMS": self.items, "num_warps": self.num_warps}

    def programs(self, items: int) -> int:
        """Number of programs for one image of `items` items."""
        return triton.cdiv(items, self.items)


@dataclasses.dataclass(frozen=True)
class Entry:
    """The best launch of a kernel, its time, and that of the default launch."""

    launch: Launch
    ms: float
    default_ms: float

    @property
    def wins(self) -> bool:
        """Whether it is faster than the default by more than measurement noise."""
        return self.ms < launch_settings.WIN_RATIO * self.default_ms


# By kernel and dtype.
Table = dict[tuple[str, str], Entry]

# Launches that tuning tries instead of all others, by kernel.
_tried: dict[str, Launch] = {}


@contextlib.contextmanager
def trying(kernel: str, launch: Launch) -> Iterator[None]:
    """In this block, a kernel has this launch."""
    _tried[kernel] = launch
    try:
        yield
    finally:
        del _tried[kernel]


def launch_of(kernel: str, x: Tensor) -> Launch:
    """The launch of a kernel for x, or for tensors of x's dtype and memory format.

    Raises:
        ValueError: the table of x's GPU is damaged.
    """
    if kernel in _tried:
        return _tried[kernel]
    gpu = launch_settings.gpu_of(x)
    if gpu is None or not is_channels_last(x):
        return Launch()
    return _measured(kernel, str(x.dtype).removeprefix("torch."), launch_settings.table_path(gpu))


@functools.lru_cache(maxsize=256)
def _measured(kernel: str, dtype: str, path: Path) -> Launch:
    entry = load(path).get((kernel, dtype))
    return entry.launch if entry is not None and entry.wins else Launch()


@functools.lru_cache(maxsize=16)
def load(path: Path) -> Table:
    """The launches in a table; empty if there are none, or no such file.

    Raises:
        ValueError: the file is not a table.
    """
    if not path.exists():
        return {}
    try:
        return dict(_parsed(entry) for entry in json.loads(path.read_text()).get("launches", []))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(launch_settings.damaged(path, error)) from error


def _parsed(entry: Mapping[str, Any]) -> tuple[tuple[str, str], Entry]:
    times = {name: launch_settings.positive(name, entry[name]) for name in ("ms", "default_ms")}
    return (entry["kernel"], entry["dtype"]), Entry(Launch(entry["items"], entry["num_warps"]), **times)


def table_entry(key: tuple[str, str], entry: Entry) -> dict[str, Any]:
    """One entry in the format that :func:`load` reads."""
    times = {"ms": entry.ms, "default_ms": entry.default_ms}
    return dict(zip(("kernel", "dtype"), key, strict=True)) | dataclasses.asdict(entry.launch) | times


def forget() -> None:
    """Read tables again: one has been written."""
    load.cache_clear()
    _measured.cache_clear()

"""What the benchmarks share: measuring, judging, and writing down.

A case is one operator at one shape. Each provider computes it; a provider that fails, or whose result or gradients
differ from the definition in fp64, gets no time. Bandwidth is counted from the fewest bytes that the operator must
move, and compared with a device-to-device copy measured in the same run; what computes more than it moves is counted in
floating-point operations, and compared with a large matrix product.

On a GPU, the times are the device's alone: before each of them it is kept waiting until the host has asked for all of
the work, which often takes the host longer than the device needs. On a CPU, freed memory is kept, as in training: a
provider would be timed clearing fresh pages, more or fewer by what ran before it.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import math
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import rich.console
import rich.table
import torch
import triton
from torch import Tensor

from fastalex.training.allocator import keep_freed_memory
from kernels import native_c

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
DIRECTIONS = ("forward", "backward", "both")
# Errors allowed, relative to the largest value: of fp64 and fp32 arithmetic, and of one or two roundings of the rest.
TOLERANCES = {torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 3e-2}
# The part of a gradient's norm that may lie elsewhere where rounding decides which pixel of a window is the largest.
MOVED = 0.2
# Clock cycles that a GPU waits for the host: half a millisecond to begin with, and eight at most.
_LEAD, _LONGEST_LEAD = 2**20, 2**24

Operator = Callable[..., Tensor]


@dataclass(frozen=True)
class Case:
    """One operator at one shape.

    Attributes:
        op: the operator's name.
        shape: of `x`, the first input.
        dtype: of the inputs.
        definition: the operator in plain PyTorch, which judges the providers.
        providers: name -> (operator, memory layout of x).
        bytes_moved: direction -> the fewest bytes that it must read and write.
        operations: direction -> additions and multiplications, in place of `bytes_moved`.
        gradients: direction -> the inputs whose gradients it computes, by number, where backward is timed in parts.
        others: inputs after `x`, each a shape.
        fixed: inputs that need no gradient, by number.
        scale: standard deviation of the inputs.
        step: inputs are multiples of it, so that sums of products are exact. The last one, a bias, lies half a step of
            the products beside them, so that no sum is near 0 and no ReLU's sign a matter of rounding.
        judges: name -> what is wrong with a provider's result, or None, for those that the definition cannot judge.
        chooses: whether a maximum is taken of rounded values. In half precision, neighbours are then often equal, and a
            provider may choose another one than the definition does: its gradients are judged by their norm.
    """

    op: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    definition: Operator
    providers: dict[str, tuple[Operator, str]]
    bytes_moved: dict[str, int] = field(default_factory=dict)
    operations: dict[str, int] = field(default_factory=dict)
    gradients: dict[str, tuple[int, ...]] = field(default_factory=dict)
    others: tuple[tuple[int, ...], ...] = ()
    fixed: tuple[int, ...] = ()
    scale: float = 1.0
    step: float | None = None
    judges: dict[str, Callable[[Tensor, list[Tensor]], str | None]] = field(default_factory=dict)
    chooses: bool = False

    @property
    def directions(self) -> tuple[str, ...]:
        return ("forward", *self.gradients, "both") if self.gradients else DIRECTIONS


@dataclass
class Benchmark:
    """Rows of one benchmark, and where they go.

    Attributes:
        flags: its own on the command line: name -> for `add_argument`.
        sized: whether it has batches and dtypes to choose from.
    """

    name: str
    title: str
    flags: dict[str, dict[str, Any]] = field(default_factory=dict)
    sized: bool = True
    settings: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    providers: dict[str, None] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        parser = argparse.ArgumentParser(description=self.title)
        parser.add_argument("--quick", action="store_true", help="small batch and few repetitions; records NAME-quick")
        parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the records (bench/results)")
        if self.sized:
            parser.add_argument(
                "--batches", type=positive(int), nargs="+", help="128 and 1024 on a GPU; fewer elsewhere"
            )
            names = ["bfloat16", "float32", "float16"]
            parser.add_argument("--dtypes", nargs="+", choices=names, help="the device's own, unless given")
        parser.add_argument("--providers", nargs="+", help="parts of the names of those to time (all)")
        parser.add_argument("--seconds-per-timing", type=positive(float), help="0.25 on a GPU, 2 elsewhere")
        for name, options in self.flags.items():
            parser.add_argument(f"--{name}", **options)
        self.arguments = arguments = parser.parse_args()
        self.quick: bool = arguments.quick
        self.output: Path = arguments.output
        # A GPU makes hundreds of runs in a quarter of a second.
        usual = (0.1 if CUDA else 0.3) if self.quick else (0.25 if CUDA else 2.0)
        self.budget_s: float = usual if arguments.seconds_per_timing is None else arguments.seconds_per_timing
        if not CUDA:
            keep_freed_memory()
        self.console = rich.console.Console()
        if not self.console.is_terminal:
            self.console.width = 160
        self.settings |= {
            "quick": self.quick,
            "seconds_per_timing": self.budget_s,
            "threads": torch.get_num_threads(),
            "copy_gb_per_s": round(self._copy_bandwidth(), 2),
        }
        if arguments.providers:
            # A record that lacks the others says so.
            self.settings["providers"] = arguments.providers

    def batches(self, usual: Sequence[int] | None = None) -> list[int]:
        """Images per batch: those asked for, else `usual`.

        By itself that is AlexNet's on a GPU, and what a CPU does in a fraction of a second elsewhere.
        """
        if usual is None:
            usual = ([128] if self.quick else [128, 1024]) if CUDA else [8] if self.quick else [64]
        return list(self.arguments.batches or usual)

    def dtypes(self, usual: Sequence[torch.dtype] | None = None) -> list[torch.dtype]:
        """Of the inputs: those asked for, else `usual`, by itself what training on the device computes in."""
        if self.arguments.dtypes:
            return [getattr(torch, name) for name in self.arguments.dtypes]
        if usual is None:
            usual = [torch.bfloat16, torch.float32] if CUDA and not self.quick else [_main_dtype()]
        return list(usual)

    def wants(self, provider: str) -> bool:
        """Whether a provider is to be timed."""
        self.providers.setdefault(provider)
        parts = self.arguments.providers
        return parts is None or any(part in provider for part in parts)

    def run(self, case: Case) -> None:
        """Judge and time each provider of a case, in each direction. One that fails is wrong; the others still run."""
        made = _inputs(case)
        for name, (operator, layout) in case.providers.items():
            if not self.wants(name):
                continue
            inputs, grad = _laid_out(case, *made, layout)
            judge = case.judges.get(name)
            saved = peak = error = None
            # Dynamo compiles one function eight times at most, and then runs it as it is; cases share their functions.
            torch._dynamo.reset()
            self.console.print(f"  {case.op} {case.shape} {name}", style="dim", end="")
            try:
                error = judge(operator(*inputs), inputs) if judge else _error(operator, case, inputs, grad)
                saved, peak = _memory(operator, inputs)
            except Exception as failure:
                error = reason(failure)
            for direction in case.directions:
                row: dict[str, Any] = {
                    "op": case.op,
                    "provider": name,
                    "direction": direction,
                    "shape": list(case.shape),
                    "dtype": str(case.dtype).removeprefix("torch."),
                    "layout": layout,
                }
                times = None
                if error is None:
                    try:
                        times = self.time(*_work(operator, inputs, grad, direction, case))
                    except Exception as failure:
                        error = reason(failure)
                if error is not None:
                    row |= {"wrong": error}
                if case.operations:
                    row |= self._arithmetic(times, case.operations[direction], case.dtype)
                else:
                    row |= self._speed(times, case.bytes_moved[direction])
                self.rows.append(row | {"saved_bytes": saved, "peak_bytes": peak})
            self.console.print(f": wrong, {error}" if error else "", style="dim")

    def run_in_place(
        self, op: str, shape: tuple[int, ...], dtype: torch.dtype, provider: str, make: Callable[[], Callable[[], Any]],
        moved: int, judge: Callable[[], str | None],
    ) -> None:  # fmt: skip
        """Judge and time work that has one direction and keeps nothing for another, such as an optimizer's update.

        Args:
            make: makes the work. Its first call may allocate what later ones use again.
            judge: what is wrong with the provider's result, or None.
        """
        if not self.wants(provider):
            return
        times = peak = None
        torch._dynamo.reset()
        self.console.print(f"  {op} {shape} {provider}", style="dim", end="")
        try:
            error = judge()
            # What was compiled for the judge's shapes would be compiled again for shapes of any size.
            torch._dynamo.reset()
            if error is None:
                work = make()
                work()
                peak = _peak(work)
                times = self.time(lambda: None, lambda _: work())
        except Exception as failure:
            error = reason(failure)
        row = {"op": op, "provider": provider, "direction": "forward", "shape": list(shape)}
        row |= {"dtype": str(dtype).removeprefix("torch."), "layout": "flat", **self._speed(times, moved)}
        self.rows.append(row | {"saved_bytes": 0, "peak_bytes": peak} | ({"wrong": error} if error else {}))
        self.console.print(f": wrong, {error}" if error else "", style="dim")

    def finish(self) -> None:
        """Print the table; write the record and the picture."""
        if not self.rows:
            asked = " ".join(self.arguments.providers)
            sys.exit(f"error: --providers {asked} is part of no provider's name; there are {', '.join(self.providers)}")
        self.console.print(self._table())
        path = write_record(self.name, self.settings, self.rows, self.output)
        self._draw(path.with_suffix(".png"))

    def add_sum(self, op: str, rows: Sequence[dict[str, Any]], shape: Sequence[int]) -> None:
        """One row per provider and direction: the sum of its rows, where none of them is wrong."""
        groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for row in rows:
            groups.setdefault((row["provider"], row["direction"]), []).append(row)
        for (provider, direction), group in groups.items():
            if any(row["ms_p50"] is None for row in group):
                continue
            same = {name: group[0][name] for name in ("dtype", "layout")}
            times = [sum(row[name] for row in group) for name in ("ms_p20", "ms_p50", "ms_p80")]
            operations = sum(row["operations"] for row in group)
            self.rows.append(
                {"op": op, "provider": provider, "direction": direction, "shape": list(shape), **same}
                | self._arithmetic(times, operations, getattr(torch, same["dtype"]))
                | {"saved_bytes": sum(row["saved_bytes"] for row in group), "peak_bytes": None}
            )

    def _arithmetic(self, times_ms: Sequence[float] | None, operations: int, dtype: torch.dtype) -> dict[str, Any]:
        limit = self._product_speed(dtype)
        if times_ms is None:
            return dict.fromkeys(("ms_p20", "ms_p50", "ms_p80", "tflop_per_s", "fraction_of_limit"))
        p20, p50, p80 = times_ms
        speed = operations / p50 / 1e9
        return {
            "ms_p20": round(p20, 4),
            "ms_p50": round(p50, 4),
            "ms_p80": round(p80, 4),
            "operations": operations,
            "tflop_per_s": round(speed, 4),
            "fraction_of_limit": round(speed / limit, 4),
        }

    def _product_speed(self, dtype: torch.dtype) -> float:
        """TFLOP/s of a large square matrix product, measured once a run."""
        name = f"product_tflop_per_s_{str(dtype).removeprefix('torch.')}"
        if name not in self.settings:
            side = 8192 if CUDA else 2048
            a, b = (torch.randn(side, side, device=DEVICE).to(dtype) for _ in range(2))
            _, median, _ = self.time(lambda: None, lambda _: a @ b)
            self.settings[name] = round(2 * side**3 / median / 1e9, 4)
        return self.settings[name]

    def _speed(self, times_ms: Sequence[float] | None, moved: int) -> dict[str, Any]:
        if times_ms is None:
            return dict.fromkeys(("ms_p20", "ms_p50", "ms_p80", "gb_per_s", "fraction_of_limit"))
        p20, p50, p80 = times_ms
        bandwidth = moved / p50 / 1e6
        return {
            "ms_p20": round(p20, 4),
            "ms_p50": round(p50, 4),
            "ms_p80": round(p80, 4),
            "gb_per_s": round(bandwidth, 2),
            "fraction_of_limit": round(bandwidth / self.settings["copy_gb_per_s"], 4),
        }

    def time(self, prepare: Callable[[], Any], work: Callable[[Any], Any]) -> list[float]:
        return timed(prepare, work, self.budget_s)

    def _copy_bandwidth(self) -> float:
        """GB/s of a copy within the device, read and written bytes together."""
        source = torch.zeros(512 * 2**20 if CUDA else 128 * 2**20, dtype=torch.uint8, device=DEVICE)
        target = torch.empty_like(source)
        _, median, _ = self.time(lambda: None, lambda _: target.copy_(source))
        return 2 * source.nbytes / median / 1e6

    def _table(self) -> rich.table.Table:
        limits = [f"copy {self.settings['copy_gb_per_s']} GB/s"]
        limits += [f"product {speed} TFLOP/s" for name, speed in self.settings.items() if name.startswith("product")]
        table = rich.table.Table(title=f"{self.title}: {device_name()}, {', '.join(limits)}", caption=self._caption())
        for column in ("operator", "provider", "direction"):
            table.add_column(column)
        for column in ("shape", "dtype", "ms p20, p50, p80", "speed", "of limit", "kept"):
            table.add_column(column, justify="right")
        for row in self.rows:
            if row["ms_p50"] is None:
                speed = ["wrong result", "-", "-"]
            else:
                speed = [
                    f"{row['ms_p20']:.2f} {row['ms_p50']:.2f} {row['ms_p80']:.2f}",
                    f"{row['gb_per_s']:.1f} GB/s" if "gb_per_s" in row else f"{row['tflop_per_s']:.3g} TFLOP/s",
                    f"{row['fraction_of_limit']:.0%}",
                ]
            shape = "x".join(map(str, row["shape"]))
            kept = "-" if row["saved_bytes"] is None else f"{row['saved_bytes'] / 2**20:.1f} MiB"
            table.add_row(row["op"], row["provider"], row["direction"], shape, row["dtype"], *speed, kept)
        return table

    def _caption(self) -> str:
        """What the columns are."""
        limits = [
            "the fewest bytes that the operator must move, over p50; of limit: that beside a copy within the device"
            if any("gb_per_s" in row for row in self.rows) else "",
            "additions and multiplications over p50; of limit: that beside a large matrix product"
            if any("tflop_per_s" in row for row in self.rows) else "",
        ]  # fmt: skip
        return (
            f"ms: the 20th, 50th and 80th percentile. speed: {' - or '.join(filter(None, limits))}. "
            "kept: memory between forward and backward. both: timed by itself, not added up."
        )

    def _draw(self, path: Path) -> None:
        """One panel per operator and shape; a bar per provider and direction."""
        panels: dict[str, list[dict[str, Any]]] = {}
        for row in self.rows:
            if row["ms_p50"] is not None:
                panels.setdefault(f"{row['op']} {'x'.join(map(str, row['shape']))} {row['dtype']}", []).append(row)
        if not panels:
            return
        # Not every panel has all of them: a direction keeps its colour.
        known = max((list(dict.fromkeys(row["direction"] for row in rows)) for rows in panels.values()), key=len)
        figure, axes = plt.subplots(len(panels), 1, figsize=(9, 0.6 + 2.6 * len(panels)), squeeze=False)
        for axis, (title, rows) in zip(axes[:, 0], panels.items(), strict=True):
            providers = list(dict.fromkeys(row["provider"] for row in rows))
            directions = [direction for direction in known if any(row["direction"] == direction for row in rows)]
            height = 0.8 / len(directions)
            for offset, direction in enumerate(directions):
                chosen = [row for row in rows if row["direction"] == direction]
                places = [providers.index(row["provider"]) + offset * height for row in chosen]
                times = [row["ms_p50"] for row in chosen]
                colour = f"C{known.index(direction)}"
                bars = axis.barh(places, times, height * 0.9, label=direction, color=colour)
                axis.bar_label(bars, [f"{value:.3g}" for value in times], padding=2, fontsize=7)
            axis.set_yticks([index + 0.4 - height / 2 for index in range(len(providers))], providers, fontsize=8)
            axis.invert_yaxis()
            axis.set_title(title, fontsize=9)
            axis.margins(x=0.12)
        fullest = max(axes[:, 0], key=lambda axis: len(axis.get_legend_handles_labels()[0]))
        # Beside the panel, where no bar is.
        fullest.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        axes[-1, 0].set_xlabel("milliseconds, median")
        figure.suptitle(f"{self.title}, {device_name()}", fontsize=10)
        figure.tight_layout()
        figure.savefig(path, dpi=110)
        plt.close(figure)


def positive(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    """Reads a number from the command line that is above 0."""

    def read(text: str) -> Any:
        value = kind(text)
        if not 0 < value < math.inf:
            raise argparse.ArgumentTypeError(f"must be above 0 and finite, not {text}")
        return value

    read.__name__ = kind.__name__
    return read


def _main_dtype() -> torch.dtype:
    return torch.bfloat16 if CUDA else torch.float32


class DeviceClock:
    """Times work on a GPU whose caches hold none of its inputs, and which waits for the host before it begins."""

    def __init__(self) -> None:
        # Larger than any second-level cache. It is read, as lines that were written would be written back meanwhile.
        self.flush = torch.zeros(64 * 2**20, device=DEVICE)
        self.lead = _LEAD

    def time(self, prepare: Callable[[], Any], work: Callable[[Any], Any]) -> float:
        """Milliseconds that `work(prepare())` takes after its preparation, which is made anew where it has to wait."""
        while True:
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            prepared = prepare()
            self.flush.sum()
            torch.cuda._sleep(self.lead)
            start.record()
            work(prepared)
            stop.record()
            late = start.query()
            stop.synchronize()
            # Work that waits for the device itself is late however long the lead.
            if not late or self.lead >= _LONGEST_LEAD:
                return start.elapsed_time(stop)
            self.lead *= 2


def timed(prepare: Callable[[], Any], work: Callable[[Any], Any], seconds: float) -> list[float]:
    """p20, p50 and p80 of the milliseconds that `work(prepare())` takes after its preparation."""
    for _ in range(2):
        work(prepare())
    times: list[float] = []
    end = time.perf_counter() + seconds
    clock = DeviceClock() if CUDA else None
    while len(times) < 5 or (time.perf_counter() < end and len(times) < 1000):
        if clock is not None:
            times.append(clock.time(prepare, work))
        else:
            prepared = prepare()
            begin = time.perf_counter()
            work(prepared)
            times.append((time.perf_counter() - begin) * 1e3)
    deciles = statistics.quantiles(times, n=10)
    return [deciles[1], statistics.median(times), deciles[7]]


def _inputs(case: Case) -> tuple[list[Tensor], Tensor]:
    """Random inputs and a random gradient of the result, the same for each provider."""
    generator = torch.Generator(DEVICE).manual_seed(0)

    def draw(shape: Sequence[int]) -> Tensor:
        return torch.randn(shape, generator=generator, device=DEVICE)

    inputs = [(draw(shape) * case.scale).to(case.dtype) for shape in (case.shape, *case.others)]
    if case.step is not None:
        inputs = [(tensor / case.step).round() * case.step for tensor in inputs]
        inputs[-1] += case.step**2 / 2
    with torch.no_grad():
        like = case.definition(*(tensor[:1] if index == 0 else tensor for index, tensor in enumerate(inputs)))
    if like.dim() == 0:  # a loss, which half precision's is not rounded to
        return inputs, draw(()).to(like.dtype)
    return inputs, draw((case.shape[0], *like.shape[1:])).to(case.dtype)


def _laid_out(case: Case, inputs: list[Tensor], grad: Tensor, layout: str) -> tuple[list[Tensor], Tensor]:
    """The inputs and the gradient in one provider's layout."""

    def lay(tensor: Tensor) -> Tensor:
        wanted = layout == "channels_last" and tensor.dim() == 4
        return tensor.detach().to(memory_format=torch.channels_last) if wanted else tensor.detach()

    return [lay(tensor).requires_grad_(index not in case.fixed) for index, tensor in enumerate(inputs)], lay(grad)


def _error(operator: Operator, case: Case, inputs: list[Tensor], grad: Tensor) -> str | None:
    """What is wrong with a provider's result or gradients on the first images, or None.

    A result without dimensions, such as a loss, is of all images.
    """
    few = 8 if grad.dim() else case.shape[0]  # CPUs compute fewer images in another way

    def first(tensor: Tensor) -> Tensor:
        return tensor[:few] if tensor.dim() else tensor

    ours = [t.detach()[:few] if i == 0 else t.detach() for i, t in enumerate(inputs)]
    theirs = [tensor.double().requires_grad_(index not in case.fixed) for index, tensor in enumerate(ours)]
    wanted = case.definition(*theirs)
    wanted.backward(first(grad).double())
    # The whole batch, as a provider may be compiled for its shape; gradients of other inputs only for the first images.
    fresh = [tensor.detach().requires_grad_(tensor.requires_grad) for tensor in inputs]
    found = operator(*fresh)
    upstream = grad.clone()
    if grad.dim():
        upstream[few:] = 0
    found.backward(upstream)
    pairs = [("result", first(found.detach()), wanted.detach())]
    for index, (mine, reference) in enumerate(zip(fresh, theirs, strict=True)):
        if index in case.fixed:
            continue
        assert mine.grad is not None
        assert reference.grad is not None
        pairs.append((f"gradient {index}", mine.grad[:few] if index == 0 else mine.grad, reference.grad))
    for what, value, reference_value in pairs:
        by_norm = case.chooses and what != "result" and case.dtype in (torch.float16, torch.bfloat16)
        size = torch.linalg.vector_norm if by_norm else _largest
        distance = size(value.double() - reference_value) / size(reference_value).clamp(min=1e-12)
        if not distance <= (MOVED if by_norm else TOLERANCES[case.dtype]):
            return f"{what} is off by {float(distance):.1e}"
    return None


def _largest(values: Tensor) -> Tensor:
    return values.abs().max()


def reason(failure: Exception) -> str:
    """What a provider failed with, in one line."""
    lines = [line.strip() for line in str(failure).splitlines() if line.strip()]
    return f"{type(failure).__name__}: {lines[0] if lines else ''}".rstrip(": ")


def _memory(operator: Operator, inputs: list[Tensor]) -> tuple[int, int]:
    """Bytes kept between forward and backward, and the most bytes allocated beyond the inputs."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    def both() -> None:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            y = operator(*inputs)
        torch.autograd.grad(y, _needing(inputs), torch.ones_like(y))

    peak = _peak(both)
    return sum(kept.values()), peak


def _peak(work: Callable[[], Any]) -> int:
    """The most bytes that torch allocates meanwhile beyond those that it has now."""
    if not CUDA:
        return _host_peak(work)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    work()
    return torch.cuda.max_memory_allocated() - before


def _host_peak(work: Callable[[], Any]) -> int:
    """As `_peak`, from a trace: the allocator of a CPU does not count."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # it would tell of every start and stop
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            work()
        profile.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    changes = sorted((event for event in events if event["name"] == "[memory]"), key=lambda event: event["ts"])
    return max(itertools.accumulate((change["args"]["Bytes"] for change in changes), initial=0))


def _work(
    operator: Operator, inputs: list[Tensor], grad: Tensor, direction: str, case: Case
) -> tuple[Callable[[], Any], Callable[[Any], Any]]:
    """What to prepare untimed, and what to time."""
    if direction == "forward":
        return lambda: None, lambda _: operator(*inputs)
    if direction in case.gradients:
        wanted = case.gradients[direction]
        inputs = [tensor.detach().requires_grad_(index in wanted) for index, tensor in enumerate(inputs)]
    needing = _needing(inputs)
    if direction == "both":
        return lambda: None, lambda _: torch.autograd.grad(operator(*inputs), needing, grad)
    return lambda: operator(*inputs), lambda y: torch.autograd.grad(y, needing, grad)


def _needing(inputs: Sequence[Tensor]) -> list[Tensor]:
    return [tensor for tensor in inputs if tensor.requires_grad]


def compiled(operator: Operator) -> Operator:
    """`torch.compile` of an operator, for one shape."""
    return torch.compile(operator, dynamic=False)


def image_bytes(shape: Sequence[int], dtype: torch.dtype) -> int:
    return math.prod(shape) * dtype.itemsize


def write_record(
    name: str,
    settings: dict[str, Any],
    rows: Sequence[dict[str, Any]],
    output: Path = RESULTS,
    *,
    device: str | None = None,
    versions: dict[str, str | None] | None = None,
) -> Path:
    """Write ``<output>/<device>/<name>.json``: device, versions, commit, date, settings, rows. Returns its path.

    After a quick run, which `settings` then says, the name ends in ``-quick``: it replaces no record that counts.

    Args:
        device: what was measured on, where it is not what `device_name` says now.
        versions: of packages besides Python, torch and Triton.
    """
    device = device or device_name()
    record = {
        "device": device,
        "versions": package_versions() | (versions or {}),
        "commit": commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "settings": settings,
        "rows": list(rows),
    }
    folder = output / slug(device)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{record_name(name, settings)}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(f"wrote {path.relative_to(ROOT) if path.is_relative_to(ROOT) else path}")
    return path


def record_name(name: str, settings: dict[str, Any]) -> str:
    """What a record of these settings is called."""
    return f"{name}-quick" if settings.get("quick") else name


def package_versions() -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cc": native_c.compiler_version(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if CUDA else None,
    }


def device_name() -> str:
    """The GPU's name, or the CPU's with the number of threads that torch uses."""
    if CUDA:
        return torch.cuda.get_device_name()
    model = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
        model = found[1] if found else model
    return f"{model}, {torch.get_num_threads()} threads"


def slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"\((r|tm)\)", "", name.lower())).strip("-")


def commit() -> str | None:
    """The commit that was measured; with "+changes" where tracked code differs from it."""
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        rooms = ["kernels", "dataloading", "fastalex", "bench/*.py"]
        status = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no", "--", *rooms],
            cwd=ROOT, capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.strip() + ("+changes" if status.strip() else "")

"""A benchmark of operators: its command line, its rows, and what it writes."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import rich.console
import torch

from harness.cases import Case, failure_reason, find_error, in_memory_format, random_inputs, timed_work
from harness.charts import draw_times
from harness.device import CUDA, TRAINING_DTYPE
from harness.memory import keep_freed_memory, peak_bytes, saved_and_peak_bytes
from harness.records import RESULTS, write_record
from harness.tables import results_table
from harness.timing import copy_bandwidth, product_speed, timed

_TIMES = ("ms_p20", "ms_p50", "ms_p80")


@dataclass
class Benchmark:
    """The rows of one benchmark, with its command line.

    Attributes:
        name: name of the record.
        title: title of the table and the chart.
        options: options of this benchmark alone: name -> arguments of `add_argument`.
        sized: whether batches and dtypes can be chosen.
        settings: settings in the record.
        rows: rows of the record so far.
    """

    name: str
    title: str
    options: dict[str, dict[str, Any]] = field(default_factory=dict)
    sized: bool = True
    settings: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    providers: dict[str, None] = field(default_factory=dict, init=False)
    last: ClassVar[Benchmark | None] = None  # whose rows an interruption prints

    def __post_init__(self) -> None:
        Benchmark.last = None
        self.arguments = self._parse()
        self.quick: bool = self.arguments.quick
        self.output: Path = self.arguments.output
        # A GPU makes hundreds of runs in a quarter of a second.
        default = (0.1 if CUDA else 0.3) if self.quick else (0.25 if CUDA else 2.0)
        given = self.arguments.seconds_per_timing
        self.seconds: float = default if given is None else given
        if not CUDA:
            keep_freed_memory()
        self.console = rich.console.Console()
        if not self.console.is_terminal:
            self.console.width = 160
        self.settings |= {
            "quick": self.quick,
            "seconds_per_timing": self.seconds,
            "threads": torch.get_num_threads(),
            "copy_gb_per_s": round(copy_bandwidth(self.seconds), 2),
        }
        if self.arguments.providers:
            self.settings["providers"] = self.arguments.providers  # the record lacks the others
        Benchmark.last = self

    def _parse(self) -> argparse.Namespace:
        parser = argparse.ArgumentParser(description=self.title)
        parser.add_argument("--quick", action="store_true", help="small batch, few repetitions; records NAME-quick")
        parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the records (bench/results)")
        parser.add_argument("--name", default=self.name, help=f"name of the record ({self.name})")
        if self.sized:
            parser.add_argument("--batches", type=positive(int), nargs="+", help="128 and 1024 on a GPU; fewer on CPUs")
            names = ["bfloat16", "float32", "float16"]
            parser.add_argument("--dtypes", nargs="+", choices=names, help="dtypes (those of training on the device)")
        parser.add_argument("--providers", nargs="+", help="providers to time, by parts of their names (all)")
        parser.add_argument("--seconds-per-timing", type=positive(float), help="0.25 on a GPU, 2 on a CPU")
        for name, options in self.options.items():
            parser.add_argument(f"--{name}", **options)
        return parser.parse_args()

    def batches(self, default: Sequence[int] | None = None) -> list[int]:
        """Batch sizes from the command line, or the default: 128 and 1024 on a GPU, 64 on a CPU."""
        if default is None:
            default = ([128] if self.quick else [128, 1024]) if CUDA else [8] if self.quick else [64]
        return list(self.arguments.batches or default)

    def dtypes(self, default: Sequence[torch.dtype] | None = None) -> list[torch.dtype]:
        """Dtypes from the command line, or the default: those that training computes in on this device."""
        if self.arguments.dtypes:
            return [getattr(torch, name) for name in self.arguments.dtypes]
        if default is None:
            default = [torch.bfloat16, torch.float32] if CUDA and not self.quick else [TRAINING_DTYPE]
        return list(default)

    def wants(self, provider: str) -> bool:
        """Whether a provider is to be timed."""
        self.providers.setdefault(provider)
        parts = self.arguments.providers
        return parts is None or any(part in provider for part in parts)

    def run(self, case: Case) -> None:
        """Check and time each provider of a case in each direction. A provider that fails does not stop the others."""
        inputs, grad = random_inputs(case)
        for name, (operator, memory_format) in case.providers.items():
            if not self.wants(name):
                continue
            own = in_memory_format(case, inputs, grad, memory_format)
            check = case.checks.get(name)
            saved = peak = error = None
            # Dynamo compiles a function at most eight times and then falls back; cases share their functions.
            torch._dynamo.reset()
            self.console.print(f"  {case.op} {case.shape} {name}", style="dim", end="")
            try:
                error = check(operator(*own[0]), own[0]) if check else find_error(operator, case, *own)
                saved, peak = saved_and_peak_bytes(operator, own[0])
            except Exception as failure:
                error = failure_reason(failure)
            for direction in case.directions:
                times = None
                if error is None:
                    try:
                        times = self.time(*timed_work(operator, *own, direction, case))
                    except Exception as failure:
                        error = failure_reason(failure)
                row = _row(case.op, name, direction, case.shape, case.dtype, memory_format, error)
                row |= self._measures(case, direction, times)
                self.rows.append(row | {"saved_bytes": saved, "peak_bytes": peak})
            self.console.print(f": wrong, {error}" if error else "", style="dim")

    def run_in_place(
        self, op: str, shape: tuple[int, ...], dtype: torch.dtype, provider: str, make: Callable[[], Callable[[], Any]],
        bytes_moved: int, check: Callable[[], str | None],
    ) -> None:  # fmt: skip
        """Check and time work without a backward pass, such as an optimizer's update.

        Args:
            make: makes the work. Its first call may allocate memory that later calls use again.
            check: returns what is wrong with the provider's result, or None.
        """
        if not self.wants(provider):
            return
        times = peak = None
        torch._dynamo.reset()
        self.console.print(f"  {op} {shape} {provider}", style="dim", end="")
        try:
            error = check()
            torch._dynamo.reset()  # code compiled for the shapes of the check would be compiled again for any shape
            if error is None:
                work = make()
                work()
                peak = peak_bytes(work)
                times = self.time(lambda: None, lambda _: work())
        except Exception as failure:
            error = failure_reason(failure)
        row = _row(op, provider, "forward", shape, dtype, "flat", error) | self._bandwidth(times, bytes_moved)
        self.rows.append(row | {"saved_bytes": 0, "peak_bytes": peak})
        self.console.print(f": wrong, {error}" if error else "", style="dim")

    def finish(self) -> None:
        """Print the table; write the record and the chart."""
        if not self.rows:
            asked = " ".join(self.arguments.providers)
            sys.exit(f"error: --providers {asked} matches no provider; choose from {', '.join(self.providers)}")
        self.console.print(results_table(self.title, self.rows, self.settings))
        path = write_record(self.arguments.name, self.settings, self.rows, self.output)
        draw_times(path.with_suffix(".png"), self.title, self.rows)

    def add_sum(self, op: str, rows: Sequence[dict[str, Any]], shape: Sequence[int]) -> None:
        """Add one row per provider and direction: the sum of its rows, if none of them is wrong."""
        groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for row in rows:
            groups.setdefault((row["provider"], row["direction"]), []).append(row)
        for (provider, direction), group in groups.items():
            if any(row["ms_p50"] is None for row in group):
                continue
            dtype = getattr(torch, group[0]["dtype"])
            total = _row(op, provider, direction, shape, dtype, group[0]["memory_format"], None)
            times = [sum(row[name] for row in group) for name in _TIMES]
            total |= self._arithmetic(times, sum(row["operations"] for row in group), dtype)
            self.rows.append(total | {"saved_bytes": sum(row["saved_bytes"] for row in group), "peak_bytes": None})

    def time(self, prepare: Callable[[], Any], work: Callable[[Any], Any]) -> list[float]:
        """:func:`harness.timing.timed` with this benchmark's time per timing."""
        return timed(prepare, work, self.seconds)

    def _measures(self, case: Case, direction: str, times: Sequence[float] | None) -> dict[str, Any]:
        if case.operations:
            return self._arithmetic(times, case.operations[direction], case.dtype)
        return self._bandwidth(times, case.bytes_moved[direction])

    def _arithmetic(self, times: Sequence[float] | None, operations: int, dtype: torch.dtype) -> dict[str, Any]:
        limit = f"product_tflop_per_s_{str(dtype).removeprefix('torch.')}"
        if limit not in self.settings:
            self.settings[limit] = round(product_speed(dtype, self.seconds), 4)
        if times is None:
            return dict.fromkeys((*_TIMES, "tflop_per_s", "fraction_of_limit"))
        speed = operations / times[1] / 1e9
        return {
            **{name: round(value, 4) for name, value in zip(_TIMES, times, strict=True)},
            "operations": operations,
            "tflop_per_s": round(speed, 4),
            "fraction_of_limit": round(speed / self.settings[limit], 4),
        }

    def _bandwidth(self, times: Sequence[float] | None, bytes_moved: int) -> dict[str, Any]:
        if times is None:
            return dict.fromkeys((*_TIMES, "gb_per_s", "fraction_of_limit"))
        bandwidth = bytes_moved / times[1] / 1e6
        return {
            **{name: round(value, 4) for name, value in zip(_TIMES, times, strict=True)},
            "gb_per_s": round(bandwidth, 2),
            "fraction_of_limit": round(bandwidth / self.settings["copy_gb_per_s"], 4),
        }


def run_script(main: Callable[[], None]) -> None:
    """Run the main function of a benchmark; after Ctrl-C, print the rows so far and one line, and exit with 130."""
    try:
        main()
    except KeyboardInterrupt:
        bench = Benchmark.last
        print()  # ends the line of the provider that was being timed
        if bench is not None and bench.rows:
            bench.console.print(results_table(f"{bench.title} (interrupted)", bench.rows, bench.settings))
        print("interrupted; no record was written", file=sys.stderr)
        sys.exit(130)


def _row(
    op: str, provider: str, direction: str, shape: Sequence[int], dtype: torch.dtype, memory_format: str,
    error: str | None,
) -> dict[str, Any]:  # fmt: skip
    row = {"op": op, "provider": provider, "direction": direction, "shape": list(shape)}
    row |= {"dtype": str(dtype).removeprefix("torch."), "memory_format": memory_format}
    return row | ({"wrong": error} if error else {})


def positive(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    """An argparse type for numbers above 0."""

    def read(text: str) -> Any:
        value = kind(text)
        if not 0 < value < math.inf:
            raise argparse.ArgumentTypeError(f"must be above 0 and finite, got {text}")
        return value

    read.__name__ = kind.__name__
    return read

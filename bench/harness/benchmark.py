"""A benchmark of operators: its command line, its rows, and what it writes."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import rich.console
import torch

from harness.candidates import Candidate, InPlace, candidates_in_place, candidates_of_case, joined
from harness.cases import Case, failure_reason
from harness.charts import draw_times
from harness.device import CUDA, TRAINING_DTYPE
from harness.limits import Limit, copy_limit, product_limit
from harness.memory import keep_freed_memory
from harness.records import RESULTS, write_record
from harness.rows import add_speeds, measures, new_row, total
from harness.summary import summary_lines
from harness.tables import WIDTH, results_tables
from harness.turns import Contender, take_turns


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
    _limits: dict[torch.dtype | None, Limit] = field(default_factory=dict, init=False)
    last: ClassVar[Benchmark | None] = None  # whose rows an interruption prints

    def __post_init__(self) -> None:
        Benchmark.last = None
        self.arguments = self._parse()
        self.quick: bool = self.arguments.quick
        self.output: Path = self.arguments.output
        # A GPU makes hundreds of runs in a quarter of a second.
        default = (0.1 if CUDA else 0.2) if self.quick else (0.25 if CUDA else 0.4)
        given = self.arguments.seconds_per_timing
        self.seconds: float = default if given is None else given
        if not CUDA:
            keep_freed_memory()
        self.console = rich.console.Console()
        if not self.console.is_terminal:
            self.console.width = WIDTH
        self.settings |= {
            "quick": self.quick,
            "seconds_per_timing": self.seconds,
            "threads": torch.get_num_threads(),
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
        parser.add_argument(
            "--seconds-per-timing", type=positive(float), help="of a provider; 0.25 on a GPU, 0.4 on a CPU"
        )
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
        """Check all providers of a case, then time those that are right, in turns, in each direction.

        A provider that fails does not stop the others.
        """
        names = [name for name in case.providers if self.wants(name)]
        if names:
            limit = self._limit(case.dtype if case.operations else None)
            candidates = candidates_of_case(case, names, self.say)
            for direction in case.directions:
                self._time(case.op, case.shape, case.dtype, direction, candidates, limit)

    def run_in_place(
        self, op: str, shape: tuple[int, ...], dtype: torch.dtype, providers: Mapping[str, InPlace]
    ) -> None:
        """Check all providers of work in place, then time those that are right, in turns."""
        chosen = {name: provider for name, provider in providers.items() if self.wants(name)}
        if chosen:
            limit = self._limit(None)
            candidates = candidates_in_place(f"{op} {joined(shape)}", chosen, self.say)
            self._time(op, shape, dtype, "forward", candidates, limit)

    def _time(
        self, op: str, shape: Sequence[int], dtype: torch.dtype, direction: str, candidates: Sequence[Candidate],
        limit: Limit,
    ) -> None:  # fmt: skip
        """Time the candidates that are right and the limit in turns, and add a row for every candidate."""
        contenders = {c.name: Contender(*c.timed(direction)) for c in candidates if c.error is None}
        self.say(f"  {op} {joined(shape)} {direction}: {len(contenders)} in turns\n")
        ceiling = limit.contender()
        take_turns([ceiling, *contenders.values()], self.seconds)
        limit.milliseconds.extend(ceiling.round_ms)
        self.settings[limit.name] = limit.speed
        rows = []
        for candidate in candidates:
            contender = contenders.get(candidate.name)
            if contender is not None and contender.failure is not None:
                candidate.error, contender = failure_reason(contender.failure), None
            row = new_row(op, candidate.name, direction, shape, dtype, candidate.memory_format, candidate.error)
            row |= measures(contender, candidate.amounts[direction], limit, ceiling.round_ms)
            rows.append(row | {"saved_bytes": candidate.saved, "peak_bytes": candidate.peak})
        add_speeds(rows)
        self.rows += rows

    def _limit(self, dtype: torch.dtype | None) -> Limit:
        """The product in a dtype, or the copy."""
        if dtype not in self._limits:
            self._limits[dtype] = copy_limit() if dtype is None else product_limit(dtype)
        return self._limits[dtype]

    def say(self, text: str) -> None:
        """Print progress."""
        self.console.print(text, style="dim", end="", markup=False, highlight=False, soft_wrap=True)

    def add_sum(self, op: str, rows: Sequence[dict[str, Any]], shape: Sequence[int]) -> None:
        """Add one row per provider and direction: the sum of its rows, if none of them is wrong."""
        groups: dict[str, dict[str, list[dict[str, Any]]]] = {}
        for row in rows:
            groups.setdefault(row["direction"], {}).setdefault(row["provider"], []).append(row)
        for providers in groups.values():
            right = [group for group in providers.values() if all(row["ms_p50"] is not None for row in group)]
            sums = [total(group, op, shape) for group in right]
            add_speeds(sums)
            self.rows += sums

    def finish(self) -> None:
        """Print the tables and the summary, write the record and the chart, and print the chart's path last."""
        if not self.rows:
            asked = " ".join(self.arguments.providers)
            sys.exit(f"error: --providers {asked} matches no provider; choose from {', '.join(self.providers)}")
        self.console.print(results_tables(self.title, self.rows, self.settings))
        path = write_record(self.arguments.name, self.settings, self.rows, self.output)
        for line in summary_lines(self.rows):
            print(line)
        chart = path.with_suffix(".png")
        drawn = draw_times(chart, self.title, self.rows)
        print(chart if drawn else "no chart: no provider has a time")


def run_script(main: Callable[[], None]) -> None:
    """Run the main function of a benchmark; after Ctrl-C, print the rows so far and one line, and exit with 130."""
    try:
        main()
    except KeyboardInterrupt:
        bench = Benchmark.last
        print()  # ends the line of the provider that was being timed
        if bench is not None and bench.rows:
            bench.console.print(results_tables(f"{bench.title} (interrupted)", bench.rows, bench.settings))
        print("interrupted; no record was written", file=sys.stderr)
        sys.exit(130)


def positive(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    """An argparse type for numbers above 0."""

    def read(text: str) -> Any:
        value = kind(text)
        if not 0 < value < math.inf:
            raise argparse.ArgumentTypeError(f"must be above 0 and finite, got {text}")
        return value

    read.__name__ = kind.__name__
    return read

"""Runs the trials of one part of bench/pipeline.py, and turns the measurements into rows, a table and a record."""

from __future__ import annotations

import math
import os
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import harness
import torch
from rich.console import Console
from rich.table import Table

from fastalex.network.architecture import Architecture
from fastalex.network.precision import Precision
from fastalex.parallel.launch import run_workers
from fastalex.parallel.layout import Layout, ParallelPlan, ScheduleName
from fastalex.parallel.partition import Split, format_split, partition
from pipelining import workers as jobs
from pipelining.block_costs import INSTANT, Link
from pipelining.simulation import Scenario, SimulatedStep, bubble_fractions, simulate
from pipelining.workers import Job, Trial

CORES = len(os.sched_getaffinity(0))
THREADS = 1 if harness.CUDA else CORES
"""Threads of a single process that has the machine to itself."""
BATCH_SIZE = 128
Links = dict[Layout, tuple[Link, Link]]
Rounds = list[dict[str, Any]]
"""The measurements of one trial, one per round: seconds, spans, costs."""


@dataclass
class Measurement:
    """The options of the command line, and the rows of the part that is running."""

    architecture: Architecture
    batch_size: int
    per_device: int
    steps: int
    rounds: int
    precision: Precision
    output: Path
    quick: bool = False
    micro_batches: Sequence[int] = ()
    schedules: Sequence[ScheduleName] = ()
    rows: list[dict[str, Any]] = field(default_factory=list)

    def trial(
        self, layout: Layout, micro_batches: int, schedule: ScheduleName | None = None, split: Split | None = None
    ) -> Trial:
        """A trial with this batch size, by default with the split of counted arithmetic and 1F1B if it can run."""
        if schedule is None:
            schedule = "1f1b" if micro_batches >= layout.stages else "gpipe"
            schedule = "interleaved" if layout.stages > layout.ranks else schedule
        split = tuple(partition(self.architecture, layout.stages)) if split is None else split
        plan = ParallelPlan(self.devices(layout.workers), 1, layout, split, schedule, micro_batches)
        return Trial(plan, self.batch_size)

    def alone(self, micro_batches: Sequence[int]) -> list[Trial]:
        """The baseline: a single process with all cores."""
        return [replace(self.trial(Layout(), count), threads=THREADS) for count in micro_batches]

    @staticmethod
    def devices(workers: int) -> tuple[torch.device, ...]:
        """One device per worker."""
        return tuple(torch.device("cuda", i) if harness.CUDA else torch.device("cpu") for i in range(workers))

    def run(
        self,
        workers: int,
        trials: Sequence[Trial] = (),
        sizes: Sequence[int] = (),
        layouts: Sequence[Layout] = (),
        threads: int = 1,
    ) -> dict[str, Any]:
        """Run worker processes and return what they saved; see :class:`Job`."""
        with tempfile.TemporaryDirectory() as folder:
            path, before = str(Path(folder) / "saved.pt"), torch.get_num_threads()
            job = Job(
                self.architecture, trials, sizes, layouts, self.batch_size, self.steps, self.rounds, threads,
                self.precision, path,
            )  # fmt: skip
            run_workers(jobs.run, job, list(self.devices(workers)))
            torch.set_num_threads(before)
            return torch.load(path, weights_only=False)

    def time(self, workers: int, trials: Sequence[Trial]) -> list[Rounds]:
        """Time all trials in turn; returns the rounds of each."""
        return [list(rounds) for rounds in zip(*self.run(workers, trials)["rounds"], strict=True)]

    def compare(
        self, trials: Sequence[tuple[str, Trial]], alone: Sequence[Trial], links: Links | None = None
    ) -> tuple[list[Rounds], list[SimulatedStep | None]]:
        """Time trials and single processes in turn, and add their rows.

        Args:
            trials: names and trials; their speed is compared with the fastest single process.
            alone: trials of a single process.
            links: the links of the trials' layouts; None simulates nothing.

        Returns:
            The rounds of each trial, and its simulated step.
        """
        # The single processes run here, not in a worker: there, idle OpenMP threads sleep, which would slow them down.
        once, workers = replace(self, rounds=1), max(trial.plan.layout.workers for _, trial in trials)
        timed: list[Rounds] = [[] for _ in trials]
        timed_alone: list[Rounds] = [[] for _ in alone]
        for number in range(1, self.rounds + 1):
            print(f"round {number} of {self.rounds}")
            for rounds, new in zip(timed_alone, once.time(1, alone), strict=True):
                rounds += new
            for rounds, new in zip(timed, once.time(workers, [trial for _, trial in trials]), strict=True):
                rounds += new
        best = min(timed_alone, key=lambda rounds: median_round(rounds)["seconds"])
        for trial, rounds in zip(alone, timed_alone, strict=True):
            self.add(f"one process, {THREADS} threads", trial, rounds, links, best)
        results = [
            self.add(name, trial, rounds, links, best) for (name, trial), rounds in zip(trials, timed, strict=True)
        ]
        return timed, results

    def add(
        self, provider: str, trial: Trial, rounds: Rounds, links: Links | None = None, baseline: Rounds | None = None
    ) -> SimulatedStep | None:
        """Add a row.

        Args:
            links: links by layout for the simulation; None simulates nothing.
            baseline: rounds of the trial that this one is compared with.

        Returns:
            The simulated step of the median round.
        """
        plan, typical = trial.plan, median_round(rounds)
        row: dict[str, Any] = {
            "op": "training step",
            "provider": provider,
            "replicas": plan.layout.replicas,
            "stages": plan.layout.stages,
            "split": format_split(plan.split),
            "schedule": plan.schedule if plan.layout.stages > 1 else "",
            "micro_batches": plan.micro_batches,
            "images_per_second": self._rate(trial, typical),
            "rounds": [self._rate(trial, one) for one in rounds],
        }
        if baseline is not None:
            ratios = [other["seconds"] / own["seconds"] for own, other in zip(rounds, baseline, strict=True)]
            row["of_one_process"] = round(statistics.median(ratios), 3)
        simulated = None
        if links is not None:
            results = [simulate(scenario(trial, links), one["costs"]) for one in rounds]
            simulated = results[rounds.index(typical)]
            ratios = [
                result.seconds / (one["seconds"] / self.steps) for one, result in zip(rounds, results, strict=True)
            ]
            row["simulated_images_per_second"] = round(trial.batch_size / simulated.seconds, 2)
            row["measured_over_simulated"] = round(statistics.median(ratios), 3)
        if typical["spans"]:
            bubbles = [bubble_fractions(one["spans"], plan.layout.workers) for one in rounds]
            row["bubble"] = [round(statistics.median(worker), 3) for worker in zip(*bubbles, strict=True)]
            if simulated is not None:
                row["simulated_bubble"] = [round(share, 3) for share in simulated.bubble]
        self.rows.append(row)
        return simulated

    def _rate(self, trial: Trial, measurement: dict[str, Any]) -> float:
        return round(self.steps * trial.batch_size / measurement["seconds"], 2)

    def write(self, part: str, **settings: Any) -> Path:
        """Print the rows of a part and write its record."""
        table = Table(title=f"pipeline, {part}: {harness.device_name()}")
        names = [name for name in dict.fromkeys(name for row in self.rows for name in row) if name != "op"]
        for name in names:
            table.add_column(name.replace("_", " "))
        table.caption = (
            "images per second: of the median round; rounds: of each round; ratios: median of the ratios within "
            "rounds; bubble: idle share of a step, per worker; formula: (stages - 1) / (micro-batches + stages - 1)"
        )
        for row in self.rows:
            table.add_row(*(str(row.get(name, "")) for name in names))
        Console(width=200).print(table)
        common = {
            "quick": self.quick,
            "batch_size": self.batch_size,
            "timed_steps": self.steps,
            "rounds": self.rounds,
            "precision": self.precision,
            "cores": CORES,
        }
        suffix = "" if self.quick or self.batch_size == BATCH_SIZE else f"-{self.batch_size}"
        path = harness.write_record(f"pipeline_{part}{suffix}", common | settings, self.rows, self.output)
        self.rows = []
        return path


def scenario(trial: Trial, links: Links) -> Scenario:
    """What the simulation is told about a trial."""
    plan, layout = trial.plan, trial.plan.layout
    measured = [pair for other, pair in links.items() if replace(other, stages=layout.stages) == layout]
    cores = math.inf if harness.CUDA else CORES / trial.threads
    link, reduce_link = measured[0] if measured else (INSTANT, INSTANT)
    return Scenario(
        plan.split, layout.ranks, trial.rows, plan.micro_batches, plan.schedule, layout.replicas, cores, link,
        reduce_link,
    )  # fmt: skip


def median_round(rounds: Rounds) -> dict[str, Any]:
    """The median round; the faster of the two in the middle if their number is even."""
    return sorted(rounds, key=lambda one: one["seconds"])[(len(rounds) - 1) // 2]


def describe(trial: Trial) -> str:
    """The workers, replicas and stages of a trial, as its row names them."""
    layout = trial.plan.layout
    number = {1: "one worker", 2: "two workers", 4: "four workers"}[layout.workers]
    parts = [f"{layout.replicas} replicas"] if layout.replicas > 1 else []
    parts += [f"{layout.stages} stages"] if layout.stages > 1 else []
    return f"{number}, {' of '.join(parts)}"

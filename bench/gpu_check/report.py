"""What `bench/gpu.py` prints: the plan, the outcome of every job, failures, and the table of claims."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence

import rich.console
import rich.table

from gpu_check.claims import Comparison
from gpu_check.outcome import Outcome, state_of
from gpu_check.plan import RESERVE, TOTAL, Job

_MOST_FAILURES = 40  # printed; the record has all


def make_console() -> rich.console.Console:
    """A console that is wide enough for the tables where the output is a file; no markup, no colours of numbers."""
    console = rich.console.Console(highlight=False, markup=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = 160
    return console


def print_plan(console: rich.console.Console, jobs: Sequence[Job]) -> None:
    """Every job with its time limit and command, and the sum of the limits."""
    for job in jobs:
        limit = f"{job.seconds} s" if job.spare is None else f"at most {job.spare[1]} s that earlier jobs saved"
        console.print(f"{job.part}: {job.name}, {limit}")
        command = ["python" if word == sys.executable else word for word in job.command]
        console.print(f"    {shlex.join(command)}")
    seconds = sum(job.seconds for job in jobs)
    console.print(
        f"{len(jobs)} jobs, {seconds} s; with {RESERVE} s for the start and the report {seconds + RESERVE} s of {TOTAL}"
    )


def describe(outcome: Outcome) -> str:
    """The state of a job in one line."""
    counts = ", ".join(f"{count} {name}" for name, count in outcome.counts.items() if count)
    words = [outcome.state, *filter(None, [counts, outcome.reason])]
    return f"{'; '.join(words)} ({outcome.seconds:.0f} s)" if outcome.limit_seconds else "; ".join(words)


def print_report(console: rich.console.Console, outcomes: Sequence[Outcome], lines: Sequence[Comparison]) -> None:
    """Failures by job, the state of every part, and the table of claims."""
    failures = [(outcome.name, *failure) for outcome in outcomes for failure in outcome.failures]
    for name, what, error in failures[:_MOST_FAILURES]:
        console.print(f"failed  {what}\n        {name}: {error}")
    if len(failures) > _MOST_FAILURES:
        console.print(f"and {len(failures) - _MOST_FAILURES} more failures, which the record names")
    parts = dict.fromkeys(outcome.part for outcome in outcomes)
    table = rich.table.Table(title="Parts", caption="A job that did not pass has its reason.")
    for column in ("part", "state", "jobs"):
        table.add_column(column, overflow="fold")
    for part in parts:
        jobs = [outcome for outcome in outcomes if outcome.part == part]
        table.add_row(part, state_of(jobs), "\n".join(f"{job.name}: {describe(job)}" for job in jobs))
    console.print(table)
    console.print(claims_table(lines))


def claims_table(lines: Sequence[Comparison]) -> rich.table.Table:
    """Claimed, measured here, ratio."""
    caption = "ratio: speed here relative to the claim, above 1 if it is faster here. claim from: a committed record."
    table = rich.table.Table(title="Claimed and measured here", caption=caption)
    for column in ("benchmark", "what", "claim from"):
        table.add_column(column, overflow="fold")
    for column in ("claimed", "measured here", "ratio"):
        table.add_column(column, justify="right")
    for line in lines:
        source = "no claim" if line.device is None else f"{line.device}, {line.date}"
        figures = [_figure(line.claimed, line.unit), _figure(line.measured, line.unit)]
        table.add_row(line.benchmark, line.what, source, *figures, "-" if line.ratio is None else f"{line.ratio:.2f}")
    return table


def _figure(value: float | None, unit: str) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f} {unit}" if unit == "images/s" else f"{value:.3f} {unit}"

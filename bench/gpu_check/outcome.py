"""What became of a job: passed, failed, skipped or out of time, with counts and the reasons of failures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from gpu_check import pytest_log
from gpu_check.plan import Job
from gpu_check.processes import Ended

State = Literal["passed", "failed", "skipped", "out of time"]


@dataclass
class Outcome:
    """The result of one job.

    Attributes:
        reason: why it was skipped, or the last line of what it printed if it failed.
        counts: tests passed, failed, skipped and still running; or rows measured and wrong.
        failures: (test or row, error).
        rows: rows of the record that it wrote.
    """

    part: str
    name: str
    state: State
    seconds: float = 0.0
    limit_seconds: float = 0.0
    reason: str | None = None
    counts: dict[str, int] = field(default_factory=dict)
    failures: list[tuple[str, str]] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)


def skipped(job: Job, reason: str) -> Outcome:
    """The outcome of a job that did not run."""
    return Outcome(job.part, job.name, "skipped", reason=reason)


def of_tests(job: Job, ended: Ended, limit: float, log: Path, tests: Path) -> Outcome:
    """The outcome of a pytest run, from the file that `pytest_log` wrote."""
    found = pytest_log.read(tests)
    outcomes = [outcome for outcome, _ in found.values()]
    counts = {name: outcomes.count(name) for name in ("passed", "failed", "skipped", "running")}
    failures = [(test, error or "") for test, (outcome, error) in found.items() if outcome == "failed"]
    result = Outcome(job.part, job.name, "passed", ended.seconds, round(limit, 1), None, counts, failures)
    if failures or ended.code not in (0, None):
        result.state = "failed"
        result.reason = None if failures else last_line(log)
    elif ended.code is None:
        result.state = "out of time"
    elif not counts["passed"]:
        result.state, result.reason = "skipped", "every test was skipped"
    if ended.code is None or ended.code < 0:
        running = [test for test, (outcome, _) in found.items() if outcome == "running"]
        how = "killed" if ended.code is None else f"ended by signal {-ended.code}"
        result.reason = f"{how} while it ran {', '.join(running) or 'no test yet'}"
    return result


def of_benchmark(job: Job, ended: Ended, limit: float, log: Path, rows: list[dict[str, Any]]) -> Outcome:
    """The outcome of a benchmark from the rows of its record. Our own wrong or failed rows are failures."""
    wrong = [row for row in rows if _error(row)]
    counts = {"rows": len(rows), "wrong": len(wrong)}
    failures = [(_describe(row), str(_error(row))) for row in wrong if _is_ours(row)]
    result = Outcome(job.part, job.name, "passed", ended.seconds, round(limit, 1), None, counts, failures, rows)
    if ended.code is None:
        result.state, result.reason = "out of time", f"killed; its last line: {last_line(log)}"
    elif ended.code:
        how = f"ended by signal {-ended.code}; its last line: " if ended.code < 0 else ""
        result.state, result.reason = "failed", how + last_line(log)
    elif failures or not rows:
        result.state = "failed"
        result.reason = None if rows else "it wrote no record"
    return result


def rows_of(path: Path, since: float) -> list[dict[str, Any]]:
    """The rows of a record if it was written since then."""
    if not path.exists() or path.stat().st_mtime < since:
        return []
    return json.loads(path.read_text())["rows"]


def _error(row: dict[str, Any]) -> str | None:
    return row.get("wrong") or row.get("skipped")


def _is_ours(row: dict[str, Any]) -> bool:
    return str(row.get("provider") or row.get("variant") or "").startswith("ours")


def _describe(row: dict[str, Any]) -> str:
    if "variant" in row:
        return f"{row['architecture']} {row['batch']} {row['variant']}"
    shape = "x".join(map(str, row["shape"]))
    return f"{row['op']} {shape} {row['direction']} {row['provider']}"


def last_line(log: Path) -> str:
    """The last line that a command printed."""
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")


def state_of(outcomes: Sequence[Outcome]) -> State:
    """The state of a part: the worst of its jobs. A skipped job counts only if all are skipped."""
    states = {outcome.state for outcome in outcomes}
    for state in ("failed", "out of time", "passed"):
        if state in states:
            return state
    return "skipped"


def summary(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """One row per part, for the record."""
    rows = []
    for part in dict.fromkeys(outcome.part for outcome in outcomes):
        jobs = [outcome for outcome in outcomes if outcome.part == part]
        counts: dict[str, int] = {}
        for job in jobs:
            for name, count in job.counts.items():
                counts[name] = counts.get(name, 0) + count
        described = [{name: value for name, value in vars(job).items() if name not in ("part", "rows")} for job in jobs]
        seconds = round(sum(job.seconds for job in jobs), 1)
        rows.append({"part": part, "state": state_of(jobs), "seconds": seconds, "counts": counts, "jobs": described})
    return rows

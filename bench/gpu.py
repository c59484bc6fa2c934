"""Check correctness and speed on this machine's GPU in at most nine minutes: python bench/gpu.py [--only PARTS]

The parts run in this order: property tests of the compiled kernels, benchmarks of all operators, the convolutions, one
training step, and the loader with DALI on the GPU. Every job has a process group of its own and a time limit; time that
a job saves goes to later ones. The report says what passed, failed, was skipped or ran out of time, and compares the
times with the committed records. Its record is `bench/results/<device>/gpu.json`, or `gpu-only-PARTS.json`; the
benchmarks write `gpu-NAME.json` beside it. The output of every job is kept in `runs/gpu/`.

The exit code is 1 if anything failed or ran out of time, and 2 without a GPU.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import harness
import rich.console
import torch
from gpu_check import claims, outcome, report
from gpu_check.outcome import Outcome
from gpu_check.plan import PARTS, RESERVE, ROOT, TOTAL, Job, plan
from gpu_check.processes import run
from gpu_check.pytest_log import VARIABLE

LOGS = ROOT / "runs" / "gpu"
SWITCHES = ("TRITON_INTERPRET", "FASTALEX_KERNELS")  # which would measure something else


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Correctness and speed on this machine's GPU, at most 9 minutes.")
    names = ",".join(PARTS)
    parser.add_argument("--only", default=names, help=f"parts to run, separated by commas ({names})")
    parser.add_argument("--dry-run", action="store_true", help="print the plan; needs no GPU")
    parser.add_argument("--output", type=Path, default=harness.RESULTS, help="folder of the records (bench/results)")
    parser.add_argument("--logs", type=Path, default=LOGS, help="folder of the jobs' output (runs/gpu)")
    options = parser.parse_args(arguments)
    asked = options.only.split(",")
    unknown = [name for name in asked if name not in PARTS]
    if unknown:
        parser.error(f"argument --only: no part is called {unknown[0]!r}; choose from {names}")
    options.logs = options.logs.resolve()  # jobs run in the folder of the repository
    options.only = tuple(part for part in PARTS if part in asked)
    return options


def environment() -> dict[str, str]:
    """The environment of the jobs: this checkout's code, compiled kernels, and the implementation chosen by default."""
    variables = {
        name: value for name, value in os.environ.items() if name not in ("TRITON_INTERPRET", "FASTALEX_KERNELS")
    }
    paths = [str(ROOT), str(ROOT / "bench"), *filter(None, [os.environ.get("PYTHONPATH")])]
    # Unbuffered, so that the last line of a killed job is known.
    return variables | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}


def run_job(job: Job, limit: float, logs: Path, records: Path) -> Outcome:
    """Run one job and judge it.

    Args:
        limit: its time limit in seconds.
        logs: folder of its output.
        records: folder of this device's records.
    """
    stem = f"{job.part}-{job.name}".replace(" ", "-").replace(",", "").replace("^", "-")
    log, tests = logs / f"{stem}.txt", logs / f"{stem}.jsonl"
    tests.unlink(missing_ok=True)
    began = time.time()
    variables = environment() | ({} if job.record else {VARIABLE: str(tests)})
    ended = run(job.command_for(limit), limit, log, cwd=ROOT, environment=variables)
    if job.record is None:
        return outcome.of_tests(job, ended, limit, log, tests)
    return outcome.of_benchmark(job, ended, limit, log, outcome.rows_of(records / f"{job.record}.json", began))


def run_jobs(
    jobs: Sequence[Job], logs: Path, records: Path, console: rich.console.Console, outcomes: list[Outcome]
) -> None:
    """Run all jobs and append their outcomes. A job may run until the sum of the limits up to its own is over."""
    logs.mkdir(parents=True, exist_ok=True)
    begin, end = time.monotonic(), 0.0
    for job in jobs:
        end += job.seconds
        limit = begin + end - time.monotonic()
        missing = job.missing()
        if missing is not None:
            outcomes.append(outcome.skipped(job, f"{missing} is not installed"))
        elif job.spare is not None and limit < job.spare[0]:
            outcomes.append(outcome.skipped(job, f"needs {job.spare[0]} s, {max(0.0, limit):.0f} s are left"))
        else:
            limit = limit if job.spare is None else min(limit, job.spare[1])
            console.print(f"{job.part}: {job.name}, at most {limit:.0f} s ...")
            outcomes.append(run_job(job, limit, logs, records))
        console.print(f"{job.part}: {job.name}: {report.describe(outcomes[-1])}")


def check(
    options: argparse.Namespace, jobs: Sequence[Job], device: str, console: rich.console.Console
) -> list[Outcome]:
    """Run the jobs, write the record and print the report, even if the run is interrupted."""
    folder = harness.slug(device)
    claimed = claims.load(harness.RESULTS, folder, jobs)  # before anything is measured
    outcomes: list[Outcome] = []
    begin = time.monotonic()
    finished = False
    try:
        run_jobs(jobs, options.logs, options.output / folder, console, outcomes)
        finished = True
    finally:
        lines = claims.compare(claimed, jobs, outcomes)
        settings: dict[str, Any] = {
            "parts": list(options.only),
            "finished": finished,
            "seconds": round(time.monotonic() - begin, 1),
            "limit_seconds": sum(job.seconds for job in jobs),
            "claims": claims.as_rows(lines),
        }
        name = "gpu" if options.only == PARTS else f"gpu-only-{'-'.join(options.only)}"
        harness.write_record(name, settings, outcome.summary(outcomes), options.output, device=device)
        console.print(f"{settings['seconds']:.0f} s of {TOTAL - RESERVE}; the output of the jobs is in {options.logs}")
        report.print_report(console, outcomes, lines)
    return outcomes


def interrupt(number: int, frame: FrameType | None) -> None:
    """End like after Ctrl-C, so that no job outlives this process."""
    raise KeyboardInterrupt


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    custom = None if options.output == harness.RESULTS else options.output.resolve()
    jobs = plan(options.only, custom)
    console = report.make_console()
    if options.dry_run:
        report.print_plan(console, jobs)
        return
    if not harness.CUDA:
        print(
            f"error: this check needs an NVIDIA GPU, and torch {torch.__version__} finds none; "
            "--dry-run prints what it would run",
            file=sys.stderr,
        )
        sys.exit(2)
    signal.signal(signal.SIGTERM, interrupt)
    try:
        outcomes = check(options, jobs, harness.device_name(), console)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(any(found.state in ("failed", "out of time") for found in outcomes))


if __name__ == "__main__":
    main()

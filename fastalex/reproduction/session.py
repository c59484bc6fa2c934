"""One call of ``python -m fastalex.reproduce``: the plan, the missing steps, and the page."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from rich.table import Table

from dataloading.process import command, die_with_parent
from fastalex.console import console, print_whole
from fastalex.errors import ConfigurationError, Interrupted, WorkerError
from fastalex.files import is_empty, new_folder, owned, write_atomically
from fastalex.parallel.torchrun import refuse_launcher
from fastalex.reproduction import steps
from fastalex.reproduction.hours import Estimate, check_possible, recipe_of
from fastalex.reproduction.job import Job
from fastalex.reproduction.options import OTHER_FOLDER
from fastalex.reproduction.page import write_results
from fastalex.reproduction.steps import Step
from fastalex.reproduction.targets import Targets

RECORD = "reproduction.json"
"""In the folder of a reproduction: what it was made from, so that others do not mix with it."""


_STOPPED = {code for number in (signal.SIGINT, signal.SIGTERM) for code in (-number, 128 + number)}
"""Exit codes of a step that a signal has ended, or that has heeded one."""


def reproduce(job: Job) -> None:
    """Do what is missing, and write tables, figures and the page.

    Raises:
        ConfigurationError, dataloading.DatasetError: a step is not possible, or the folder holds something else.
        WorkerError: a step failed.
        Interrupted: a signal asked to stop; the same command goes on.
    """
    refuse_launcher("a reproduction starts its own workers; run it without torchrun and name its devices")
    is_begun = job.output.is_dir() and not is_empty(job.output)
    with owned(job.output) if is_begun else new_folder(job.output, OTHER_FOLDER):
        _check_record(job, is_begun)
        targets = Targets(job, recipe_of(steps.network(job, job.main, 0)).recipe.batch_size)
        planned = targets.steps()
        for step in planned:
            if not step.is_done:
                check_possible(step)
        write_atomically(job.output / RECORD, json.dumps(job.identity(), indent=1) + "\n")
        (job.output / "evaluations").mkdir(exist_ok=True)
        if not targets.plan.is_done:
            _run(targets.plan, 0, len(planned))
        _print_plan(planned, Estimate(targets.plan.result))
        if job.plan_only:
            return
        for number, step in enumerate(planned, 1):
            if not step.is_done:
                _run(step, number, len(planned))
        written = write_results(targets)
    out = console()
    for path in written:
        out.print(f"written: {path}")


def _check_record(job: Job, is_begun: bool) -> None:
    """Check that a folder with content holds this reproduction.

    Raises:
        ConfigurationError: it holds something else, or one with other data or options.
    """
    if not is_begun:
        return
    try:
        found: dict[str, Any] = json.loads((job.output / RECORD).read_bytes())
        names = found.keys()
    except (OSError, ValueError, AttributeError):
        raise ConfigurationError(f"{job.output} holds no reproduction; {OTHER_FOLDER}") from None
    for name, value in job.identity().items():
        if name in names and found[name] != value:
            what = f"the data set {name}" if name in ("first", "main", "pretraining") else name.replace("_", " ")
            raise ConfigurationError(
                f"{job.output} was made with {what} {_short(found[name])}, got {_short(value)}; give the same data and "
                f"options, or {OTHER_FOLDER}"
            )


def _short(value: object) -> str:
    """A value of a record: of fingerprints, the beginning."""
    return "the default" if value is None else str(value)[:12]


def _print_plan(planned: list[Step], estimate: Estimate) -> None:
    table = Table(title="plan", title_justify="left")
    table.add_column("step")
    table.add_column("hours:minutes:seconds", justify="right")
    total, finished, is_partial = 0.0, set[str](), False
    for step in planned:
        if step.is_done:
            table.add_row(step.title, "done")
            continue
        seconds = estimate.seconds(step, finished)
        is_partial = is_partial or seconds is None
        total += seconds or 0.0
        table.add_row(step.title, "not known" if seconds is None else clock(seconds))
    table.add_section()
    table.add_row("together", f"{'over ' if is_partial else ''}{clock(total)}")
    out = console()
    print_whole(out, table)
    out.print(
        "Estimated from the measured speed of the network. Every step takes seconds more to start; reading images may "
        "take longer."
    )


def clock(seconds: float) -> str:
    """A time as hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def _run(step: Step, number: int, count: int) -> None:
    """Run the command of a step.

    Raises:
        ConfigurationError, WorkerError: it failed; it has said why.
        Interrupted: a signal asked to stop.
    """
    words = step.words_now()
    print(f"--- {number} of {count}: {step.title}\n{command(*words)}", flush=True)
    process = subprocess.Popen(
        [sys.executable, "-m", *words], preexec_fn=partial(die_with_parent, os.getpid()), env=_environment()
    )
    with _forwarding(process) as received:
        code = process.wait()
    if received or code in _STOPPED:
        number = received[0] if received else abs(code) % 128
        raise Interrupted("stopped; the same command goes on from here", number)
    if code == 0 and step.is_done:
        return
    if code == 0:
        raise WorkerError(f"{step.title} ended without its result {step.result}; run it alone to see why")
    message = f"{step.title} failed, for the reason above; mend it, and give the same command again"
    raise ConfigurationError(message) if code == 2 else WorkerError(message)


def _environment() -> dict[str, str]:
    """Where a step finds the packages of this process, whatever the folder."""
    root = str(Path(__file__).resolve().parents[2])
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))}


@contextlib.contextmanager
def _forwarding(process: subprocess.Popen[bytes]) -> Iterator[list[int]]:
    """Send on the signals that ask to stop, and collect them. A terminal sends Ctrl-C to the step by itself."""
    received: list[int] = []

    def handle(number: int, _: FrameType | None) -> None:
        received.append(number)
        if number != signal.SIGINT or not sys.stdin or not sys.stdin.isatty():
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)

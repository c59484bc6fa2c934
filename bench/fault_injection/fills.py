"""Filling the disk while a command writes to it: a small tmpfs, which only root can mount."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fault_injection.comparison import Result, differences
from fault_injection.jobs import PREPARATION, TRAINING, Job, Workplace
from fault_injection.kills import last_line
from fault_injection.moments import Moment
from fault_injection.processes import Hung, Process
from fault_injection.record import Fault, Outcome

_SIZE = 64 << 20  # enough for everything; the rest is filled when the moment comes
_FILLER = "filler"


def obstacle() -> str | None:
    """Why disks cannot be filled here, or None."""
    if os.geteuid() != 0:
        return "only root can mount a small disk"
    if shutil.which("mount") is None:
        return "there is no command mount"
    return None


def run(place: Workplace, seed: int) -> list[Fault]:
    """A command whose disk is full from a random moment on; then there is room again, and the command is repeated."""
    draw = random.Random(f"fill {seed}")
    job = draw.choice((TRAINING, TRAINING, PREPARATION))
    expected, pace = place.undisturbed(job)
    while True:
        moment = Moment.draw(draw, pace)
        with _disk(place) as folder:
            if ended := _fill(place, job, folder, moment, expected):
                return [Fault("fill", seed, job.name, f"full at {moment}", *ended)]


def _fill(place: Workplace, job: Job, folder: Path, moment: Moment, expected: Result) -> tuple[Outcome, str] | None:
    """Returns None if the command has ended before the moment."""
    log = place.root / "fill.log"
    process = Process(job.first(place), folder, log)
    try:
        if not moment.wait(process, job.watched(folder), job.log(folder)):
            return None
        saved = job.saved(folder)
        while process.poll() is None:
            _take_all(folder)
            time.sleep(0.001)
        code = process.wait()
        output, left = process.output, _leftovers(job, folder)
        with contextlib.suppress(FileNotFoundError):
            (folder / _FILLER).unlink()
        if job.saved(folder) < saved:
            return "lost", f"saved {saved}, then {job.saved(folder)}"
        # With room again, the same command goes on.
        again, is_finished = "", job.is_finished(code, output)
        if not is_finished:
            process = Process(job.next(place, folder), folder, log)
            is_finished = job.is_finished(process.wait(), process.output)
            again = last_line(process.output)
    except Hung as error:
        return "hung", str(error)
    if not is_finished:
        return "lost", f"cannot go on: {again}"
    if found := differences(job.result(folder), expected):
        return "wrong", f"differs in {', '.join(found)}"
    errors = [line for line in output.splitlines() if line.startswith("error: ")]
    if code and (code != 2 or len(errors) != 1 or "Traceback" in output):
        return "unnamed", f"code {code}: {last_line(output)}"
    return ("unnamed", f"left {', '.join(left)}") if code and left else ("survived", "named" if code else "harmless")


def _leftovers(job: Job, folder: Path) -> list[str]:
    """Half-written files that a command has left."""
    names: list[str] = []
    for watched in job.watched(folder):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            names += [name for name in os.listdir(watched) if name.startswith(".") or name.endswith(".part")]
    return names


def _take_all(folder: Path) -> None:
    """Fill what is free on the disk."""
    with contextlib.suppress(OSError), (folder / _FILLER).open("ab") as file:
        about = os.statvfs(folder)
        free = about.f_bavail * about.f_frsize
        if free:
            os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), free)


@contextmanager
def _disk(place: Workplace) -> Iterator[Path]:
    """A small disk, mounted as long as it is used."""
    folder = place.root / "disk"
    folder.mkdir(exist_ok=True)
    while os.path.ismount(folder):  # an earlier campaign was stopped
        subprocess.run(["umount", "-l", str(folder)], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_SIZE}", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)

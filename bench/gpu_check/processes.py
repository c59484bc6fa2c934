"""Runs a command with a time limit, and ends everything that it started."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_POLL = 0.05  # seconds between two looks at the process


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code, or None if its time was over, and the seconds that it took."""

    code: int | None
    seconds: float


def run(
    command: Sequence[str], seconds: float, log: Path, *, cwd: Path, environment: Mapping[str, str] | None = None
) -> Ended:
    """Run a command in a process group of its own, with its output in a file.

    When it has ended, when its time is over, and when this process is interrupted, all processes of the group and all
    descendants are killed.
    """
    begin = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        while in_time := time.monotonic() - begin < seconds:
            if _has_ended(process.pid):
                break
            time.sleep(_POLL)
    finally:
        _kill_all(process.pid)
        with contextlib.suppress(subprocess.TimeoutExpired):  # a process that hangs in a driver cannot be killed
            process.wait(timeout=10)
    return Ended(process.returncode if in_time else None, round(time.monotonic() - begin, 1))


def _has_ended(pid: int) -> bool:
    """Whether a child has ended. It stays a zombie, so that its group's number belongs to nobody else."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _kill_all(leader: int) -> None:
    """Kill a process group and the descendants of its leader, which may have left the group."""
    found = _descendants(leader)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)
    for pid in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _descendants(pid: int) -> list[int]:
    """All descendants of a process, from /proc."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended
            # "pid (name) state parent ...": the name may have spaces and parentheses.
            parent = int(path.read_text(errors="replace").rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(path.parent.name))
    found: list[int] = []
    waiting = [pid]
    while waiting:
        new = children.get(waiting.pop(), [])
        found += new
        waiting += new
    return found

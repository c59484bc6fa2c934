"""TODO."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from fastalex.errors import Aborted, ConfigurationError, Interrupted, NonFiniteLoss

_USER_ERRORS = {"NonFiniteLoss": NonFiniteLoss}  # what a worker raised is raised again by its name


# What gloo, NCCL and the store say when another worker has ended. Other NCCL errors may be causes themselves.
_LOST_PEER = (
    "connection closed by peer",
    "connection reset",
    "connection was likely closed",
    "timed out waiting",
    "remote process exited",
    "ncclremoteerror",
    "communicator was aborted",
)


class WorkerError(Exception):
    """A worker failed for a reason that is not the user's input; the message says which and how."""

    said = False


def _watch_peers(folder: Path, rank: int, size: int) -> None:
    """End this process soon after a peer has ended without success.

    A worker that waits for a peer inside a transport runs no Python code, not even a signal handler, until the wait
    times out; this thread still runs. The grace leaves time to say what went wrong, if that is known here.
    """
    while True:
        time.sleep(1)
        for peer in range(size):
            path = folder / f"{peer}.pid"
            if peer != rank and path.exists() and not (folder / f"{peer}.done").exists() and not _lives(path):
                time.sleep(5)
                os._exit(1)


def _lives(path: Path) -> bool:
    """Whether the process whose id is in the file runs; one that only waits to be collected does not."""
    try:
        state = Path(f"/proc/{path.read_text() or 'self'}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def _lost_a_peer(message: str) -> bool:
    return any(phrase in message.lower() for phrase in _LOST_PEER)


def _raise_cause(failures: Path, error: Any, devices: Sequence[torch.device], signal_number: int = 0) -> None:
    """Raise the root cause of what the workers reported, if anything went wrong."""
    reports = [json.loads(path.read_text()) for path in failures.glob("*.json")]
    reports.sort(key=lambda report: report["time"])
    for report in reports:
        if report["type"] == "Interrupted":
            raise Interrupted(report["message"], report["signal"])
        if report["is_user_error"]:
            raise _USER_ERRORS.get(report["type"], ConfigurationError)(report["message"])
    if signal_number:
        raise Aborted("interrupted", signal_number)
    if error is None and not reports:
        return
    # A worker that lost its peer is a victim: look for one with a reason of its own, then for one that was killed.
    for report in reports:
        if not _lost_a_peer(report["message"]):
            name = f"worker {report['rank']} ({report['device']})"
            raise WorkerError(f"{name} failed:\n{report['traceback'].rstrip()}")
    killed = [(rank, failure) for rank, failure in (error.failures if error else {}).items() if failure.exitcode < 0]
    # NCCL aborts the processes that wait for one that was killed.
    killed.sort(key=lambda pair: (pair[1].exitcode == -signal.SIGABRT, pair[1].timestamp, pair[0]))
    for rank, failure in killed:
        name = signal.Signals(-failure.exitcode).name
        raise WorkerError(f"worker {rank} ({devices[rank]}) was killed by {name}")
    for report in reports:
        name = f"worker {report['rank']} ({report['device']})"
        raise WorkerError(f"{name} lost another one, which ended without a word:\n{report['traceback'].rstrip()}")
    raise WorkerError("a worker ended without a word")

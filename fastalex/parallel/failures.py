"""When a worker fails: what it leaves behind, who else notices, and how the parent finds the root cause.

Workers report exceptions in the error files of torch's elastic launcher. The launcher itself names only the worker that
it found dead first, which may be a victim of another one, so the parent reads all files and picks the cause.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import torch
from torch.distributed.elastic.multiprocessing.errors import get_error_handler

from dataloading import DatasetError
from fastalex.errors import Aborted, ConfigurationError, Interrupted, NonFiniteLoss, WorkerError

# Exceptions that concern the user: the parent raises them again, with the worker's message.
_USER_ERRORS = {error.__name__: error for error in (ConfigurationError, DatasetError, NonFiniteLoss)}

# What gloo, NCCL and the store report when a peer has ended. Other NCCL errors may be causes themselves.
_LOST_PEER = (
    "connection closed by peer",
    "connection reset",
    "connection was likely closed",
    "timed out waiting",
    "remote process exited",
    "ncclremoteerror",
    "communicator was aborted",
)

_GRACE = 5  # seconds that a worker gets to report its own failure before one of a peer ends it


def has_lost_peer(message: str) -> bool:
    """Whether an exception's message says that another worker has ended."""
    return any(phrase in message.lower() for phrase in _LOST_PEER)


# --- in a worker ------------------------------------------------------------------------------------------------------


@contextmanager
def watch_peers(folder: Path) -> Iterator[None]:
    """End this process soon after a peer has died.

    A worker that waits for a peer inside gloo or NCCL runs no Python code, not even a signal handler, until the wait
    times out. A thread still runs.

    Args:
        folder: shared by the workers of this machine; holds one file per live worker, named after its process id.
    """
    presence, stop = folder / f"{os.getpid()}.pid", threading.Event()

    def watch() -> None:
        while not stop.wait(1):
            ended = [path for path in folder.glob("*.pid") if not _is_running(path.stem)]
            # A peer that leaves in agreement with the others removes its file, perhaps after we have listed it.
            if ended and not stop.wait(_GRACE) and any(path.exists() for path in ended):
                os._exit(1)

    presence.touch()
    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    except Interrupted:  # leaves in agreement with its peers
        presence.unlink(missing_ok=True)
        raise
    else:
        presence.unlink(missing_ok=True)
    finally:
        stop.set()


def _is_running(pid: str) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def report_and_exit(error: BaseException) -> NoReturn:
    """Write the exception that is being handled to the launcher's error file, and exit without any cleanup.

    An orderly exit would wait for threads that wait for other workers. The exit code is 1, or 128 + n after
    :class:`~fastalex.errors.Interrupted` by signal n.
    """
    get_error_handler().record_exception(as_recorded(error))
    sys.stdout.flush()
    sys.stderr.flush()
    if has_lost_peer(str(error)):
        # Let the launcher find the dead peer first, for its exit code. The launcher then ends this worker by SIGTERM.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(_GRACE)
    os._exit(128 + error.signal_number if isinstance(error, Interrupted) else 1)


def leave() -> NoReturn:
    """End this process, one of several workers, with exit code 0 and without the interpreter's shutdown.

    Exit functions run. gloo's threads outlive ``destroy_process_group``, and beside them the shutdown has aborted
    processes whose work was done.
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def as_recorded(error: BaseException) -> BaseException:
    """An error that concerns the user as the kind that the parent raises again; any other error as it is.

    An error file holds the name of an exception's class, and of a subclass the parent knows no more than that.
    """
    kind = next((kind for kind in type(error).__mro__ if kind in _USER_ERRORS.values()), type(error))
    return error if kind is type(error) else kind(str(error))


# --- in the parent ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FailureReport:
    """One worker's error file: the exception's class name, its message and its traceback."""

    rank: int
    kind: str
    message: str
    traceback: str


def read_reports(folder: Path) -> list[FailureReport]:
    """The error files anywhere below the launcher's log folder, the oldest first."""
    reports = []
    # torch writes times in whole seconds; those of the files tell apart what happened within one.
    for path in sorted(folder.rglob("error.json"), key=lambda path: path.stat().st_mtime_ns):
        try:
            content = json.loads(path.read_text())["message"]
        except ValueError:  # killed while it was written
            continue
        kind, _, message = content["message"].partition(": ")
        reports.append(FailureReport(int(path.parent.name), kind, message, content["extraInfo"]["py_callstack"]))
    return reports


def root_cause(
    reports: Sequence[FailureReport],
    exit_codes: Mapping[int, int],
    devices: Sequence[torch.device],
    signal_number: int = 0,
) -> Exception:
    """The exception that explains why the workers ended.

    Args:
        reports: the oldest first.
        exit_codes: of failed workers, by rank; -n means killed by signal n.
        devices: of the workers, by rank.
        signal_number: of the signal that the parent received, 0 for none.
    """
    for report in reports:
        if report.kind == Interrupted.__name__:
            codes = [code - 128 for code in exit_codes.values() if code > 128]
            return Interrupted(report.message, signal_number or next(iter(codes), signal.SIGINT))
        if report.kind in _USER_ERRORS:
            return _USER_ERRORS[report.kind](report.message)
    if signal_number:
        return Aborted("interrupted", signal_number)

    def name(rank: int) -> str:
        return f"worker {rank} ({devices[rank]})"

    # A worker that lost a peer is a victim: prefer one that failed by itself, then one that was killed.
    for report in reports:
        if not has_lost_peer(report.message):
            return WorkerError(f"{name(report.rank)} failed:\n{report.traceback.rstrip()}")
    killed = [(rank, -code) for rank, code in exit_codes.items() if code < 0]
    # NCCL aborts the processes that wait for a killed one.
    for rank, number in sorted(killed, key=lambda worker: worker[1] == signal.SIGABRT):
        return WorkerError(f"{name(rank)} was killed by {signal.Signals(number).name}")
    for report in reports:
        return WorkerError(
            f"{name(report.rank)} lost another worker, which left no message:\n{report.traceback.rstrip()}"
        )
    ended = ", ".join(f"{name(rank)} with exit code {code}" for rank, code in exit_codes.items())
    return WorkerError(f"{ended or 'a worker'} ended without a message")

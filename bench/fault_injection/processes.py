"""Commands as processes that can be killed: forked from this one, which has imported everything, or started anew."""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import random
import runpy
import signal
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import harness
import torch

Victim = Literal["parent", "worker", "all"]

SECONDS_TO_END = 300.0
"""A command that takes longer hangs. Forked ones take a second, if other processes leave them a processor."""
_SECONDS_TO_FOLLOW = 60.0  # for the workers of a process that was killed

# What the commands import. The commands themselves are not imported here, because children run them as `__main__`.
_IMPORTED = (
    "dataloading.check",
    "dataloading.loading.dali_stream",
    "fastalex.evaluation.options",
    "fastalex.training.resolve",
    "fastalex.training.trainer",
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "torch.utils.tensorboard",
)


class Hung(Exception):
    """A command did not end in time, or left processes behind."""


def import_everything() -> None:
    """Import what commands import, so that forked ones need not. Starts no threads of PyTorch or DALI."""
    for name in _IMPORTED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # children then copy fewer pages


class Process:
    """A running command, the leader of a session of its own.

    Args:
        arguments: a module, which is run as by ``python -m``, and its arguments.
        folder: the working directory.
        log: file for everything that the command prints.
        forked: fork this process, instead of starting Python anew.
    """

    def __init__(self, arguments: Sequence[str], folder: Path, log: Path, *, forked: bool = True) -> None:
        self.log = log
        self._code: int | None = None
        self._new: subprocess.Popen[bytes] | None = None
        self.seconds_to_end = SECONDS_TO_END if forked else 2 * SECONDS_TO_END
        self.started = time.monotonic()
        if forked:
            self.pid = _fork(arguments, folder, log)
            return
        environment = os.environ | {"PYTHONPATH": str(harness.ROOT), "OMP_NUM_THREADS": "1"}
        with log.open("wb") as output:
            self._new = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self.pid = self._new.pid

    def poll(self) -> int | None:
        """The exit code, -n after signal n, or None while the process runs.

        Raises:
            Hung: it has run for too long; it is killed.
        """
        if self._code is None and self._new is not None:
            self._code = self._new.poll()
        elif self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._code = os.waitstatus_to_exitcode(status) if pid else None
        if self._code is None and time.monotonic() - self.started > self.seconds_to_end:
            self.end()
            raise Hung(f"it did not end within {self.seconds_to_end:.0f} s")
        return self._code

    def wait(self) -> int:
        """Wait for the end, also of the command's workers; return the exit code.

        Raises:
            Hung: the command or one of its workers did not end.
        """
        while (code := self.poll()) is None:
            time.sleep(0.002)
        end = time.monotonic() + _SECONDS_TO_FOLLOW
        while self._members():
            if time.monotonic() > end:
                self.end()
                raise Hung("it left processes behind")
            time.sleep(0.01)
        return code

    def kill(self, victim: Victim, draw: random.Random) -> bool:
        """Send SIGKILL to the parent, to one of its workers, or to all; False if there is no such process."""
        if victim == "worker":
            workers = [pid for pid in self._members() if pid != self.pid and _is_worker(pid)]
            if not workers:
                return False
            os.kill(draw.choice(workers), signal.SIGKILL)
            return True
        if victim == "all":
            with contextlib.suppress(ProcessLookupError):  # it has not become the leader of its group yet
                os.killpg(self.pid, signal.SIGKILL)
        os.kill(self.pid, signal.SIGKILL)
        return True

    def end(self) -> None:
        """Kill the process and all that it has started."""
        for pid in {*([self.pid] if self._code is None else []), *self._members()}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        while self._code is None:
            self.started = time.monotonic()
            self.poll()

    @property
    def output(self) -> str:
        """Everything that the command has printed."""
        return self.log.read_text(errors="replace")

    def _members(self) -> list[int]:
        """Ids of the processes of this session that have not ended."""
        found = []
        for name in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                state, _, _, session = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[:4]
                if int(session) == self.pid and state not in "ZX":
                    found.append(int(name))
        return found


def _is_worker(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def _fork(arguments: Sequence[str], folder: Path, log: Path) -> int:
    """Run a command in a child of this process; return its id."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.chdir(folder)
        torch.set_num_threads(1)
        sys.argv = list(arguments)
        warnings.simplefilter("ignore")
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
    with contextlib.suppress(BaseException):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)

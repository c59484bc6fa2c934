"""When a fault strikes: at a time, when the names in a folder change, or when a log grows; and how long after that."""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from fault_injection.processes import Process

_POLL_SECONDS = 0.0002

Kind = Literal["time", "change", "step"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class Pace:
    """What a whole command takes: seconds, changes of names, growths of the log."""

    seconds: float
    changes: int
    steps: int

    @classmethod
    def measure(cls, process: Process, folders: Sequence[Path], log: Path | None) -> Pace:
        """Watch a command to its end."""
        names, size, changes, steps = _names(folders), _size(log), 0, 0
        while process.poll() is None:
            time.sleep(_POLL_SECONDS)
            if (now := _names(folders)) != names:
                names, changes = now, changes + 1
            if (grown := _size(log)) != size:
                size, steps = grown, steps + 1
        return cls(time.monotonic() - process.started, max(1, changes), steps)


@dataclass(frozen=True)
class Moment:
    """A moment in the life of a command.

    Args:
        kind: ``time`` counts seconds from the start; ``change``, changes of the names in the folders that the command
            writes to (every file of a checkpoint appears, and is renamed); ``step``, growths of its log.
        count: how many changes or growths.
        delay: seconds after that.
    """

    kind: Kind
    count: int
    delay: float

    @classmethod
    def draw(cls, draw: random.Random, pace: Pace) -> Moment:
        """A random moment: half of them while files appear and vanish, a third between steps, the rest at any time."""
        kind = draw.choices(KINDS, (20, 50, 30 if pace.steps else 0))[0]
        if kind == "time":
            return cls("time", 0, draw.uniform(0, pace.seconds))
        delay = draw.choice((0.0, draw.uniform(0, 0.002), draw.uniform(0, 0.02)))
        return cls(kind, draw.randint(1, pace.changes if kind == "change" else pace.steps), delay)

    def __str__(self) -> str:
        if self.kind == "time":
            return f"{1000 * self.delay:.1f} ms after the start"
        return f"{self.kind} {self.count} + {1000 * self.delay:.1f} ms"

    def wait(self, process: Process, folders: Sequence[Path], log: Path | None) -> bool:
        """Wait for the moment; False if the command has ended before.

        Raises:
            Hung: the command does not end.
        """
        seen: Callable[[], object] = lambda: _names(folders) if self.kind == "change" else _size(log)  # noqa: E731
        before, changes = seen(), 0
        while changes < self.count:
            if process.poll() is not None:
                return False
            time.sleep(_POLL_SECONDS)
            if (now := seen()) != before:
                before, changes = now, changes + 1
        end = time.monotonic() + self.delay
        while (left := end - time.monotonic()) > 0:
            if process.poll() is not None:
                return False
            time.sleep(min(left, 0.002))
        return process.poll() is None


def _names(folders: Sequence[Path]) -> list[list[str] | None]:
    """The names in each folder, and in hidden folders there; None for a folder that does not exist."""
    found: list[list[str] | None] = []
    for folder in folders:
        names = None
        with contextlib.suppress(OSError):
            names = os.listdir(folder)
            for name in [name for name in names if name.startswith(".") and os.path.isdir(folder / name)]:
                with contextlib.suppress(OSError):
                    names += os.listdir(folder / name)
        found.append(names)
    return found


def _size(log: Path | None) -> int:
    with contextlib.suppress(OSError):
        return os.stat(log).st_size if log else 0
    return 0

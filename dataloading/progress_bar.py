"""A progress bar on a terminal, a plain line every ten seconds elsewhere."""

import sys
import time
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_PLAIN_LINE_EVERY = 10.0  # seconds


class ProgressReport:
    """Counts images (or another `unit`) up to `total`, if that is known, and reports count, rate and time left.

    Reports go to `stream`, by default stderr.
    """

    def __init__(
        self,
        what: str,
        total: int | None,
        *,
        unit: str = "images",
        done: int = 0,
        shown: bool = True,
        stream: TextIO | None = None,
    ) -> None:
        self.what, self.total, self.unit, self.done, self.shown = what, total, unit, done, shown
        self._stream = stream or sys.stderr
        self._before, self._began = done, time.monotonic()
        self._next_line = self._began + _PLAIN_LINE_EVERY
        self._bar: Progress | None = None

    def __enter__(self) -> "ProgressReport":
        console = Console(file=self._stream)
        if self.shown and console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
            )
            self._bar = Progress(*columns, TimeRemainingColumn(), console=console)
            self._task = self._bar.add_task(self.what, total=self.total, completed=self.done, rate="")
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()
        elif self.shown and kind is None and self.total is not None:
            self._line()

    @property
    def rate(self) -> float:
        """Images per second since the start."""
        return (self.done - self._before) / max(time.monotonic() - self._began, 1e-9)

    def update(self, done: int) -> None:
        """Say that `done` images are finished in all."""
        self.done = done
        if self._bar:
            self._bar.update(self._task, completed=done, rate=f"{self.rate:,.0f} {self.unit}/s")
        elif self.shown and time.monotonic() >= self._next_line:
            self._next_line += _PLAIN_LINE_EVERY
            self._line()

    def _line(self) -> None:
        of = "" if self.total is None else f" of {self.total:,}"
        text = f"{self.what}: {self.done:,}{of} {self.unit}, {self.rate:,.0f} {self.unit}/s"
        if self.total is not None and self.done < self.total and self.rate > 0:
            text += f", {(self.total - self.done) / self.rate:,.0f} s left"
        print(text, file=self._stream, flush=True)

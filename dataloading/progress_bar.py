"""A progress bar on a terminal; a plain line every ten seconds elsewhere."""

import contextlib
import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_PLAIN_LINE_EVERY = 10.0  # seconds


class ProgressBar:
    """Context manager that reports count, rate and remaining time on stderr.

    Args:
        description: what is being done, such as "preparing photographs".
        total: number of images at the end, or None if unknown.
        unit: what is counted.
        done: number of images that were finished before the start; they do not count towards the rate.
        shown: False reports nothing.
    """

    def __init__(
        self, description: str, total: int | None, *, unit: str = "images", done: int = 0, shown: bool = True
    ) -> None:
        self.description, self.total, self.unit, self.done, self.shown = description, total, unit, done, shown
        self._done_before, self._started = done, time.monotonic()
        self._next_line = self._started + _PLAIN_LINE_EVERY
        self._bar: Progress | None = None

    def __enter__(self) -> "ProgressBar":
        # Names may hold [brackets]. FORCE_COLOR, which notebooks set, would draw the bar into files.
        console = Console(file=sys.stderr, markup=False, emoji=False, force_terminal=sys.stderr.isatty())
        if self.shown and console.is_terminal:
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn() if self.total is not None else TextColumn("{task.completed:,}"),
                TextColumn("{task.fields[rate]}", markup=False),
            )
            self._bar = Progress(*columns, TimeRemainingColumn(), console=console)
            self._task = self._bar.add_task(self.description, total=self.total, completed=self.done, rate="")
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()
        elif self.shown and kind is None and self.total is not None:
            self._print_line()

    @property
    def rate(self) -> float:
        """Images per second since the start."""
        return (self.done - self._done_before) / max(time.monotonic() - self._started, 1e-9)

    def update(self, done: int) -> None:
        """Report that `done` images are finished in total."""
        self.done = done
        if self._bar:
            self._bar.update(self._task, completed=done, rate=f"{self.rate:,.0f} {self.unit}/s")
        elif self.shown and time.monotonic() >= self._next_line:
            self._next_line += _PLAIN_LINE_EVERY
            self._print_line()

    def _print_line(self) -> None:
        of = "" if self.total is None else f" of {self.total:,}"
        text = f"{self.description}: {self.done:,}{of} {self.unit}, {self.rate:,.0f} {self.unit}/s"
        if self.total is not None and self.done < self.total and self.rate > 0:
            text += f", {(self.total - self.done) / self.rate:,.0f} s left"
        with contextlib.suppress(OSError, ValueError):  # whoever reads it may be gone; the work goes on
            print(text, file=sys.stderr, flush=True)

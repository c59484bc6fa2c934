"""What commands print: the console, tables, progress bars, durations and commands to copy."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.measure import Measurement
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBar
from rich.table import Table


def console() -> Console:
    """The console of every command: it prints text as it is, in lines that are never broken.

    Without soft wrapping rich breaks lines at 80 columns in a file; with markup and emoji codes it would remove
    ``[brackets]`` and ``:words:`` from paths.
    """
    return Console(soft_wrap=True, highlight=False, markup=False, emoji=False)


def command(*arguments: object) -> str:
    """The shell command that runs a module with this Python from the current folder, to show to users."""
    python = Path(sys.executable)
    if python.is_relative_to(Path.cwd()):
        python = python.relative_to(Path.cwd())
    return shlex.join(map(str, (python, "-m", *arguments)))


@contextmanager
def batch_progress(title: str, total: int, *, shown: bool) -> Iterator[Callable[[], None]]:
    """Show a progress bar of ``total`` batches on a terminal; call the yielded function after each batch."""
    target = console()
    if not (shown and target.is_terminal):
        yield lambda: None
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} batches"),
        TimeRemainingColumn(),
    )
    with ProgressBar(*columns, console=target, transient=True) as bar:
        task = bar.add_task(title, total=total)
        yield lambda: bar.advance(task)


def name_value_table(title: str, rows: dict[str, str]) -> Table:
    """A table with one row per name and its value."""
    result = Table(title=title, title_justify="left", show_header=False)
    result.add_column()
    result.add_column(overflow="fold")
    for name, value in rows.items():
        result.add_row(name, value)
    return result


def print_whole(target: Console, table: Table) -> None:
    """Print a table without breaking words, wider than the console if necessary, so that paths can be copied."""
    least = Measurement.get(target, target.options.update_width(10_000), table).minimum
    if least > target.width:
        table.width = least
    target.print(table)


def duration(seconds: float) -> str:
    """A duration as ``1:02:03`` or ``2:03``."""
    hours, rest = divmod(round(seconds), 3600)
    minutes, rest = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"

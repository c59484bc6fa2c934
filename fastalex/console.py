"""What commands print: the console, rows, tables, progress bars and durations."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.measure import Measurement
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBar
from rich.table import Table


def console() -> Console:
    """The console of every command: it prints text as it is, in lines that are never broken.

    Without soft wrapping rich breaks lines at 80 columns in a file; with markup and emoji codes it would remove
    ``[brackets]`` and ``:words:`` from paths. FORCE_COLOR, which notebooks set, would draw progress bars into files.
    """
    return Console(soft_wrap=True, highlight=False, markup=False, emoji=False, force_terminal=sys.stdout.isatty())


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


def print_rows(target: Console, rows: Mapping[str, str]) -> None:
    """Print names and values in two columns, each row in one line that is never broken, so that paths can be copied."""
    width = max(map(len, rows))
    for name, value in rows.items():
        target.print(f"{name:<{width}}  {value}")


def print_whole(target: Console, table: Table) -> None:
    """Print a table without breaking words, wider than the console if necessary, so that paths can be copied."""
    least = Measurement.get(target, target.options.update_width(10_000), table).minimum
    if least > target.width:
        table.width = least
    target.print(table)


def data_size(count: float) -> str:
    """A number of bytes as ``512 B``, ``1.2 KiB``, ``3.4 MiB`` or ``5.6 GiB``."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.{0 if unit == 'B' else 1}f} {unit}"
        count /= 1024
    return f"{count:,.1f} GiB"


def duration(seconds: float) -> str:
    """A duration as ``1:02:03`` or ``2:03``."""
    hours, rest = divmod(round(seconds), 3600)
    minutes, rest = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"

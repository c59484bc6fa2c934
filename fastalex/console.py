"""TODO."""

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


def command(*arguments: object) -> str:
    """How to run a module again with this interpreter from the current folder, to be shown to users."""
    python = Path(sys.executable)
    if python.is_relative_to(Path.cwd()):
        python = python.relative_to(Path.cwd())
    return shlex.join(map(str, (python, "-m", *arguments)))


@contextmanager
def batch_progress(title: str, total: int, *, shown: bool) -> Iterator[Callable[[], None]]:
    """On a terminal, a bar of batches; what is yielded moves it on by one."""
    console = Console()
    if not (shown and console.is_terminal):
        yield lambda: None
        return
    columns = (TextColumn(title), BarColumn(), TextColumn("{task.completed}/{task.total} batches"))
    with ProgressBar(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda: bar.advance(task)


def name_value_table(title: str, rows: dict[str, str]) -> Table:
    """Names and values in two columns."""
    result = Table(title=title, title_justify="left", show_header=False)
    result.add_column()
    result.add_column(overflow="fold")
    for name, value in rows.items():
        result.add_row(name, value)
    return result


def print_whole(console: Console, table: Table) -> None:
    """Print a table without breaking a word, wider than the console if need be: a broken path cannot be copied."""
    least = Measurement.get(console, console.options.update_width(10_000), table).minimum
    if least > console.width:
        table.width = least
    console.print(table)


def duration(seconds: float) -> str:
    """1:02:03 or 2:03."""
    hours, rest = divmod(round(seconds), 3600)
    minutes, rest = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"

"""The metrics of a run: ``metrics.jsonl``, TensorBoard events and a plot of the training curve.

``metrics.jsonl`` is part of the run. Events and plot are decoration: where they fail, a line says so.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import json
import os
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fastalex.errors import ConfigurationError
from fastalex.files import sync_descriptor, write_atomically
from fastalex.json_types import check_json
from fastalex.metrics import Metrics
from fastalex.optional_packages import is_installed, missing

# TensorBoard would import TensorFlow if there is one, which is slow and fails if it is broken. Without it, TensorBoard
# uses a replacement of its own, which is enough to write events.
sys.modules.setdefault("tensorboard.compat.notf", types.ModuleType("tensorboard.compat.notf"))

Kind = Literal["train", "val"]


@dataclass(frozen=True)
class Rate:
    """Number of images, seconds, and how many of the seconds were spent waiting for data."""

    images: int = 0
    seconds: float = 0.0
    waiting: float = 0.0

    @property
    def images_per_second(self) -> float:
        """Throughput, including the time spent waiting for data."""
        return self.images / self.seconds if self.seconds else 0.0

    @property
    def waiting_percent(self) -> float:
        """Share of the time spent waiting for data."""
        return 100 * self.waiting / self.seconds if self.seconds else 0.0

    def __add__(self, other: Rate) -> Rate:
        return Rate(self.images + other.images, self.seconds + other.seconds, self.waiting + other.waiting)


class Stopwatch:
    """Measures a :class:`Rate` per lap.

    Attributes:
        images: images of the current lap; the caller counts them.
    """

    def __init__(self) -> None:
        self.images = 0
        self._start = time.perf_counter()
        self._waiting = 0.0

    @contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Counts the time inside the ``with`` block as waiting for data."""
        start = time.perf_counter()
        yield
        self._waiting += time.perf_counter() - start

    def lap(self) -> Rate:
        """End the current lap and start the next one."""
        now = time.perf_counter()
        rate = Rate(self.images, now - self._start, self._waiting)
        self.images, self._start, self._waiting = 0, now, 0.0
        return rate


def say(line: str) -> None:
    """Print a line about something that does not end the run, where it can be printed."""
    with contextlib.suppress(OSError, ValueError):
        print(line, file=sys.stderr, flush=True)


def reason(error: BaseException) -> str:
    """What an exception says, in one line."""
    return " ".join(str(error).split()) or type(error).__name__


@dataclass(frozen=True)
class _Line:
    """What every line of a log has, for whoever reads it."""

    kind: Kind
    epoch: int
    step: int
    loss: float
    top1_error: float
    top5_error: float
    images: int


class MetricsLog:
    """``metrics.jsonl``, with one JSON object per line, and the same values as TensorBoard events.

    Opening the log of a resumed run drops lines after ``step``, so that no step appears twice.

    Args:
        run: the run folder.
        step: the step from which the run starts or resumes.

    Attributes:
        validated_epochs: how many epochs before ``step`` have a line with their validation.

    Raises:
        ConfigurationError: ``metrics.jsonl`` is damaged; it is left as it is.
        OSError: it cannot be written; the error names it.
    """

    def __init__(self, run: Path, step: int = 0) -> None:
        self.path = run / "metrics.jsonl"
        is_new = not self.path.exists()
        kept = [line for line in read_metrics(run) if line["step"] <= step]
        self.validated_epochs = len({line["epoch"] for line in kept if line["kind"] == "val"})
        write_atomically(self.path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = self.path.open("a", buffering=1)
        self._events = _Events(run, None if is_new else step + 1)

    def write(self, kind: Kind, epoch: int, step: int, metrics: Metrics, rate: Rate, **more: float) -> None:
        """Append one line for an epoch, counted from 1; ``more`` are additional fields.

        Raises:
            OSError: ``metrics.jsonl`` cannot be written; the error names it.
        """
        line: dict[str, Any] = {
            "kind": kind,
            "epoch": epoch,
            "step": step,
            "loss": round(metrics.loss, 6),
            "top1_error": round(metrics.top1_error, 4),
            "top5_error": round(metrics.top5_error, 4),
            "images": metrics.images,
            "images_per_second": round(rate.images_per_second, 2),
            **more,
        }
        try:
            self._file.write(json.dumps(line) + "\n")
            if kind == "val":
                sync_descriptor(self._file.fileno())  # must be on disk before the checkpoint that counts this epoch
        except OSError as error:
            error.filename = str(self.path)
            raise
        for name in ("loss", "top1_error", "top5_error", "images_per_second", *more):
            self._events.write(f"{kind}/{name}", line[name], step)

    def close(self) -> None:
        """Close both files. Every line was flushed when it was written."""
        with contextlib.suppress(OSError):
            self._file.close()
        self._events.close()


class _Events:
    """TensorBoard events of a run. What fails is told once, and then no more events are written.

    Args:
        run: the run folder.
        purge_step: TensorBoard ignores earlier events from this step on; None for a new run.
    """

    def __init__(self, run: Path, purge_step: int | None) -> None:
        self._writer: Any = None
        self._has_failed = False
        self._hook_before = threading.excepthook
        threading.excepthook = self._thread_failed

        if not is_installed("tensorboard"):
            say(f"no TensorBoard events: {missing('tensorboard', 'tensorboard')}; metrics.jsonl has the same figures")
            return

        def open_writer() -> None:
            from torch.utils.tensorboard import SummaryWriter  # slow to import, and only one worker writes a log

            self._writer = SummaryWriter(str(run), purge_step=purge_step)

        self._attempt(open_writer)

    def write(self, name: str, value: float, step: int) -> None:
        """Add one value."""
        writer = self._writer
        if writer is not None:
            self._attempt(lambda: writer.add_scalar(name, value, step))

    def close(self) -> None:
        """Flush and close the file."""
        writer = self._writer
        if writer is not None:
            self._attempt(writer.close)
        self._writer, self._has_failed = None, True
        threading.excepthook = self._hook_before

    def _attempt(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # whatever TensorBoard, or what it imports, may raise
            self._give_up(error)

    def _give_up(self, error: BaseException) -> None:
        self._writer = None
        if self._has_failed:
            return
        self._has_failed = True
        say(f"no TensorBoard events from here on: {reason(error)}; metrics.jsonl has the same figures")

    def _thread_failed(self, failure: threading.ExceptHookArgs) -> None:
        """TensorBoard writes in a thread of its own, whose traceback says no more than its exception."""
        if type(failure.thread).__module__.startswith("tensorboard."):
            self._give_up(failure.exc_value or OSError("its thread has ended"))
        else:
            self._hook_before(failure)


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's ``metrics.jsonl``; none if there is no such file.

    A last line without its end, which a crash cut short, is left out, and so are blank lines.

    Raises:
        ConfigurationError: another line is damaged; the message names it.
    """
    path = run / "metrics.jsonl"
    try:
        *texts, torn = path.read_bytes().removeprefix(codecs.BOM_UTF8).split(b"\n")
    except FileNotFoundError:
        return []
    lines = []
    for number, text in enumerate(texts, 1):
        if not text.strip():
            continue
        try:
            line = json.loads(text)
            check_json(_Line, line, required=_Line.__annotations__)
        except (ValueError, RecursionError) as error:
            raise ConfigurationError(
                f"{path} is damaged in line {number}: {reason(error)}; correct or remove that line"
            ) from None
        lines.append(line)
    with contextlib.suppress(ValueError, RecursionError):  # an editor may have removed only the end of the line
        line = json.loads(torn)
        check_json(_Line, line, required=_Line.__annotations__)
        lines.append(line)
    if lines and lines[0]["epoch"] == 0:  # earlier versions counted from 0
        lines = [{**line, "epoch": line["epoch"] + 1} for line in lines]
    return lines


def draw_curve(run: Path) -> Path:
    """Plot loss and error rates over the steps into ``curve.png``; return its path.

    Raises:
        Exception: matplotlib fails, or the file cannot be written.
    """
    with without_backend():
        from matplotlib.figure import Figure  # slow to import, and only needed at the end of a run

    lines = read_metrics(run)
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    loss, error = figure.subplots(1, 2)
    for kind in ("train", "val"):
        rows = [line for line in lines if line["kind"] == kind]
        style = "o-" if kind == "val" else ".-" if len(rows) < 30 else "-"  # a line needs more points than one
        steps = [line["step"] for line in rows]
        loss.plot(steps, [line["loss"] for line in rows], style, label=kind, markersize=4)
        error.plot(steps, [line["top1_error"] for line in rows], style, label=f"{kind} top-1", markersize=4)
    loss.set(xlabel="step", ylabel="loss (nats)", ylim=(0, None))
    error.set(xlabel="step", ylabel="error (%)", ylim=(0, 100))
    for axes in (loss, error):
        axes.legend()
        axes.grid(alpha=0.3)
    return save_figure(figure, run / "curve.png")


@contextmanager
def without_backend() -> Iterator[None]:
    """Import matplotlib in the ``with`` block without the backend that a notebook has asked for."""
    asked = os.environ.get("MPLBACKEND")
    os.environ["MPLBACKEND"] = "agg"
    try:
        yield
    finally:
        if asked is None:
            del os.environ["MPLBACKEND"]
        else:
            os.environ["MPLBACKEND"] = asked


def save_figure(figure: Any, path: Path) -> Path:
    """Write a matplotlib figure, whole or not at all, as SVG if ``path`` ends so, else as PNG; return its path."""
    picture = io.BytesIO()
    figure.savefig(picture, format="svg" if path.suffix == ".svg" else "png", dpi=110)
    write_atomically(path, picture.getvalue())
    return path

"""The metrics of a run: ``metrics.jsonl``, TensorBoard events and a plot of the training curve."""

from __future__ import annotations

import json
import os
import sys
import time
import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fastalex.files import write_atomically
from fastalex.metrics import Metrics

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


class MetricsLog:
    """``metrics.jsonl``, with one JSON object per line, and the same values as TensorBoard events.

    Opening the log of a resumed run drops lines after ``step``, so that no step appears twice.

    Args:
        run: the run folder.
        step: the step from which the run starts or resumes.
    """

    def __init__(self, run: Path, step: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and only one worker writes a log

        self.path = run / "metrics.jsonl"
        kept = [line for line in read_metrics(run) if line["step"] <= step] if self.path.exists() else []
        write_atomically(self.path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = self.path.open("a", buffering=1)
        self._events = SummaryWriter(str(run), purge_step=step + 1 if step else None)

    def write(self, kind: Kind, epoch: int, step: int, metrics: Metrics, rate: Rate, **more: float) -> None:
        """Append one line; ``more`` are additional fields."""
        line = {
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
        self._file.write(json.dumps(line) + "\n")
        if kind == "val":
            os.fsync(self._file.fileno())  # must be on disk before the checkpoint that counts this epoch
        for name in ("loss", "top1_error", "top5_error", "images_per_second", *more):
            self._events.add_scalar(f"{kind}/{name}", line[name], step)

    def close(self) -> None:
        """Flush and close both files."""
        self._file.close()
        self._events.close()


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's ``metrics.jsonl``, up to a last line that a crash cut short."""
    lines = []
    for text in (run / "metrics.jsonl").read_text().splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


def draw_curve(run: Path) -> Path:
    """Plot loss and error rates over the steps into ``curve.png``; return its path."""
    from matplotlib.figure import Figure  # slow to import, and only needed at the end of a run

    lines = read_metrics(run)
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    loss, error = figure.subplots(1, 2)
    for kind, style in (("train", "-"), ("val", "o-")):
        rows = [line for line in lines if line["kind"] == kind]
        steps = [line["step"] for line in rows]
        loss.plot(steps, [line["loss"] for line in rows], style, label=kind, markersize=4)
        error.plot(steps, [line["top1_error"] for line in rows], style, label=f"{kind} top-1", markersize=4)
    loss.set(xlabel="step", ylabel="loss (nats)", ylim=(0, None))
    error.set(xlabel="step", ylabel="error (%)", ylim=(0, 100))
    for axes in (loss, error):
        axes.legend()
        axes.grid(alpha=0.3)
    path = run / "curve.png"
    figure.savefig(path, dpi=110)
    return path

"""TODO."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fastalex.metrics import Metrics

Kind = Literal["train", "val"]


@dataclass(frozen=True)
class Rate:
    """Images and seconds of a stretch of training, and how many of the seconds were spent waiting for data."""

    images: int
    seconds: float
    waiting: float

    @property
    def images_per_second(self) -> float:
        """Throughput, waiting included."""
        return self.images / self.seconds if self.seconds else 0.0

    @property
    def waiting_percent(self) -> float:
        """The share of the time in which the network had nothing to compute."""
        return 100 * self.waiting / self.seconds if self.seconds else 0.0

    def __add__(self, other: Rate) -> Rate:
        return Rate(self.images + other.images, self.seconds + other.seconds, self.waiting + other.waiting)


class MetricsLog:
    """``metrics.jsonl``, one object a line, and the same figures as TensorBoard events.

    Lines from beyond ``step`` are dropped when a run resumes there, so that no step is told twice.
    """

    def __init__(self, run: Path, step: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and only the reporting worker needs it

        self.path = run / "metrics.jsonl"
        kept = [line for line in read_metrics(run) if line["step"] <= step] if self.path.exists() else []
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
        temporary.replace(self.path)
        self._file = self.path.open("a", buffering=1)
        self._events = SummaryWriter(str(run), purge_step=step + 1 if step else None)

    def write(self, kind: Kind, epoch: int, step: int, metrics: Metrics, rate: Rate, **more: float) -> None:
        """Add one line."""
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
            os.fsync(self._file.fileno())  # a checkpoint that counts this epoch must not outlive its errors
        for name in ("loss", "top1_error", "top5_error", "images_per_second", *more):
            self._events.add_scalar(f"{kind}/{name}", line[name], step)

    def close(self) -> None:
        """Flush both."""
        self._file.close()
        self._events.close()


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's ``metrics.jsonl``; a last line that was cut short by a crash is left out."""
    lines = []
    for text in (run / "metrics.jsonl").read_text().splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


class Stopwatch:
    """Splits time into laps, and each lap into waiting for data and the rest."""

    def __init__(self) -> None:
        self.since = time.perf_counter()
        self.waiting = 0.0
        self.images = 0

    def lap(self) -> Rate:
        """The stretch since the last lap."""
        now = time.perf_counter()
        rate = Rate(self.images, now - self.since, self.waiting)
        self.since, self.waiting, self.images = now, 0.0, 0
        return rate


def draw_curve(run: Path) -> Path:
    """Draw the run's training curve (loss, and error rates in percent) into ``curve.png``."""
    from matplotlib.figure import Figure

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

"""What a person sees and what is written down while a run goes on.

On a terminal a bar per epoch, elsewhere plain lines; in the run folder ``metrics.jsonl``, TensorBoard events and a
picture of the training curve.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.measure import Measurement
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBar
from rich.table import Table

from fastalex.architecture import block_shapes
from fastalex.checkpoint import Progress
from fastalex.config import RunConfig
from fastalex.data import AnyDataset
from fastalex.launch import parse_devices
from fastalex.metrics import Metrics
from fastalex.partition import cut_before
from fastalex.recipe import Recipe

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


class SilentReporter:
    """Says nothing: what every worker but the first has."""

    def start(self, config: RunConfig, dataset: AnyDataset, progress: Progress) -> None:
        """The run begins, or goes on."""

    @contextmanager
    def epoch(self, progress: Progress, recipe: Recipe, steps: int) -> Iterator[None]:
        """Surrounds the training part of an epoch."""
        yield

    def trained(self, progress: Progress, metrics: Metrics, rate: Rate, learning_rate: float) -> None:
        """Some steps were made; the metrics and the rate are theirs."""

    def validated(self, progress: Progress, recipe: Recipe, metrics: Metrics, rate: Rate) -> None:
        """An epoch was validated."""

    def note(self, text: str) -> None:
        """Say one line, such as why something asked for is not done."""

    def end(self, progress: Progress, dataset: AnyDataset, peaks: Sequence[int]) -> None:
        """The last epoch is done; ``peaks`` are the bytes that each stage took at most."""

    def close(self) -> None:
        """Release the files."""


class Reporter(SilentReporter):
    """Shows the run on the console and writes it down in its folder.

    Args:
        run: the run folder.
        step: where the run goes on; later lines of an interrupted past are dropped.
    """

    def __init__(self, run: Path, step: int = 0) -> None:
        self.run = run
        self.console = Console(soft_wrap=True, highlight=False)
        self.log = MetricsLog(run, step)
        self.total = Rate(0, 0.0, 0.0)
        self._bar: ProgressBar | None = None

    def start(self, config: RunConfig, dataset: AnyDataset, progress: Progress) -> None:
        recipe, layout, devices = config.recipe, config.layout, parse_devices(config.devices)
        architecture = config.network.build_architecture()
        parameters = sum(shape.parameters for shape in block_shapes(architecture))
        parts = cut_before(architecture, config.split, layout.stages)
        names = [part[0] if len(part) == 1 else f"{part[0]} to {part[-1]}" for part in parts]
        # With several replicas or machines these are the first one's.
        places = [str(device) for device in devices]
        if len(set(places)) < len(places):  # workers on the CPU
            places = [f"{place} (worker {i})" for i, place in enumerate(places)]
        stages = [f"{name} on {places[i % layout.ranks % len(places)]}" for i, name in enumerate(names)]
        rows = {
            "data": f"{dataset.name}: {dataset.count('train')} training and {dataset.count('val')} validation images, "
            f"{len(dataset.classes)} classes",
            "network": f"{config.network.summary()}: {parameters:,} parameters",
            "recipe": f"{recipe.name}: {recipe.epochs} epochs, batches of {recipe.batch_size}, "
            + recipe.lr_summary(architecture.block_names[-1]),
            "stages": ", ".join(stages),
            "micro-batches": f"{config.micro_batches}" + (f", {config.schedule}" if layout.stages > 1 else ""),
            "precision": config.precision,
            "run folder": str(self.run),
        }
        if layout.replicas > 1:
            of = f", on {config.machines} machines" if config.machines > 1 else ""
            rows["replicas"] = f"{layout.replicas}, each of {recipe.batch_size // layout.replicas} images a step{of}"
        if progress.step:
            rows["resumed"] = f"at step {progress.step}, in epoch {progress.epoch + 1}"
        print_whole(self.console, name_value_table("training", rows))

    @contextmanager
    def epoch(self, progress: Progress, recipe: Recipe, steps: int) -> Iterator[None]:
        self._title = f"epoch {progress.epoch + 1}/{recipe.epochs}"
        self._steps, self._batch_size = steps, recipe.batch_size
        self._shown = self._done(progress)
        self._epoch_rate = Rate(0, 0.0, 0.0)
        if not self.console.is_terminal:
            yield
            return
        columns = (TextColumn(self._title), BarColumn(), TextColumn("{task.completed}/{task.total}"))
        with ProgressBar(
            *columns, TimeRemainingColumn(), TextColumn("{task.fields[text]}"), console=self.console
        ) as self._bar:
            self._bar.add_task("", total=steps, completed=self._shown, text="")
            yield

    def trained(self, progress: Progress, metrics: Metrics, rate: Rate, learning_rate: float) -> None:
        more = {"waiting_percent": round(rate.waiting_percent, 2), "learning_rate": learning_rate}
        self.log.write("train", progress.epoch, progress.step, metrics, rate, **more)
        self.total += rate
        self._epoch_rate += rate
        done = self._done(progress)
        speed = self._epoch_rate.images_per_second
        text = (
            f"loss {metrics.loss:.3f}  top-1 error {metrics.top1_error:.1f} %  top-5 error {metrics.top5_error:.1f} %  "
            f"{speed:.1f} images/s  waiting for data {self._epoch_rate.waiting_percent:.0f} %"
        )
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done, text=text)
        elif done - self._shown >= self._steps / 5 or done == self._steps:
            left = duration((self._steps - done) * self._batch_size / speed)
            self.console.print(f"{self._title}  step {done}/{self._steps}  {text}  {left} left in this epoch")
            self._shown = done

    def validated(self, progress: Progress, recipe: Recipe, metrics: Metrics, rate: Rate) -> None:
        self.log.write("val", progress.epoch, progress.step, metrics, rate)
        self.console.print(
            f"epoch {progress.epoch + 1}/{recipe.epochs}  validation: loss {metrics.loss:.3f}  "
            f"top-1 error {metrics.top1_error:.2f} %  top-5 error {metrics.top5_error:.2f} %  "
            f"{rate.images_per_second:.1f} images/s"
        )

    def note(self, text: str) -> None:
        self.console.print(text)

    def end(self, progress: Progress, dataset: AnyDataset, peaks: Sequence[int]) -> None:
        errors, total = progress.errors, self.total
        rows = {
            "epochs": str(progress.epoch),
            "last top-1 error": f"{errors[-1]:.2f} %",
            "best top-1 error": f"{min(errors):.2f} % (epoch {errors.index(min(errors)) + 1})",
            "time": f"{duration(progress.seconds)} training, {duration(total.seconds)} of it since the start or resume",
            "speed": f"{total.images_per_second:.1f} images/s in training",
            "waiting for data": f"{duration(total.waiting)} ({total.waiting_percent:.1f} %)",
            "computing": duration(total.seconds - total.waiting),
            "peak memory": ", ".join(f"{peak / 1e9:.2f} GB" for peak in peaks) + (" by stage" if peaks[1:] else ""),
            "weights": f"{self.run / 'best.safetensors'}, {self.run / 'last.safetensors'}",
            "curve": str(draw_curve(self.run)),
        }
        if progress.skipped:
            rows["skipped"] = f"{progress.skipped} steps whose loss or gradients were not finite"
        if any(progress.replaced.values()):
            counts = ", ".join(f"{len(samples)} of {split}" for split, samples in progress.replaced.items())
            rows["damaged images"] = f"{counts}: others of their class took their place"
        print_whole(self.console, name_value_table("results", rows))
        self.console.print(
            f"trained and evaluated: top-1 error {errors[-1]:.2f} % on {dataset.count('val')} validation images"
        )

    def close(self) -> None:
        self.log.close()

    def _done(self, progress: Progress) -> int:
        return progress.samples // self._batch_size


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

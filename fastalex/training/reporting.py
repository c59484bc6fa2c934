"""What a person sees and what is written down while a run goes on.

On a terminal a bar per epoch, elsewhere plain lines; in the run folder ``metrics.jsonl``, TensorBoard events and a
picture of the training curve.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBar

from fastalex.console import duration, name_value_table, print_whole
from fastalex.datasets import AnyDataset
from fastalex.metrics import Metrics
from fastalex.network.architecture import block_shapes
from fastalex.parallel.devices import parse_devices
from fastalex.parallel.partition import parse_split
from fastalex.recipes.schedule import Recipe
from fastalex.training.config import RunConfig
from fastalex.training.metrics_log import MetricsLog, Rate, draw_curve
from fastalex.training.state import TrainingState


class SilentReporter:
    """Says nothing: what every worker but the first has."""

    def start(self, config: RunConfig, dataset: AnyDataset, progress: TrainingState) -> None:
        """The run begins, or goes on."""

    @contextmanager
    def epoch(self, progress: TrainingState, recipe: Recipe, steps: int) -> Iterator[None]:
        """Surrounds the training part of an epoch."""
        yield

    def trained(self, progress: TrainingState, metrics: Metrics, rate: Rate, learning_rate: float) -> None:
        """Some steps were made; the metrics and the rate are theirs."""

    def validated(self, progress: TrainingState, recipe: Recipe, metrics: Metrics, rate: Rate) -> None:
        """An epoch was validated."""

    def note(self, text: str) -> None:
        """Say one line, such as why something asked for is not done."""

    def end(self, progress: TrainingState, dataset: AnyDataset, peaks: Sequence[int]) -> None:
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

    def start(self, config: RunConfig, dataset: AnyDataset, progress: TrainingState) -> None:
        recipe, layout, devices = config.recipe, config.layout, parse_devices(config.devices)
        architecture = config.network.build_architecture()
        parameters = sum(shape.parameters for shape in block_shapes(architecture))
        parts = parse_split(architecture, config.split, layout.stages)
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
    def epoch(self, progress: TrainingState, recipe: Recipe, steps: int) -> Iterator[None]:
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

    def trained(self, progress: TrainingState, metrics: Metrics, rate: Rate, learning_rate: float) -> None:
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

    def validated(self, progress: TrainingState, recipe: Recipe, metrics: Metrics, rate: Rate) -> None:
        self.log.write("val", progress.epoch, progress.step, metrics, rate)
        self.console.print(
            f"epoch {progress.epoch + 1}/{recipe.epochs}  validation: loss {metrics.loss:.3f}  "
            f"top-1 error {metrics.top1_error:.2f} %  top-5 error {metrics.top5_error:.2f} %  "
            f"{rate.images_per_second:.1f} images/s"
        )

    def note(self, text: str) -> None:
        self.console.print(text)

    def end(self, progress: TrainingState, dataset: AnyDataset, peaks: Sequence[int]) -> None:
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

    def _done(self, progress: TrainingState) -> int:
        return progress.samples // self._batch_size

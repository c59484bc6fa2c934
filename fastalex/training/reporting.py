"""What a run prints, and the log that it writes.

On a terminal, a bar shows the current epoch. Elsewhere an epoch that takes minutes prints a line now and then. Every
epoch ends with one line. All that is printed and drawn is decoration: if it fails, one line on stderr says so, and the
run goes on.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.live import Live
from rich.text import Text

from dataloading.process import command
from fastalex.console import console, duration
from fastalex.datasets import AnyDataset
from fastalex.metrics import Metrics, chance, did_not_learn
from fastalex.network.architecture import block_shapes
from fastalex.network.precision import describe_precision
from fastalex.network.weights import load_first_layer
from fastalex.optional_packages import is_installed, missing
from fastalex.options.training import resume_command
from fastalex.parallel.layout import ParallelPlan
from fastalex.pictures import kernel_picture, write_png
from fastalex.recipes.edits import last_of_each
from fastalex.recipes.schedule import epochs_in_words
from fastalex.training.config import RunConfig
from fastalex.training.counters import Report
from fastalex.training.metrics_log import MetricsLog, Rate, draw_curve, reason, say
from fastalex.training.state import TrainingState

SECONDS_BETWEEN_LINES = 60.0
"""Without a terminal, an epoch prints a line at most this often."""

_SHORTEST_BAR, _LONGEST_BAR = 8, 40


class SilentReporter:
    """Prints and writes nothing. All workers but the first have this one."""

    def start(self, state: TrainingState) -> None:
        """The run starts or resumes."""

    @contextmanager
    def epoch(self, state: TrainingState) -> Iterator[None]:
        """The ``with`` block is the training part of an epoch."""
        yield

    def trained(self, report: Report) -> None:
        """A stretch of training steps was made."""

    def validated(self, state: TrainingState, metrics: Metrics, rate: Rate) -> None:
        """An epoch was validated. ``state.errors`` includes it."""

    def note(self, text: str) -> None:
        """Print one line."""

    def end(self, state: TrainingState, peaks: Sequence[int]) -> None:
        """The last epoch has ended. ``peaks`` is the peak memory of every worker in bytes."""

    def close(self) -> None:
        """Close the log."""


class Reporter(SilentReporter):
    """Prints a run's progress and results, and writes its log. The log is opened by :meth:`start`.

    Args:
        is_brief: print the progress of long epochs and notes only.
    """

    def __init__(self, config: RunConfig, dataset: AnyDataset, *, is_brief: bool = False) -> None:
        self.config, self.recipe, self.dataset, self.is_brief = config, config.recipe, dataset, is_brief
        self.console = console()
        self.chance = chance(len(dataset.classes))
        self._steps_per_epoch = dataset.count("train") // self.recipe.batch_size
        self._log: MetricsLog | None = None
        self._bar: Live | None = None
        self._total = self._epoch = Rate()
        self._summed_loss, self._summed_images = 0.0, 0
        self._last_line = self._started = 0.0
        self._failed: set[str] = set()

    def start(self, state: TrainingState) -> None:
        """Open the log and print what is trained on what."""
        config, recipe, dataset = self.config, self.recipe, self.dataset
        self._started = time.monotonic()
        self._log = MetricsLog(config.folder, state.step)
        architecture = config.network.build_architecture()
        parameters = sum(shape.parameters for shape in block_shapes(architecture))
        rows = {
            "data": f"{dataset.name}: {dataset.count('train')} training and {dataset.count('val')} validation images, "
            f"{len(dataset.classes)} classes",
            "network": f"{config.network.summary()}: {parameters:,} parameters",
            "recipe": f"{recipe.name}: {epochs_in_words(recipe.epochs)}, batches of {recipe.batch_size}, "
            + recipe.lr_summary(architecture.block_names[-1]),
            **({"edits": ", ".join(last_of_each(config.edits))} if config.edits else {}),
            "devices": describe_plan(config.parallel, recipe.batch_size),
            "precision": describe_precision(config.precision, config.parallel.devices[0]),
            "run folder": str(config.folder),
        }
        if state.step:
            rows["resumed"] = f"at step {state.step}, {self._place(state)}"
        self._print_rows(rows)
        if self._log.validated_epochs < state.epoch:
            self._print(
                f"note: {self._log.path} has the validation of {self._log.validated_epochs} of {state.epoch} finished "
                "epochs; the run goes on, and the curve will have a gap"
            )

    @contextmanager
    def epoch(self, state: TrainingState) -> Iterator[None]:
        """On a terminal, show a bar inside the ``with`` block."""
        self._epoch = Rate()
        self._summed_loss, self._summed_images = 0.0, 0
        self._last_line = time.monotonic()
        if not self.console.is_terminal:
            yield
            return
        self._attempt("the progress bar", lambda: self._open_bar(state))
        try:
            yield
        finally:
            self._attempt("the progress bar", self._close_bar)

    def trained(self, report: Report) -> None:
        """Log a stretch of training steps and show it."""
        state, metrics, rate = report.state, report.metrics, report.rate
        assert self._log is not None
        more = {"waiting_percent": round(rate.waiting_percent, 2), "learning_rate": report.learning_rate}
        self._log.write("train", state.epoch + 1, state.step, metrics, rate, **more)
        self._total += rate
        self._epoch += rate
        self._summed_loss += metrics.loss * metrics.images
        self._summed_images += metrics.images

        # What matters most comes first, because a narrow bar leaves out the rest.
        done = self._steps_done(state)
        images_left = (self._steps_per_epoch - done) * self.recipe.batch_size
        seconds_left = images_left * self._epoch.seconds / max(1, self._epoch.images)
        parts = [f"loss {metrics.loss:.3f}", f"error {metrics.top1_error:.1f} %", f"{duration(seconds_left)} left"]
        extra = [_speed(self._epoch), f"waiting for data {self._epoch.waiting_percent:.0f} %"]
        if self._bar is not None:
            bar, line = self._bar, Text(self._bar_line(state, parts, extra))
            self._attempt("the progress bar", lambda: bar.update(line, refresh=True))
        elif done < self._steps_per_epoch and time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._print("  ".join([self._title(state), *parts, *extra]))
            self._last_line = time.monotonic()

    def validated(self, state: TrainingState, metrics: Metrics, rate: Rate) -> None:
        """Log a validation and print the epoch's line."""
        assert self._log is not None
        self._log.write("val", state.epoch + 1, state.step, metrics, rate)
        parts = [f"epoch {state.epoch + 1}/{self.recipe.epochs}"]
        if self._summed_images:  # a run that resumes before a validation has made no step
            parts.append(f"loss {self._summed_loss / self._summed_images:.3f}")
        top5 = f", top-5 {metrics.top5_error:.2f} %" if len(self.dataset.classes) > 10 else ""
        parts.append(f"val top-1 error {metrics.top1_error:.2f} %{top5}")
        parts.append(f"best {min(state.errors):.2f} % (chance {self.chance:.2f} %)")
        if self._epoch.images:
            parts.append(_speed(self._epoch))
        parts.append(duration(self._epoch.seconds + rate.seconds))
        if not self.is_brief:
            self._print("  ".join(parts))

    def note(self, text: str) -> None:
        """Print one line."""
        self._print(text)

    def end(self, state: TrainingState, peaks: Sequence[int]) -> None:
        """Print the results, and the commands that come next. Then draw the curve and the first layer's kernels."""
        run, errors, total = self.config.folder, state.errors, self._total
        best, has_matplotlib = min(errors), is_installed("matplotlib")
        picture = run / f"{self.config.network.build_architecture().block_names[0]}.png"
        seconds = f"{duration(state.seconds)} of training"
        if not total.images:
            seconds += ", all of it before resuming"
        elif round(state.seconds) != round(total.seconds):
            seconds += f", {duration(total.seconds)} of it since resuming"
        else:
            seconds += f", {duration(time.monotonic() - self._started)} with validation and saving"
        if total.images:
            seconds += f", {_speed(total)}, waiting for data {total.waiting_percent:.1f} %"
        rows = {
            "top-1 error": f"last {errors[-1]:.2f} %, best {best:.2f} % (epoch {errors.index(best) + 1}), "
            f"chance {self.chance:.2f} %",
            "time": seconds,
            "peak memory": ", ".join(f"{peak / 1e9:.2f} GB" for peak in peaks) + (" by worker" if peaks[1:] else ""),
            "files": ", ".join(str(run / name) for name in ("best.safetensors", "last.safetensors")),
            "curve": str(run / "curve.png") if has_matplotlib else f"none: {missing('matplotlib', 'report')}",
            "kernels": str(picture),
        }
        if state.skipped:
            rows["skipped"] = f"{state.skipped} steps with a non-finite loss or gradient"
        if any(state.replaced.values()):
            counts = ", ".join(f"{len(samples)} of {split}" for split, samples in state.replaced.items())
            rows["damaged images"] = f"{counts}: replaced by others of their class"
        rows["evaluate"] = command("fastalex.evaluate", run)
        rows["predict"] = command("fastalex.predict", run, "IMAGES")
        rows["train longer"] = resume_command(run, epochs=state.epoch + 5)
        self._print_rows(rows)
        if not self.is_brief:
            images = self.dataset.count("val")
            if did_not_learn(best, len(self.dataset.classes), images):
                self._print(
                    "note: no error is clearly below that of guessing; if more epochs do not help, try another "
                    "learning rate, or scaled initial weights if the network is narrow"
                )
            better = f"; the best epoch, which evaluate uses, has {best:.2f} %" if best < errors[-1] else ""
            self._print(f"trained and evaluated: top-1 error {errors[-1]:.2f} % on {images} validation images{better}")
        if has_matplotlib:
            self._attempt("the curve", lambda: draw_curve(run))
        self._attempt("the picture of the kernels", lambda: _draw_kernels(run / "last.safetensors", picture))

    def close(self) -> None:
        """Close the log."""
        if self._log is not None:
            self._log.close()

    def _attempt(self, what: str, action: Callable[[], object]) -> None:
        """Do what must not end a run. If it fails, one line says so, and the thing is left out from then on."""
        if what in self._failed:
            return
        try:
            action()
        except (Exception, SystemExit) as error:
            self._failed.add(what)
            # rich raises SystemExit(1) when nobody reads its output any more.
            cause = error.__context__ if isinstance(error, SystemExit) and error.__context__ else error
            say(f"{what} is left out from here on: {reason(cause)}; the run goes on")

    def _open_bar(self, state: TrainingState) -> None:
        line = Text(self._bar_line(state, []))
        bar = Live(line, console=self.console, auto_refresh=False, transient=True)
        bar.start(refresh=True)
        self._bar = bar

    def _close_bar(self) -> None:
        bar, self._bar = self._bar, None
        if bar is not None:
            bar.stop()

    def _print(self, line: str) -> None:
        if "output" in self._failed:
            return
        encoding = self.console.encoding
        line = line.encode(encoding, "backslashreplace").decode(encoding)
        self._attempt("output", lambda: self.console.print(line))
        if "output" in self._failed:
            with contextlib.suppress(OSError, ValueError):  # at exit Python would try to write what is still buffered
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self.console.file.fileno())
                os.close(nowhere)

    def _print_rows(self, rows: Mapping[str, str]) -> None:
        """Print names and values in two columns."""
        if self.is_brief:
            return
        width = max(map(len, rows))
        for name, value in rows.items():
            self._print(f"{name:<{width}}  {value}")

    def _title(self, state: TrainingState) -> str:
        run = f"{self.config.folder.parent.name}/{self.config.folder.name}  " if self.is_brief else ""
        epoch = f"epoch {state.epoch + 1}/{self.recipe.epochs}"
        return f"{run}{epoch}  step {self._steps_done(state)}/{self._steps_per_epoch}"

    def _place(self, state: TrainingState) -> str:
        if self._steps_done(state) == self._steps_per_epoch:
            return f"after the last step of epoch {state.epoch + 1}, which is validated now"
        return f"in epoch {state.epoch + 1}"

    def _steps_done(self, state: TrainingState) -> int:
        return state.samples // self.recipe.batch_size

    def _bar_line(self, state: TrainingState, parts: Sequence[str], extra: Sequence[str] = ()) -> str:
        share = self._steps_done(state) / self._steps_per_epoch
        symbols = "#-" if self.console.options.ascii_only else "━─"
        return bar_line(self.console.width - 1, self._title(state), share, parts, extra, symbols)


def _draw_kernels(weights: Path, picture: Path) -> None:
    """Draw the first layer's kernels as they were saved: this worker may not have had that layer."""
    layer = load_first_layer(weights)
    write_png(kernel_picture(layer.weights, layer.towers), picture)


def bar_line(
    width: int, title: str, share: float, parts: Sequence[str], extra: Sequence[str] = (), symbols: str = "━─"
) -> str:
    """One line of at most ``width`` columns: a title, a bar and text.

    Args:
        share: how much of the bar is full, 0 to 1.
        parts: text that always stays; the bar gets shorter first.
        extra: text that is left out, from the last one on, where there is no room for it.
        symbols: of the full and the empty part of the bar.
    """
    shown = list(parts)
    for text in extra:
        if len("  ".join([title, "-" * _SHORTEST_BAR, *shown, text])) > width:
            break
        shown.append(text)
    room = width - len("  ".join([title, "", *shown]))
    length = max(_SHORTEST_BAR, min(_LONGEST_BAR, room))
    full = round(share * length)
    bar = symbols[0] * full + symbols[1] * (length - full)
    return "  ".join([title, bar, *shown])[:width]


def steps_between_reports(steps_per_epoch: int) -> int:
    """Some 20 reports an epoch, and in long epochs one every 50 steps."""
    return min(50, max(1, steps_per_epoch // 20))


def describe_plan(plan: ParallelPlan, batch_size: int) -> str:
    """How the devices share the work, in one line."""
    layout = plan.layout
    parts = []
    if layout.replicas > 1:
        machines = f" on {plan.machines} machines" if plan.machines > 1 else ""
        parts.append(f"{layout.replicas} replicas{machines}, {plan.rows(batch_size)} images per step each")
    if layout.stages > 1:
        shared = len(set(plan.devices)) < len(plan.devices)  # several workers on the CPU
        stages = []
        for index, names in enumerate(plan.split):
            blocks = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"
            worker = f" (worker {index % layout.ranks})" if shared else ""
            stages.append(f"{blocks} on {plan.device_of(index)}{worker}")
        parts += [f"{layout.stages} stages: {', '.join(stages)}", plan.schedule]
    else:
        parts.append(", ".join(map(str, plan.devices)))
    if plan.micro_batches > 1:
        parts.append(f"{plan.micro_batches} micro-batches of {plan.rows(batch_size) // plan.micro_batches} images")
    return "; ".join(parts)


def _speed(rate: Rate) -> str:
    return f"{rate.images_per_second:,.{0 if rate.images_per_second >= 10 else 1}f} images/s"

"""One training step (forward, loss, backward, update), ours against plain PyTorch: python bench/train_step.py

Every implementation runs in its own process, with the same weights, images and labels. One whose loss or gradients
differ from plain fp32 PyTorch gets no time. (Compiled ones are checked before compilation, and then by their loss
alone, to avoid a second compilation.) The processes take turns, so that a drift in the machine's speed affects all of
them; every turn ends with one synchronisation. On a CPU they are prepared one after the other. Variants of PyTorch:

- eager NCHW and eager channels_last in fp32, channels_last with autocast to bf16
- torch.compile in its default mode, and with max-autotune (CUDA graphs), channels_last, autocast to bf16 on a GPU
- on a CPU, `banded`: local response normalisation with a product by a banded matrix instead of F.local_response_norm

each with its fused SGD. Variants called `evaluation` compute logits only.

`owt` is torchvision's AlexNet. A variant is skipped, with the reason in the record, if

- it computes in bf16 and the device's matrix product is slower in bf16 than in fp32
- it is not ready within `--ready` seconds (compilation)

`--profile VARIANT` writes a table of time by kernel, and a trace for chrome://tracing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import statistics
import threading
import time
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import harness
import rich.console
import rich.table
import roofline
import torch
from harness import CUDA, DEVICE
from training_step import step_variants
from training_step.step_variants import Step, Variant, variants

from fastalex.network.variation import build_architecture


@dataclass(frozen=True)
class Task:
    """The step that one process times."""

    variant: Variant
    architecture: str
    batch: int
    steps: int
    threads: int


@dataclass
class Row:
    """The result of one variant; times in milliseconds per step."""

    architecture: str
    batch: int
    variant: str
    ours: bool
    precision: str
    skipped: str | None = None
    wrong: str | None = None
    ready_seconds: float | None = None
    ms_p20: float | None = None
    ms_p50: float | None = None
    ms_p80: float | None = None
    images_per_second: float | None = None
    peak_mib: float | None = None
    limit_ms: float | None = None
    fraction_of_roofline: float | None = None
    turns: int = 0
    note: str | None = None


class Runner:
    """A process in which one variant is ready to be timed."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.times: list[float] = []
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self.process = context.Process(target=serve, args=(other, task), daemon=True)
        self.process.start()
        other.close()

    def ask(self, question: str, seconds: float) -> Any:
        """Send a question and return the answer; raises a RuntimeError with the reason in one line if there is none."""
        self.tell(question)
        return self.answer(seconds)

    def tell(self, question: str) -> None:
        """Send a question without waiting for the answer."""
        # The process may have ended; `answer` reports that.
        with contextlib.suppress(OSError):
            self.connection.send(question)

    def answer(self, seconds: float) -> Any:
        """The answer to the last question; raises like `ask`."""
        try:
            if not self.connection.poll(seconds):
                raise RuntimeError(f"not ready after {seconds:.0f} s")
            answer = self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            raise RuntimeError(f"the process ended with exit code {self.process.exitcode}") from None
        if isinstance(answer, Exception):
            raise RuntimeError((str(answer).strip() or type(answer).__name__).splitlines()[0])
        return answer

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.join()


def serve(connection: Connection, task: Task) -> None:
    """Answer questions until the parent process ends this one."""
    threading.Thread(target=end_with_parent, daemon=True).start()
    torch.set_num_threads(task.threads)
    step: Step | None = None
    while True:
        try:
            question = connection.recv()
        except EOFError:
            return
        try:
            if question == "ready":
                step = Step(task.variant, task.architecture, task.batch)
                wrong, note = step.check(), step.warm_up()
                peak = step.peak_bytes()  # before check_warm, which also runs other code
                connection.send({"wrong": wrong or step.check_warm(), "note": note, "peak": peak})
            elif question == "turn":
                assert step is not None
                connection.send(step.time(task.steps))
            step_variants.release_memory()
        except Exception as error:
            connection.send(RuntimeError(f"{type(error).__name__}: {error}"))


def end_with_parent() -> None:
    """End this process when its parent ends; a compilation would otherwise run on for minutes."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def compare(
    name: str, batch: int, chosen: list[Variant], seconds: float, ready: float, console: rich.console.Console
) -> list[Row]:
    """The rows of all variants for one network and batch."""
    rows = {v.name: Row(name, batch, v.name, v.ours, v.precision) for v in chosen}
    steps = 20 if CUDA else 1
    runners = {v.name: Runner(Task(v, name, batch, steps, torch.get_num_threads())) for v in chosen}
    try:
        peaks = make_ready(runners, rows, ready, console)
        # Take turns until the time is up.
        turns, begin = 0, time.perf_counter()
        while runners and (turns < 5 or (turns < 25 and time.perf_counter() - begin < seconds)):
            for variant, runner in list(runners.items()):
                try:
                    runner.times.append(runner.ask("turn", ready))
                except RuntimeError as error:
                    rows[variant].skipped = str(error)
                    runners.pop(variant).close()
            turns += 1
        for variant, runner in runners.items():
            summarise(rows[variant], runner.times, peaks[variant])
    finally:
        for runner in runners.values():
            runner.close()
    return list(rows.values())


def make_ready(
    runners: dict[str, Runner], rows: dict[str, Row], seconds: float, console: rich.console.Console
) -> dict[str, int]:
    """Make all runners ready, remove those that fail or compute wrongly, and return their peak bytes.

    On a GPU they get ready at the same time, as its machine has many cores; on a CPU one after the other.

    Args:
        seconds: time limit.
    """
    peaks: dict[str, int] = {}
    started = time.perf_counter()
    if CUDA:
        for runner in runners.values():
            runner.tell("ready")
    for variant, runner in list(runners.items()):
        row = rows[variant]
        if not CUDA:
            started = time.perf_counter()
            runner.tell("ready")
        try:
            answer = runner.answer(max(0.0, seconds - (time.perf_counter() - started)))
        except RuntimeError as error:
            row.skipped = str(error)
            runners.pop(variant).close()
            continue
        row.wrong, row.note, peaks[variant] = answer["wrong"], answer["note"], answer["peak"]
        row.ready_seconds = round(time.perf_counter() - started, 1)
        console.print(
            f"  {row.architecture} {row.batch} {variant}: {row.wrong or 'ready'}, {row.ready_seconds} s", style="dim"
        )
        if row.wrong is not None:
            runners.pop(variant).close()
    return peaks


def summarise(row: Row, times: list[float], peak: int) -> None:
    """Fill in the speed and memory of a row."""
    deciles = statistics.quantiles(times, n=10, method="inclusive")
    row.turns = len(times)
    row.ms_p20, row.ms_p50, row.ms_p80 = (
        round(value, 3) for value in (deciles[1], statistics.median(times), deciles[7])
    )
    row.images_per_second = round(1e3 * row.batch / statistics.median(times), 1)
    row.peak_mib = round(peak / 2**20, 1)


def compare_with_roofline(rows: list[Row], ceilings: dict[str, roofline.Ceilings]) -> None:
    """Compare every time with the roofline of its precision."""
    for row in rows:
        if row.ms_p50 is not None and row.precision in ceilings and not row.variant.endswith("evaluation"):
            architecture = build_architecture(row.architecture)
            row.limit_ms = round(roofline.limit_ms(architecture, row.batch, ceilings[row.precision]), 3)
            row.fraction_of_roofline = round(row.limit_ms / row.ms_p50, 4)


def measured_ceilings() -> dict[str, roofline.Ceilings]:
    """The ceilings of the device, by precision."""
    if not CUDA:
        return {"fp32": roofline.measure(torch.float32), "bf16": roofline.measure(torch.bfloat16)}
    return {
        "fp32": roofline.measure(torch.float32),
        "tf32": roofline.measure(torch.float32, tf32=True),
        "bf16": roofline.measure(torch.bfloat16),
    }


def highest(first: roofline.Ceilings, second: roofline.Ceilings) -> roofline.Ceilings:
    """The higher of two measurements of each ceiling."""
    rate, bandwidth = max(first.gflop_per_s, second.gflop_per_s), max(first.gb_per_s, second.gb_per_s)
    return roofline.Ceilings(first.dtype, rate, bandwidth)


def table(rows: list[Row]) -> rich.table.Table:
    """One line per network, batch and variant."""
    result = rich.table.Table(title=f"One training step: {harness.device_name()}")
    for column in ("network", "variant"):
        result.add_column(column)
    for column in ("batch", "ms p20, p50, p80", "images/s", "of roofline", "peak MiB"):
        result.add_column(column, justify="right")
    for row in rows:
        if row.ms_p50 is None:
            cells = [row.wrong or row.skipped or "", "-", "-", "-"]
        else:
            times = f"{row.ms_p20:.2f} {row.ms_p50:.2f} {row.ms_p80:.2f}"
            share = "-" if row.fraction_of_roofline is None else f"{row.fraction_of_roofline:.0%}"
            cells = [times, f"{row.images_per_second:,.1f}", share, f"{row.peak_mib:,.0f}"]
        result.add_row(row.architecture, row.variant, str(row.batch), *cells, style="bold" if row.ours else None)
    return result


def against_the_best(rows: list[Row]) -> list[str]:
    """One line per network and batch: ours against the fastest variant of plain PyTorch."""
    lines = []
    for network, batch in dict.fromkeys((row.architecture, row.batch) for row in rows):
        here = [r for r in rows if (r.architecture, r.batch) == (network, batch) and r.ms_p50 is not None]
        evaluating = [row for row in here if row.variant.endswith("evaluation")]
        for timed, verb in (([row for row in here if row not in evaluating], "trains"), (evaluating, "evaluates")):
            ours = min((row for row in timed if row.ours), key=lambda row: row.ms_p50 or 0, default=None)
            plain = min((row for row in timed if not row.ours), key=lambda row: row.ms_p50 or 0, default=None)
            if ours and plain and ours.ms_p50 and plain.ms_p50:
                lines.append(
                    f"{network}, batch {batch}: {ours.variant} {verb} {ours.images_per_second:,.1f} images/s, "
                    f"{plain.ms_p50 / ours.ms_p50:.2f} times the fastest plain variant ({plain.variant}, "
                    f"{plain.images_per_second:,.1f})"
                )
    return lines


def profile(variant: Variant, name: str, batch: int, folder: Path, console: rich.console.Console) -> None:
    """Write a table of the time per kernel (or operator) of one variant, and a trace."""
    step = Step(variant, name, batch)
    step.warm_up()
    step.time(2)
    activities = [torch.profiler.ProfilerActivity.CPU] + ([torch.profiler.ProfilerActivity.CUDA] if CUDA else [])
    steps = 5 if CUDA else 1
    with torch.profiler.profile(activities=activities) as profiler:
        step.time(steps)
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / f"{name}-{variant.name}-{batch}".replace(" ", "-").replace(",", "")
    sort = "self_device_time_total" if CUDA else "self_cpu_time_total"
    text = profiler.key_averages().table(sort_by=sort, row_limit=40, max_name_column_width=80)
    stem.with_suffix(".txt").write_text(f"{harness.device_name()}, {steps} steps\n{text}\n")
    profiler.export_chrome_trace(str(stem.with_suffix(".trace.json.gz")))
    console.print(text)
    console.print(f"wrote {stem}.txt and {stem}.trace.json.gz")


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="One training step, ours against plain PyTorch.")
    parser.add_argument("--quick", action="store_true", help="a small batch, few turns, no compilation")
    parser.add_argument("--batches", type=int, nargs="+", help="batch sizes (128 256 1024 on a GPU, 64 on a CPU)")
    parser.add_argument("--architectures", nargs="+", default=["krizhevsky", "owt"], help="networks (krizhevsky owt)")
    parser.add_argument("--variants", nargs="+", help="variants to time, by parts of their names (all)")
    parser.add_argument("--seconds", type=float, default=15 if CUDA else 120, help="time per network and batch")
    parser.add_argument("--ready", type=float, default=90, help="time limit for a variant to be ready, and for a turn")
    parser.add_argument(
        "--profile", metavar="VARIANT", help="only profile this variant, on the first network and batch"
    )
    parser.add_argument("--output", type=Path, default=harness.RESULTS, help="folder of the records (bench/results)")
    parser.add_argument("--name", default="train_step", help="name of the record")
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    console = rich.console.Console()
    if not console.is_terminal:
        console.width = 150
    batches = options.batches or ([128, 256, 1024] if CUDA else [64])
    chosen = variants()
    if options.quick:
        batches, options.seconds = [min(batches[0], 128 if CUDA else 8)], 30
        chosen = [variant for variant in chosen if variant.compile is None]
    if options.profile:
        variant = next((variant for variant in chosen if variant.name == options.profile), None)
        if variant is None:
            names = ", ".join(variant.name for variant in chosen)
            raise SystemExit(f"error: --profile {options.profile!r} is no variant; choose from {names}")
        folder = options.output / harness.slug(harness.device_name()) / "profiles"
        profile(variant, options.architectures[0], batches[0], folder, console)
        return
    if options.variants:
        chosen = [variant for variant in chosen if any(part in variant.name for part in options.variants)]
    # Ceilings are measured before and after the turns, and the higher of each counts.
    before = measured_ceilings()
    rows = measure_all(options, chosen, batches, before, console)
    after = measured_ceilings()
    ceilings = {precision: highest(before[precision], after[precision]) for precision in before}
    compare_with_roofline(rows, ceilings)
    console.print(table(rows))
    for line in against_the_best(rows):
        console.print(line)
    settings = {
        "quick": options.quick,
        "threads": torch.get_num_threads(),
        "device": DEVICE,
        "seconds_per_network": options.seconds,
        "seconds_to_be_ready": options.ready,
        "steps_per_turn": 20 if CUDA else 1,
        "ceilings": {p: {"gflop_per_s": c.gflop_per_s, "gb_per_s": c.gb_per_s} for p, c in ceilings.items()},
    }
    settings = json.loads(json.dumps(settings), parse_float=lambda text: round(float(text), 2))
    harness.write_record(options.name, settings, [asdict(row) for row in rows], options.output)


def measure_all(
    options: argparse.Namespace,
    chosen: list[Variant],
    batches: list[int],
    ceilings: dict[str, roofline.Ceilings],
    console: rich.console.Console,
) -> list[Row]:
    """The rows of all networks, batches and variants; bf16 is skipped on a device where it is slow."""
    rows: list[Row] = []
    bf16, fp32 = ceilings["bf16"].gflop_per_s, ceilings["fp32"].gflop_per_s
    reason = f"the matrix product is slower in bf16 ({bf16:.0f} GFLOP/s) than in fp32 ({fp32:.0f})"
    skipped = [variant for variant in chosen if variant.precision == "bf16" and bf16 < fp32]
    timed = [variant for variant in chosen if variant not in skipped]
    for batch in batches:
        for name in options.architectures:
            rows += [Row(name, batch, v.name, v.ours, v.precision, skipped=reason) for v in skipped]
            # Not side by side: their networks would fill the memory.
            for training in (True, False):
                if group := [variant for variant in timed if variant.training is training]:
                    rows += compare(name, batch, group, options.seconds, options.ready, console)
    return rows


if __name__ == "__main__":
    main()

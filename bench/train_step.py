"""One whole training step (forward, loss, backward, update), ours against plain PyTorch: python bench/train_step.py

Every way of computing the step gets a process of its own, with weights, images and labels that are the same in all. A
way whose loss or gradients differ from plain fp32 PyTorch's gets no time. (Compiled ways are compared before they are
compiled, and then by their loss alone: another compilation would take as long as the first.) On a CPU the processes
are made ready one after the other. Then they take turns, so that a machine that becomes slower does so for all, and
every turn ends with one synchronisation. Ways of PyTorch:

- eager NCHW and eager channels_last in fp32, channels_last with autocast to bf16
- torch.compile in its default mode, and with max-autotune (CUDA graphs), channels_last, autocast to bf16 on a GPU

each with its fused SGD. ``owt`` is torchvision's AlexNet. A way is left out, and the record says so, where

- it computes in bf16 and the device's matrix product is slower in bf16 than in fp32
- it is not ready within ``--ready`` seconds (compilation)

``--profile WAY`` writes a table of where that way's time goes, by kernel, and a trace for chrome://tracing.
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
import step_ways
import torch
from harness import CUDA, DEVICE
from step_ways import Step, Way, ways

from fastalex.network.variation import build_architecture


@dataclass(frozen=True)
class Task:
    """What one process computes."""

    way: Way
    architecture: str
    batch: int
    steps: int
    threads: int


@dataclass
class Row:
    """One way's result; times in milliseconds per step."""

    architecture: str
    batch: int
    way: str
    ours: bool
    precision: str
    left_out: str | None = None
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
    """A process that holds one way ready."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.times: list[float] = []
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self.process = context.Process(target=serve, args=(other, task), daemon=True)
        self.process.start()
        other.close()

    def ask(self, question: str, seconds: float) -> Any:
        """The answer, or a RuntimeError that says in one line why there is none."""
        self.tell(question)
        return self.answer(seconds)

    def tell(self, question: str) -> None:
        """Ask, and go on."""
        # What has ended answers nothing.
        with contextlib.suppress(OSError):
            self.connection.send(question)

    def answer(self, seconds: float) -> Any:
        """What was answered to the last question, or a RuntimeError as of `ask`."""
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
    """Answer questions until the parent ends this process."""
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
                step = Step(task.way, task.architecture, task.batch)
                wrong, note = step.check(), step.warm_up()
                peak = step.peak_bytes()  # before what follows, which is no step of this way
                connection.send({"wrong": wrong or step.check_warm(), "note": note, "peak": peak})
            elif question == "turn":
                assert step is not None
                connection.send(step.time(task.steps))
            step_ways.give_back_memory()
        except Exception as error:
            connection.send(RuntimeError(f"{type(error).__name__}: {error}"))


def end_with_parent() -> None:
    """End this process as soon as its parent has ended: a compilation would go on for minutes."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def compare(
    name: str, batch: int, chosen: list[Way], seconds: float, ready: float, console: rich.console.Console
) -> list[Row]:
    """Rows of all ways for one network and batch."""
    rows = {way.name: Row(name, batch, way.name, way.ours, way.precision) for way in chosen}
    steps = 20 if CUDA else 1
    runners = {way.name: Runner(Task(way, name, batch, steps, torch.get_num_threads())) for way in chosen}
    peaks: dict[str, int] = {}
    try:
        started = time.perf_counter()
        if CUDA:
            # A CPU's cores would be shared; a GPU's machine has many, and nothing is timed yet.
            for runner in runners.values():
                runner.tell("ready")
        for way_name, runner in list(runners.items()):
            row = rows[way_name]
            if not CUDA:
                started = time.perf_counter()
                runner.tell("ready")
            try:
                answer = runner.answer(max(0.0, ready - (time.perf_counter() - started)))
            except RuntimeError as error:
                row.left_out = str(error)
                runners.pop(way_name).close()
                continue
            row.wrong, row.note, peaks[way_name] = answer["wrong"], answer["note"], answer["peak"]
            row.ready_seconds = round(time.perf_counter() - started, 1)
            console.print(f"  {name} {batch} {way_name}: {row.wrong or 'ready'}, {row.ready_seconds} s", style="dim")
            if row.wrong is not None:
                runners.pop(way_name).close()
        turns, begin = 0, time.perf_counter()
        while runners and (turns < 5 or (turns < 25 and time.perf_counter() - begin < seconds)):
            for way_name, runner in list(runners.items()):
                try:
                    runner.times.append(runner.ask("turn", ready))
                except RuntimeError as error:
                    rows[way_name].left_out = str(error)
                    runners.pop(way_name).close()
            turns += 1
        for way_name, runner in runners.items():
            summarise(rows[way_name], runner.times, peaks[way_name])
    finally:
        for runner in runners.values():
            runner.close()
    return list(rows.values())


def summarise(row: Row, times: list[float], peak: int) -> None:
    """Fill in speed and memory."""
    deciles = statistics.quantiles(times, n=10, method="inclusive")
    row.turns = len(times)
    row.ms_p20, row.ms_p50, row.ms_p80 = (
        round(value, 3) for value in (deciles[1], statistics.median(times), deciles[7])
    )
    row.images_per_second = round(1e3 * row.batch / statistics.median(times), 1)
    row.peak_mib = round(peak / 2**20, 1)


def judge(rows: list[Row], ceilings: dict[str, roofline.Ceilings]) -> None:
    """Compare every time with its precision's limit."""
    for row in rows:
        if row.ms_p50 is not None and row.precision in ceilings:
            architecture = build_architecture(row.architecture)
            row.limit_ms = round(roofline.limit_ms(architecture, row.batch, ceilings[row.precision]), 3)
            row.fraction_of_roofline = round(row.limit_ms / row.ms_p50, 4)


def measured_ceilings() -> dict[str, roofline.Ceilings]:
    """By precision."""
    if not CUDA:
        return {"fp32": roofline.measure(torch.float32), "bf16": roofline.measure(torch.bfloat16)}
    return {
        "fp32": roofline.measure(torch.float32),
        "tf32": roofline.measure(torch.float32, tf32=True),
        "bf16": roofline.measure(torch.bfloat16),
    }


def highest(first: roofline.Ceilings, second: roofline.Ceilings) -> roofline.Ceilings:
    """The higher of two measurements of each ceiling: one before the turns, one after."""
    rate, bandwidth = max(first.gflop_per_s, second.gflop_per_s), max(first.gb_per_s, second.gb_per_s)
    return roofline.Ceilings(first.dtype, rate, bandwidth)


def table(rows: list[Row]) -> rich.table.Table:
    result = rich.table.Table(title=f"One training step: {harness.device_name()}")
    for column in ("network", "way"):
        result.add_column(column)
    for column in ("batch", "ms p20, p50, p80", "images/s", "of roofline", "peak MiB"):
        result.add_column(column, justify="right")
    for row in rows:
        if row.ms_p50 is None:
            cells = [row.wrong or row.left_out or "", "-", "-", "-"]
        else:
            times = f"{row.ms_p20:.2f} {row.ms_p50:.2f} {row.ms_p80:.2f}"
            share = "-" if row.fraction_of_roofline is None else f"{row.fraction_of_roofline:.0%}"
            cells = [times, f"{row.images_per_second:,.1f}", share, f"{row.peak_mib:,.0f}"]
        result.add_row(row.architecture, row.way, str(row.batch), *cells, style="bold" if row.ours else None)
    return result


def against_the_best(rows: list[Row]) -> list[str]:
    """For each network and batch: ours against the fastest way of plain PyTorch."""
    lines = []
    for network, batch in dict.fromkeys((row.architecture, row.batch) for row in rows):
        timed = [r for r in rows if (r.architecture, r.batch) == (network, batch) and r.ms_p50 is not None]
        ours = min((row for row in timed if row.ours), key=lambda row: row.ms_p50 or 0, default=None)
        plain = min((row for row in timed if not row.ours), key=lambda row: row.ms_p50 or 0, default=None)
        if ours and plain and ours.ms_p50 and plain.ms_p50:
            lines.append(
                f"{network}, batch {batch}: {ours.way} makes {ours.images_per_second:,.1f} images/s, "
                f"{plain.ms_p50 / ours.ms_p50:.2f} times the best plain way's {plain.images_per_second:,.1f} "
                f"({plain.way})"
            )
    return lines


def profile(way: Way, name: str, batch: int, folder: Path, console: rich.console.Console) -> None:
    """Write where one way's time goes: a table by kernel (or operator), and a trace."""
    step = Step(way, name, batch)
    step.warm_up()
    step.time(2)
    activities = [torch.profiler.ProfilerActivity.CPU] + ([torch.profiler.ProfilerActivity.CUDA] if CUDA else [])
    steps = 5 if CUDA else 1
    with torch.profiler.profile(activities=activities) as profiler:
        step.time(steps)
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / f"{name}-{way.name}-{batch}".replace(" ", "-").replace(",", "")
    sort = "self_device_time_total" if CUDA else "self_cpu_time_total"
    text = profiler.key_averages().table(sort_by=sort, row_limit=40, max_name_column_width=80)
    stem.with_suffix(".txt").write_text(f"{harness.device_name()}, {steps} steps\n{text}\n")
    profiler.export_chrome_trace(str(stem.with_suffix(".trace.json.gz")))
    console.print(text)
    console.print(f"wrote {stem}.txt and {stem}.trace.json.gz")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="One whole training step, ours against plain PyTorch.")
    parser.add_argument("--quick", action="store_true", help="a small batch, few turns, no compilation")
    parser.add_argument("--batches", type=int, nargs="+", help="default: 128 256 1024 on a GPU, 64 elsewhere")
    parser.add_argument("--architectures", nargs="+", default=["krizhevsky", "owt"])
    parser.add_argument("--ways", nargs="+", help="parts of the names of the ways to time")
    parser.add_argument(
        "--seconds", type=float, default=15 if CUDA else 120, help="of turns, for each network and batch"
    )
    parser.add_argument(
        "--ready", type=float, default=90, help="seconds that a way may take to be ready, or for a turn"
    )
    parser.add_argument("--profile", metavar="WAY", help="only profile this way, on the first network and batch")
    parser.add_argument("--output", type=Path, default=harness.RESULTS, help="folder of the records (bench/results)")
    parser.add_argument("--name", default="train_step", help="of the record")
    return parser.parse_args()


def main() -> None:
    arguments = parsed()
    console = rich.console.Console()
    if not console.is_terminal:
        console.width = 150
    batches = arguments.batches or ([128, 256, 1024] if CUDA else [64])
    chosen = ways()
    if arguments.quick:
        batches, arguments.seconds = [min(batches[0], 128 if CUDA else 8)], 30
        chosen = [way for way in chosen if way.compile is None]
    if arguments.profile:
        way = next((way for way in chosen if way.name == arguments.profile), None)
        if way is None:
            raise SystemExit(f"no way {arguments.profile!r}; there are {', '.join(way.name for way in chosen)}")
        folder = arguments.output / harness.slug(harness.device_name()) / "profiles"
        profile(way, arguments.architectures[0], batches[0], folder, console)
        return
    if arguments.ways:
        chosen = [way for way in chosen if any(part in way.name for part in arguments.ways)]
    before = measured_ceilings()
    rows: list[Row] = []
    slow = before["bf16"].gflop_per_s < before["fp32"].gflop_per_s
    reason = (
        f"its matrix product reaches {before['bf16'].gflop_per_s:.0f} GFLOP/s in bf16, "
        f"{before['fp32'].gflop_per_s:.0f} in fp32"
    )
    for batch in batches:
        for name in arguments.architectures:
            left = [way for way in chosen if slow and way.precision == "bf16"]
            rows += [Row(name, batch, way.name, way.ours, way.precision, left_out=reason) for way in left]
            rest = [way for way in chosen if way not in left]
            rows += compare(name, batch, rest, arguments.seconds, arguments.ready, console)
    after = measured_ceilings()
    ceilings = {precision: highest(before[precision], after[precision]) for precision in before}
    judge(rows, ceilings)
    console.print(table(rows))
    for line in against_the_best(rows):
        console.print(line)
    settings = {
        "quick": arguments.quick,
        "threads": torch.get_num_threads(),
        "device": DEVICE,
        "seconds_per_network": arguments.seconds,
        "seconds_to_be_ready": arguments.ready,
        "steps_per_turn": 20 if CUDA else 1,
        "ceilings": {p: {"gflop_per_s": c.gflop_per_s, "gb_per_s": c.gb_per_s} for p, c in ceilings.items()},
    }
    settings = json.loads(json.dumps(settings), parse_float=lambda text: round(float(text), 2))
    harness.write_record(arguments.name, settings, [asdict(row) for row in rows], arguments.output)


if __name__ == "__main__":
    main()

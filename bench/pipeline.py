"""Training steps over stages and replicas: throughput, bubbles, cuts, and how well a simulation foretells them.

    python bench/pipeline.py                              # all parts, a record for each
    python bench/pipeline.py --parts one two four cuts    # one worker; two and one; four and one; every cut
    python bench/pipeline.py --parts bubble gradients     # balanced stages; weight gradients once a step
    python bench/pipeline.py --predict 'H100:2,8,64,512'  # from a committed record of the part "one" on such a device

On a CPU every worker has one thread, and the one process that they are compared with has two. Images are random and
stay in memory; a step is forward, backward and update. A machine's speed may change within minutes, so all ways of a
part are timed in turn, round after round, by the same workers. Images/s are those of the median round (of an even
number, of the faster one in the middle); ratios and bubbles are those of a round, and the median of all counts. The
simulation knows the costs of single blocks, measured by the same workers just before; the links' speeds and the number
of cores; and nothing of the steps that it foretells.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import harness
import matplotlib.pyplot as plt
import pipeline_workers
import torch
from pipeline_workers import Trial, Work
from rich.console import Console
from rich.table import Table

from fastalex.network.architecture import Architecture, ConvBlock, LinearBlock, MaxPool
from fastalex.network.variation import Variation, build_architecture
from fastalex.parallel.costs import BlockCost, Link
from fastalex.parallel.launch import run_workers
from fastalex.parallel.layout import Layout, ScheduleName
from fastalex.parallel.partition import Stages, all_cuts, choose, format_split, parse_split
from fastalex.parallel.simulate import Plan, Result, Span, bubble_fractions, orders, simulate

CORES = len(os.sched_getaffinity(0))
THREADS = 1 if harness.CUDA else CORES  # of one process that has the machine for itself
PIPELINE, REPLICAS = Layout(1, 2, 2), Layout(2, 1, 1)
COUNTS, BATCH_SIZE = (1, 2, 4, 8, 16), 128
Rounds = list[dict[str, Any]]
"""What was measured of one trial, round by round: seconds, spans, costs."""
COLORS = {"forward": "#9ecae1", "backward": "#3182bd", "input": "#756bb1", "weight": "#74c476"}
IMAGENET_IMAGES, EPOCHS = 1_281_167, 90


@dataclass
class Bench:
    """The options, and the rows of the part under way."""

    architecture: Architecture
    batch_size: int
    steps: int
    precision: str
    output: Path
    per_device: int
    rounds: int
    quick: bool = False
    counts: Sequence[int] = COUNTS
    rows: list[dict[str, Any]] = field(default_factory=list)

    def trial(
        self, layout: Layout, micro_batches: int, stages: Stages | None = None, schedule: ScheduleName | None = None
    ) -> Trial:
        """A way to compute steps of this batch size."""
        usual: ScheduleName = "interleaved" if layout.stages > layout.ranks else "1f1b"
        if usual == "1f1b" and micro_batches < layout.stages:
            usual = "gpipe"
        stages = stages or (self.architecture.block_names,)
        return Trial(layout, stages, micro_batches, schedule or usual, self.batch_size)

    def run_workers(
        self,
        workers: int,
        trials: Sequence[Trial] = (),
        sizes: Sequence[int] = (),
        layouts: Sequence[Layout] = (),
        threads: int = 1,
    ) -> dict[str, Any]:
        """What so many workers measured."""
        with tempfile.TemporaryDirectory() as folder:
            path, before = str(Path(folder) / "saved.pt"), torch.get_num_threads()
            shared = (self.batch_size, self.steps, self.rounds, threads, self.precision, path)
            work = Work(self.architecture, trials, sizes, layouts, *shared)
            devices = [torch.device("cuda", i) if harness.CUDA else torch.device("cpu") for i in range(workers)]
            run_workers(pipeline_workers.run, work, devices)
            torch.set_num_threads(before)
            return torch.load(path, weights_only=False)

    def time(self, workers: int, trials: Sequence[Trial]) -> list[Rounds]:
        """The rounds of each trial."""
        return [list(rounds) for rounds in zip(*self.run(workers, trials)["rounds"], strict=True)]

    def plan(self, trial: Trial, links: dict[Layout, tuple[Link, Link]]) -> Plan:
        """What the simulation is told about a trial."""
        layout = trial.layout
        alike = [pair for where, pair in links.items() if replace(where, stages=layout.stages) == layout]
        return Plan(
            trial.stages,
            layout.ranks,
            trial.batch_size // layout.replicas,
            trial.micro_batches,
            trial.schedule,
            layout.replicas,
            math.inf if harness.CUDA else CORES / trial.threads,
            *(alike[0] if alike else (Link(), Link())),
        )

    def add(
        self,
        provider: str,
        trial: Trial,
        rounds: Rounds,
        plan: Plan | None = None,
        beside: Rounds | None = None,
    ) -> Result | None:
        """A row.

        Args:
            plan: what the simulation is told, to be compared with.
            beside: of the way that the row's speed is compared with.

        Returns:
            What the simulation says of the median round.
        """
        layout = trial.layout
        typical = median_round(rounds)
        row: dict[str, Any] = {
            "op": "training step",
            "provider": provider,
            "replicas": layout.replicas,
            "stages": layout.stages,
            "split": format_split(trial.stages),
            "schedule": trial.schedule if layout.stages > 1 else "",
            "micro_batches": trial.micro_batches,
            "images_per_second": round(self.steps * trial.batch_size / typical["seconds"], 2),
            "rounds": [round(self.steps * trial.batch_size / one["seconds"], 2) for one in rounds],
        }
        if beside is not None:
            ratios = [there["seconds"] / here["seconds"] for here, there in zip(rounds, beside, strict=True)]
            row["of_one_process"] = round(statistics.median(ratios), 3)
        result = None
        if plan is not None:
            results = [simulate(plan, one["costs"], passes=trial.orders) for one in rounds]
            result = results[rounds.index(typical)]
            ratios = [
                simulated.seconds / (one["seconds"] / self.steps)
                for one, simulated in zip(rounds, results, strict=True)
            ]
            row["simulated_images_per_second"] = round(trial.batch_size / result.seconds, 2)
            row["measured_over_simulated"] = round(statistics.median(ratios), 3)
        if typical["spans"]:
            bubbles = [bubble_fractions(one["spans"], layout.workers) for one in rounds]
            row["bubble"] = [round(statistics.median(worker), 3) for worker in zip(*bubbles, strict=True)]
            if result is not None:
                row["simulated_bubble"] = [round(x, 3) for x in result.bubble]
        self.rows.append(row)
        return result

    def write(self, part: str, **settings: Any) -> Path:
        """The record of a part."""
        common = {
            "quick": self.quick,
            "batch_size": self.batch_size,
            "timed_steps": self.steps,
            "rounds": self.rounds,
            "precision": self.precision,
            "cores": CORES,
        }
        table = Table(title=f"pipeline, {part}: {harness.device_name()}")
        names = [name for name in dict.fromkeys(name for row in self.rows for name in row) if name != "op"]
        for name in names:
            table.add_column(name.replace("_", " "))
        table.caption = (
            "images/s of the median round, and of all; ratios: medians of those within rounds; bubble: idle share of a "
            "step, by worker; formula: (stages - 1) / (micro-batches + stages - 1)"
        )
        for row in self.rows:
            table.add_row(*(str(row.get(name, "")) for name in names))
        Console(width=200).print(table)
        name = (
            f"pipeline_{part}" if self.quick or self.batch_size == BATCH_SIZE else f"pipeline_{part}-{self.batch_size}"
        )
        path = harness.write_record(name, common | settings, self.rows, self.output)
        self.rows = []
        return path


def median_round(rounds: Rounds) -> dict[str, Any]:
    """The round that counts: of an even number the faster one in the middle."""
    return sorted(rounds, key=lambda one: one["seconds"])[(len(rounds) - 1) // 2]


def sizes(batch_size: int, counts: Sequence[int] = COUNTS) -> list[int]:
    return sorted({max(1, batch_size // count) for count in counts})


def cut_for(
    bench: Bench, found: dict[str, Any], layout: Layout, count: int, schedule: ScheduleName | None = None
) -> Trial:
    """A trial with the cut that --split auto chooses for this number of micro-batches."""
    names = bench.architecture.block_names
    numbers = range(layout.ranks, len(names) + 1) if schedule == "zero-bubble" else [layout.stages]
    cuts = [cut for number in numbers for cut in all_cuts(names, number)]
    trial = bench.trial(layout, count, cuts[0], schedule)
    costs = _costs(found, layout)
    plan, _ = choose(bench.plan(trial, found["links"]), costs, cuts, [count])
    passes = orders(plan, costs) if plan.schedule == "zero-bubble" else None
    return replace(trial, stages=plan.stages, layout=replace(layout, stages=len(plan.stages)), orders=passes)


def _costs(found: dict[str, Any], layout: Layout) -> Sequence[Sequence[BlockCost]]:
    return found["costs"][: layout.ranks]


def named(trial: Trial, workers: str) -> str:
    layout = trial.layout
    what = f"{layout.stages} stages" if layout.stages > 1 else ""
    shared = f"{layout.replicas} replicas" if layout.replicas > 1 else ""
    return f"{workers}, {' of '.join(filter(None, (shared, what)))}"


# --- parts ------------------------------------------------------------------------------------------------------------


def alone_trials(bench: Bench, counts: Sequence[int]) -> list[Trial]:
    """The baseline: one process with all cores."""
    return [replace(bench.trial(Layout(), count), threads=THREADS) for count in counts]


def compare(
    bench: Bench,
    trials: Sequence[tuple[str, Trial]],
    alone: Sequence[Trial],
    links: dict[Layout, tuple[Link, Link]] | None = None,
) -> tuple[list[Rounds], list[Result | None]]:
    """Rows of trials, by name, and of one process, with whose best they are compared.

    Args:
        links: of the trials' layouts; None simulates nothing.

    Returns:
        The trials' rounds, and what the simulation says.
    """
    # One process comes in the middle of each round: as the machine's speed changes, no way is far from it.
    half = len(trials) // 2
    every = [trial for _, trial in trials[:half]] + list(alone) + [trial for _, trial in trials[half:]]
    timed = bench.time(max(trial.layout.workers for trial in every), every)
    timed_alone, timed = timed[half : half + len(alone)], timed[:half] + timed[half + len(alone) :]
    best = min(timed_alone, key=lambda rounds: median_round(rounds)["seconds"])
    for trial, rounds in zip(alone, timed_alone, strict=True):
        plan = None if links is None else bench.plan(trial, links)
        bench.add(f"one process, {THREADS} threads", trial, rounds, plan, best)
    results = []
    for (name, trial), rounds in zip(trials, timed, strict=True):
        results.append(bench.add(name, trial, rounds, None if links is None else bench.plan(trial, links), best))
    return timed, results


def one(bench: Bench) -> None:
    """One process with all cores or one GPU at the batch that --predict is about, and what its blocks cost.

    On a GPU also its whole step in a CUDA graph, and both stages of a pipeline with and without graphs.
    """
    bench = replace(bench, batch_size=bench.per_device, rows=[])
    trials = [(f"one process, {THREADS} threads", trial) for trial in alone_trials(bench, [1, 2])]
    if harness.CUDA:
        trials.append(("one process, CUDA graph", replace(bench.trial(Layout(), 1), graphs=True)))
        cut = parse_split(bench.architecture, "conv3", 2)
        for count, graphs in itertools.product((1, 4), (False, True)):
            trial = replace(bench.trial(Layout(1, 1, 2), count, cut), graphs=graphs)
            trials.append(("two stages in one process" + ", CUDA graphs" * graphs, trial))
    for (name, trial), rounds in zip(trials, bench.time(1, [trial for _, trial in trials]), strict=True):
        bench.add(name, trial, rounds, None if trial.graphs else bench.plan(trial, {}))
    costs = bench.run(1, sizes=sizes(bench.batch_size, [1, 2]), threads=THREADS)["costs"]
    bench.write("one", costs=[cost.to_json() for cost in costs[0]])


def two(bench: Bench) -> None:
    """One process, two stages, two stages a worker, two replicas."""
    interleaved = Layout(1, 2, 4)
    found = bench.run(2, (), sizes(bench.batch_size, [1, *bench.counts]), [PIPELINE, interleaved, REPLICAS])
    trials = [cut_for(bench, found, PIPELINE, count) for count in bench.counts]
    trials += [cut_for(bench, found, PIPELINE, count, "eager-1f1b") for count in bench.counts if count in (4, 8)]
    trials += [cut_for(bench, found, interleaved, count) for count in bench.counts if count in (2, 4, 8)]
    trials += [cut_for(bench, found, PIPELINE, count, "zero-bubble") for count in bench.counts if count in (2, 4, 8)]
    trials.append(bench.trial(REPLICAS, 1))
    named_trials = [(named(trial, "two workers"), trial) for trial in trials]
    alone = alone_trials(bench, sorted({1, 2, *bench.counts}))
    timed, results = compare(bench, named_trials, alone, found["links"])
    typical = [median_round(rounds) for rounds in timed]
    best = min(range(len(trials) - 1), key=lambda index: typical[index]["seconds"])
    path = bench.write(
        "two",
        costs=[[cost.to_json() for cost in costs] for costs in found["costs"]],
        links=[[asdict(layout), *map(asdict, links)] for layout, links in found["links"].items()],
    )
    draw(path.with_suffix(".png"), typical[best]["spans"], results[best], trials[best])


def four(bench: Bench) -> None:
    """One process; four workers as four stages, two replicas of two stages and four replicas."""
    line, square, replicas = Layout(1, 4, 4), Layout(2, 2, 2), Layout(4, 1, 1)
    found = bench.run(4, (), sizes(bench.batch_size), [line, square, replicas])
    trials = [cut_for(bench, found, line, count) for count in bench.counts]
    trials += [cut_for(bench, found, square, count) for count in bench.counts if bench.batch_size % (2 * count) == 0]
    trials += [bench.trial(replicas, 1)]
    named_trials = [(named(trial, "four workers"), trial) for trial in trials]
    compare(bench, named_trials, alone_trials(bench, [1, 2]), found["links"])
    bench.write("four")


def cuts(bench: Bench) -> None:
    """What --split auto chooses against all cuts, for two workers."""
    count = 4
    found = bench.run(2, (), sizes(bench.batch_size, [1, count]), [PIPELINE, REPLICAS])
    chosen = cut_for(bench, found, PIPELINE, count)
    every = [replace(chosen, stages=cut) for cut in all_cuts(bench.architecture.block_names, 2)]
    trials = [("auto" if trial.stages == chosen.stages else "by hand", trial) for trial in every]
    replicas = bench.trial(REPLICAS, 1)
    trials.append((named(replicas, "two workers"), replicas))
    compare(bench, trials, alone_trials(bench, [1, 2]), found["links"])
    bench.write("cuts")


def bubble(bench: Bench) -> None:
    """Balanced stages: the measured bubble against (stages - 1) / (micro-batches + stages - 1)."""
    bench = replace(bench, architecture=balanced(), rows=[])
    names = bench.architecture.block_names
    halves = (names[: len(names) // 2], names[len(names) // 2 :])
    trials = [bench.trial(PIPELINE, count, halves) for count in COUNTS]
    trials += [bench.trial(PIPELINE, count, halves, "gpipe") for count in COUNTS[1:]]
    # What the last stage puts off would leave its passes shorter than the first one's.
    trials = [replace(trial, deferred=False) for trial in trials]
    trials.append(bench.trial(REPLICAS, 1))
    named_trials = [(named(trial, "balanced network, two workers"), trial) for trial in trials]
    timed, _ = compare(bench, named_trials, alone_trials(bench, [1]))
    for trial, row in zip(trials, bench.rows[1:], strict=True):
        if trial.layout == PIPELINE:
            row["formula"] = round(1 / (trial.micro_batches + 1), 3)
    path = bench.write("bubble")
    draw(path.with_suffix(".png"), median_round(timed[2])["spans"], None, trials[2])


def balanced() -> Architecture:
    """Ten blocks, of which eight cost the same and the outer two next to nothing."""
    middle = [ConvBlock(f"conv{number}", 192, 3, padding=1) for number in range(2, 10)]
    last = replace(middle[-1], steps=(*middle[-1].steps, MaxPool(14, 14)))
    first = ConvBlock("conv1", 192, 3, 16, steps=())
    end = LinearBlock("fc10", 10, activation=False, dropout="none")
    return Architecture("balanced", 224, (first, *middle[:-1], last, end))


def gradients(bench: Bench) -> None:
    """Fully connected weight gradients made once a step against once a micro-batch, on one device."""
    once = alone_trials(bench, COUNTS)
    trials = [replace(trial, deferred=deferred) for trial in once for deferred in (True, False)]
    for trial, rounds in zip(trials, bench.time(1, trials), strict=True):
        bench.add("once a step" if trial.deferred else "once a micro-batch", trial, rounds)
    bench.write("gradients")


PARTS: dict[str, Callable[[Bench], None]] = {part.__name__: part for part in (one, two, four, cuts, bubble, gradients)}


# --- picture and prediction -------------------------------------------------------------------------------------------


def draw(path: Path, measured: Sequence[Span], simulated: Result | None, trial: Trial) -> None:
    """One row per worker, time across, passes by kind and micro-batch."""
    panels = [("measured", measured)] + ([("simulated", simulated.spans)] if simulated else [])
    figure, axes = plt.subplots(len(panels), 1, figsize=(11, 1.2 + 1.5 * len(panels)), sharex=True, squeeze=False)
    for axis, (title, spans) in zip(axes[:, 0], panels, strict=True):
        zero = min(span.start for span in spans)
        for span in spans:
            kind, _, _, micro_batch, _ = span.key
            color = COLORS.get(kind, "#d9d9d9")
            width = span.end - span.start
            axis.barh(span.worker, width, left=span.start - zero, color=color, edgecolor="white", linewidth=0.5)
            if kind in COLORS:
                axis.text(
                    span.start - zero + width / 2, span.worker, str(micro_batch), ha="center", va="center", size=7
                )
        workers = sorted({span.worker for span in spans})
        shares = bubble_fractions(spans, len(workers))
        axis.set_yticks(workers, [f"worker {w}: bubble {100 * shares[w]:.0f} %" for w in workers], size=8)
        axis.invert_yaxis()
        axis.set_title(title, size=9, loc="left")
    axes[-1, 0].set_xlabel(
        "seconds; numbers: micro-batches; light blue: forward, blue: backward, violet: without weight gradients, "
        "green: these, grey: what is left, and update",
        size=8,
    )
    split = format_split(trial.stages)
    figure.suptitle(f"{trial.schedule}, later stages begin with {split}, {harness.device_name()}", size=10)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
    print(f"wrote {path}")


def predict(text: str, per_device: int, within: Link, across: Link, machine: int, results: Path) -> None:
    """Images/s and hours for 90 epochs on many of a device of which a record is committed.

    Args:
        within, across: the connections within machines of so many devices and between them.

    Raises:
        ValueError: not DEVICE:N,N,...; or no record of the device.
    """
    device, _, numbers = text.partition(":")
    if not device or not all(number.isdecimal() and int(number) for number in numbers.split(",")):
        raise ValueError(f"--predict is {text!r}; write a device and numbers of it, such as H100:2,8,64")
    folder = harness.slug(device)
    records = sorted(path for path in results.glob("*/pipeline_one.json") if folder in path.parent.name)
    if not records:
        raise ValueError(
            f"no record of {device} in {results} (*/pipeline_one.json), and nothing is predicted without one: run "
            "python bench/pipeline.py --parts one on such a device"
        )
    record = json.loads(records[0].read_text())
    settings = record["settings"]
    costs = [[BlockCost.from_json(cost) for cost in settings["costs"]]]
    names = tuple(cost.name for cost in costs[0])
    print(f"record: {records[0]}, {record['device']}, {record['date']}, {settings['precision']}")
    print(
        f"assumed: {per_device} images per device and step, from costs that were measured with up to "
        f"{settings['batch_size']}; replicas without stages, each on a device of its own; gradients reduced in a ring "
        f"after the backward pass, at {within.bytes_per_second / 1e9:g} GB/s within machines of {machine} and "
        f"{across.bytes_per_second / 1e9:g} GB/s between them, without latency; data, validation and checkpoints cost "
        "nothing"
    )
    table = Table(title=f"predicted for {IMAGENET_IMAGES:,} images and {EPOCHS} epochs")
    for name in ("devices", "batch", "images/s", "of ideal", "hours"):
        table.add_column(name, justify="right")
    alone = 0.0
    for count in (1, *map(int, numbers.split(","))):
        link = within if count <= machine else min(within, across, key=lambda link: link.bytes_per_second)
        plan = Plan((names,), 1, per_device, 1, "gpipe", count, math.inf, Link(), link)
        rate = count * per_device / simulate(plan, costs).seconds
        alone = alone or rate
        hours = EPOCHS * IMAGENET_IMAGES / rate / 3600
        table.add_row(
            f"{count}", f"{count * per_device}", f"{rate:,.0f}", f"{rate / alone / count:.0%}", f"{hours:,.1f}"
        )
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description="Time training over stages and replicas, and simulate it.")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to measure (all)")
    parser.add_argument("--batch-size", type=int, default=BATCH_SIZE, help="images per step of all workers (128)")
    parser.add_argument(
        "--micro-batches", type=int, nargs="+", default=COUNTS, help="how many, of parts two and four (1 2 4 8 16)"
    )
    parser.add_argument("--steps", type=int, default=4, help="timed steps of each way, after one to warm up (4)")
    parser.add_argument("--rounds", type=int, default=3, help="how often each way is timed; the median counts (3)")
    parser.add_argument("--width", type=float, default=1.0, help="of the network; narrow ones for a quick look (1)")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16" if harness.CUDA else "fp32")
    parser.add_argument("--output", type=Path, default=harness.RESULTS, help="folder of the records (bench/results)")
    parser.add_argument("--predict", metavar="DEVICE:N,...", help="predict N devices from a committed record")
    parser.add_argument(
        "--per-device", type=int, default=128, help="images per device and step, of part one and to predict for (128)"
    )
    parser.add_argument("--within", type=float, default=100, help="GB/s within a machine to predict for (100)")
    parser.add_argument("--network", type=float, default=50, help="GB/s between machines to predict for (50)")
    parser.add_argument("--machine", type=int, default=8, help="devices in a machine to predict for (8)")
    parser.add_argument("--quick", action="store_true", help="a narrow network and a small batch")
    options = parser.parse_args()
    if options.quick:
        options.width, options.batch_size, options.per_device = 0.25, 16, 16
        options.steps, options.rounds = 2, 1
    if options.predict:
        speeds = Link(0.0, options.within * 1e9), Link(0.0, options.network * 1e9)
        try:
            predict(options.predict, options.per_device, *speeds, options.machine, options.output)
        except ValueError as error:
            parser.error(str(error))
        return
    architecture = build_architecture("krizhevsky", 1000, Variation(width=options.width))
    for part in options.parts:
        wanted = {"one": 1, "four": 4, "gradients": 1}.get(part, 2)
        if harness.CUDA and torch.cuda.device_count() < wanted:
            print(f"{part}: left out, {wanted} GPUs are wanted and {torch.cuda.device_count()} are there")
            continue
        PARTS[part](
            Bench(
                architecture,
                options.batch_size,
                options.steps,
                options.precision,
                options.output,
                options.per_device,
                options.rounds,
                options.quick,
                options.micro_batches,
            )
        )


if __name__ == "__main__":
    main()

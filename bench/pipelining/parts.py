"""The parts of bench/pipeline.py: which trials each one compares."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from itertools import combinations, pairwise

import harness

from fastalex.network.architecture import Architecture, ConvBlock, LinearBlock, MaxPool
from fastalex.parallel.launch import cpu_threads
from fastalex.parallel.layout import Layout
from fastalex.parallel.partition import Split, parse_split
from fastalex.parallel.schedules import default_micro_batches
from pipelining.block_costs import slowest_stage
from pipelining.chart import draw
from pipelining.measurement import THREADS, Links, Measurement, describe, median_round
from pipelining.workers import Trial

PIPELINE, REPLICAS, INTERLEAVED = Layout(1, 2, 2), Layout(2, 1, 1), Layout(1, 2, 4)
COUNTS = (1, 2, 4, 8, 16)
"""Numbers of micro-batches in the parts that are about them."""


def one(bench: Measurement) -> None:
    """A single process with all cores or one GPU: its speed and the costs of its blocks, from which --predict starts.

    On a GPU also its step from a CUDA graph, and two stages with and without CUDA graphs.
    """
    bench = replace(bench, batch_size=bench.per_device, rows=[])
    trials = [(f"one process, {THREADS} threads", trial) for trial in bench.alone([1, 2])]
    if harness.CUDA:
        trials.append(("one process, CUDA graph", replace(bench.trial(Layout(), 1), graphs=True)))
        split = parse_split("conv3", bench.architecture.block_names, 2)
        for count, graphs in itertools.product((1, 4), (False, True)):
            trial = replace(bench.trial(Layout(1, 1, 2), count, "interleaved", split), graphs=graphs)
            trials.append(("two stages in one process" + ", CUDA graphs" * graphs, trial))
    for (name, trial), rounds in zip(trials, bench.time(1, [trial for _, trial in trials]), strict=True):
        bench.add(name, trial, rounds, None if trial.graphs else {})
    costs = bench.run(1, sizes=sizes(bench.batch_size, (1, 2)), threads=THREADS)["costs"]
    bench.write("one", costs=[cost.to_json() for cost in costs[0]])


def two(bench: Measurement) -> None:
    """A single process with 1 and 2 micro-batches; pipelines of two workers by schedule; two replicas.

    Two workers have the split and the schedule that training uses by default, among others.
    """
    trials: list[Trial] = []
    for schedule in bench.schedules:
        layout = INTERLEAVED if schedule == "interleaved" else PIPELINE
        trials += [bench.trial(layout, count, schedule) for count in bench.micro_batches]
    trials.append(bench.trial(REPLICAS, 1))
    links: Links = bench.run(2, layouts=[PIPELINE, INTERLEAVED, REPLICAS])["links"]
    timed, simulated = bench.compare([(describe(trial), trial) for trial in trials], bench.alone([1, 2]), links)
    typical = [median_round(rounds) for rounds in timed]
    best = min(range(len(trials) - 1), key=lambda index: typical[index]["seconds"])
    path = bench.write("two", links=[[asdict(layout), *map(asdict, pair)] for layout, pair in links.items()])
    draw(path.with_suffix(".png"), typical[best]["spans"], simulated[best], trials[best])


def default(bench: Measurement) -> None:
    """A single process, and two workers as training runs them by default, with its number of threads."""
    count = default_micro_batches(PIPELINE, "eager-1f1b", bench.batch_size, "cuda" if harness.CUDA else "cpu")
    threads = 1 if harness.CUDA else cpu_threads(2)
    trial = replace(bench.trial(PIPELINE, count, "eager-1f1b"), threads=threads)
    bench.compare([(f"{describe(trial)}, {threads} threads each", trial)], bench.alone([1, 2]))
    bench.write("default")


def four(bench: Measurement) -> None:
    """A single process; four workers as four stages, as two replicas of two stages, and as four replicas."""
    line, square, replicas = Layout(1, 4, 4), Layout(2, 2, 2), Layout(4, 1, 1)
    trials = [bench.trial(line, count) for count in bench.micro_batches]
    trials += [bench.trial(square, count) for count in bench.micro_batches if bench.batch_size % (2 * count) == 0]
    trials += [bench.trial(replicas, 1)]
    links: Links = bench.run(4, layouts=[line, square, replicas])["links"]
    bench.compare([(describe(trial), trial) for trial in trials], bench.alone([1, 2]), links)
    bench.write("four")


def cuts(bench: Measurement) -> None:
    """Every way to cut the network into two stages, and which one arithmetic and measured block times choose."""
    count = 4
    found = bench.run(2, (), sizes(bench.batch_size, (count,)), [PIPELINE, REPLICAS])
    by_arithmetic = bench.trial(PIPELINE, count)
    every = list(all_splits(bench.architecture.block_names, 2))
    images = bench.batch_size // count
    by_times = min(every, key=lambda split: slowest_stage(split, found["costs"][0], images, count))
    names = dict.fromkeys(every, "other") | {by_times: "measured block times"}
    names[by_arithmetic.plan.split] = (
        "arithmetic and measured block times" if by_times == by_arithmetic.plan.split else "arithmetic"
    )
    trials = [(names[split], bench.trial(PIPELINE, count, by_arithmetic.plan.schedule, split)) for split in every]
    replicas = bench.trial(REPLICAS, 1)
    bench.compare([*trials, (describe(replicas), replicas)], bench.alone([1, 2]), found["links"])
    bench.write("cuts")


def all_splits(block_names: Sequence[str], stages: int) -> Iterator[Split]:
    """Every way to cut the blocks into stages."""
    for ends in combinations(range(1, len(block_names)), stages - 1):
        yield tuple(tuple(block_names[a:b]) for a, b in pairwise((0, *ends, len(block_names))))


def bubble(bench: Measurement) -> None:
    """Balanced stages: the measured bubble against (stages - 1) / (micro-batches + stages - 1)."""
    bench = replace(bench, architecture=balanced(), rows=[])
    names = bench.architecture.block_names
    halves = (names[: len(names) // 2], names[len(names) // 2 :])
    trials = [bench.trial(PIPELINE, count, split=halves) for count in COUNTS]
    trials += [bench.trial(PIPELINE, count, "gpipe", halves) for count in COUNTS[1:]]
    # Deferred gradients would make the passes of the last stage shorter than those of the first.
    trials = [replace(trial, deferred=False) for trial in trials]
    trials.append(bench.trial(REPLICAS, 1))
    named_trials = [(f"balanced network, {describe(trial)}", trial) for trial in trials]
    timed, _ = bench.compare(named_trials, bench.alone([1]))
    for trial, row in zip(trials, bench.rows[1:], strict=True):
        if trial.plan.layout == PIPELINE:
            row["formula"] = round(1 / (trial.plan.micro_batches + 1), 3)
    path = bench.write("bubble")
    draw(path.with_suffix(".png"), median_round(timed[2])["spans"], None, trials[2])


def balanced() -> Architecture:
    """A network of ten blocks: eight with the same cost, between two that cost next to nothing."""
    middle = [ConvBlock(f"conv{number}", 192, 3, padding=1) for number in range(2, 10)]
    last = replace(middle[-1], steps=(*middle[-1].steps, MaxPool(14, 14)))
    first = ConvBlock("conv1", 192, 3, 16, steps=())
    end = LinearBlock("fc10", 10, activation=False, dropout="none")
    return Architecture("balanced", 224, (first, *middle[:-1], last, end))


def gradients(bench: Measurement) -> None:
    """Fully connected weight gradients once per step against once per micro-batch, on one device."""
    once = bench.alone(COUNTS)
    trials = [replace(trial, deferred=deferred) for trial in once for deferred in (True, False)]
    for trial, rounds in zip(trials, bench.time(1, trials), strict=True):
        bench.add("once per step" if trial.deferred else "once per micro-batch", trial, rounds)
    bench.write("gradients")


def sizes(batch_size: int, counts: Sequence[int]) -> list[int]:
    """The micro-batch sizes for these numbers of micro-batches."""
    return sorted({max(1, batch_size // count) for count in counts})


PARTS: dict[str, Callable[[Measurement], None]] = {
    part.__name__: part for part in (one, default, two, four, cuts, bubble, gradients)
}

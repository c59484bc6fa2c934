"""Discrete-event simulation of a training step, from the costs of blocks and links.

Each worker runs its passes in the order of the pipeline schedule. A pass starts when the worker is free and its input
has arrived. A tensor is sent when both ends are ready for it, as the transports do. Workers on one machine slow down
while more of them compute than there are cores.

Not modelled: kernel launches, the overhead of the schedule, the cores used by transports, and the overlap of gradient
reduction with the backward pass.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fastalex.parallel.layout import ScheduleName
from fastalex.parallel.schedules import defers_convolutions, rank_order
from pipelining.block_costs import INSTANT, BlockCost, Link, seconds_at

Kind = Literal["forward", "backward", "reduce", "finish"]

Key = tuple[Kind, int, int, int, int]
"""Identifies a span of work: kind, replica, stage, micro-batch, step."""

Pass = tuple[Kind, int, int]
"""Kind, stage, micro-batch."""


@dataclass(frozen=True)
class Scenario:
    """What is simulated.

    Args:
        split: block names of every stage of one replica, in order.
        ranks: workers of one replica; stage s belongs to rank s % ranks.
        batch_size: images per step of one replica.
        micro_batches: number of micro-batches per step of one replica.
        schedule: the pipeline schedule.
        replicas: number of replicas.
        cores: how many workers can compute at full speed at the same time; infinite if each has its own device.
        link: between the stages.
        reduce_link: between the replicas; a gradient of n bytes crosses it 2 (replicas - 1) / replicas times.
    """

    split: tuple[tuple[str, ...], ...]
    ranks: int
    batch_size: int
    micro_batches: int
    schedule: ScheduleName
    replicas: int = 1
    cores: float = math.inf
    link: Link = INSTANT
    reduce_link: Link = INSTANT

    @property
    def images(self) -> float:
        """Images per micro-batch."""
        return self.batch_size / self.micro_batches

    @property
    def simulated_replicas(self) -> int:
        """Replicas with their own devices all do the same at the same time, so one is simulated."""
        return 1 if math.isinf(self.cores) else self.replicas

    def defers(self, stage: int) -> bool:
        """Whether a stage defers its convolution weight gradients to the end of the step."""
        return defers_convolutions(stage, self.ranks, self.micro_batches, self.replicas)


@dataclass(frozen=True)
class Span:
    """What a worker does between two times, in seconds from the start of the simulation or measurement."""

    worker: int
    key: Key
    start: float
    end: float


@dataclass(frozen=True)
class SimulatedStep:
    """A step in the steady state.

    Args:
        seconds: from the end of one step to the end of the next.
        spans: passes of one step on all workers; only one replica if each worker has its own device.
        bubble: idle share of each worker (:func:`bubble_fractions`).
    """

    seconds: float
    spans: tuple[Span, ...]
    bubble: tuple[float, ...]


@dataclass
class _Task:
    """A span of work before it is scheduled: its duration, what it needs and how long that takes to arrive."""

    key: Key
    seconds: float
    needs: tuple[Key, ...] = ()
    transfer: float = 0.0


def simulate(scenario: Scenario, costs: Sequence[Sequence[BlockCost]], steps: int = 3) -> SimulatedStep:
    """Simulate a few steps and return the last one.

    Args:
        costs: the costs of all blocks on the device of each rank; a single list applies to all ranks.
        steps: number of steps, at least 2.
    """
    per_rank = list(costs) * scenario.ranks if len(costs) == 1 else list(costs)
    replicas = range(scenario.simulated_replicas)
    workers = [
        [task for step in range(steps) for task in _step_tasks(scenario, per_rank[rank], replica, rank, step)]
        for replica in replicas
        for rank in range(scenario.ranks)
    ]
    spans = _run(workers, scenario.cores)
    last = tuple(span for span in spans if span.key[4] == steps - 1)
    ends = [max(span.end for span in spans if span.key[4] == step) for step in range(steps)]
    bubble = bubble_fractions(last, len(workers))
    return SimulatedStep(
        seconds=(ends[-1] - ends[0]) / (steps - 1),
        spans=last,
        bubble=bubble * (scenario.replicas // len(replicas)),
    )


def bubble_fractions(spans: Sequence[Span], workers: int) -> tuple[float, ...]:
    """Each worker's idle share of the time from the first pass of a step to the last.

    A worker is busy during passes and while it finishes: deferred weight gradients and the update. For S balanced
    stages and M micro-batches on S workers, with nothing to finish: (S - 1) / (M + S - 1).
    """
    passes = [span for span in spans if span.key[0] not in ("reduce", "finish")]
    start, end = min(span.start for span in passes), max(span.end for span in passes)
    computing = [span for span in spans if span.key[0] != "reduce"]
    busy = [
        sum(max(0.0, min(span.end, end) - span.start) for span in computing if span.worker == w) for w in range(workers)
    ]
    return tuple(1 - seconds / (end - start) for seconds in busy)


# --- tasks ------------------------------------------------------------------------------------------------------------


def _step_tasks(scenario: Scenario, costs: Sequence[BlockCost], replica: int, rank: int, step: int) -> list[_Task]:
    """Everything that a worker does in a step, in order."""
    blocks = {block.name: block for block in costs}
    tasks = []
    stages, micro_batches = len(scenario.split), scenario.micro_batches
    for kind, stage, m in rank_order(scenario.schedule, rank, scenario.ranks, stages, micro_batches):
        seconds = sum(_pass_seconds(scenario, blocks[name], kind, stage) for name in scenario.split[stage])
        needs, transfer = _input(scenario, blocks, (kind, stage, m), replica, step)
        tasks.append(_Task((kind, replica, stage, m, step), seconds, needs, transfer))
    return tasks + _end_tasks(scenario, blocks, replica, rank, step)


def _pass_seconds(scenario: Scenario, block: BlockCost, kind: Kind, stage: int) -> float:
    """A block's share of a pass of its stage."""
    if kind == "forward":
        return seconds_at(block.forward, scenario.images)
    return block.backward_seconds(scenario.images, deferred=scenario.defers(stage))


def _input(
    scenario: Scenario, blocks: dict[str, BlockCost], one: Pass, replica: int, step: int
) -> tuple[tuple[Key, ...], float]:
    """The pass on a neighbouring stage that a pass waits for, and the transfer time of its result."""
    kind, stage, m = one
    other = stage - 1 if kind == "forward" else stage + 1
    if not 0 <= other < len(scenario.split):
        return (), 0.0
    boundary = scenario.split[min(stage, other)][-1]
    size = scenario.images * blocks[boundary].output_bytes
    seconds = 0.0 if scenario.ranks == 1 else scenario.link.seconds(size)
    return ((kind, replica, other, m, step),), seconds


def _end_tasks(scenario: Scenario, blocks: dict[str, BlockCost], replica: int, rank: int, step: int) -> list[_Task]:
    """The end of a worker's step: gradients are summed over replicas, deferred ones computed, weights updated."""
    local = range(rank, len(scenario.split), scenario.ranks)
    last, tasks = local[-1], []
    if scenario.replicas > 1:
        parameter_bytes = sum(blocks[name].parameter_bytes for stage in local for name in scenario.split[stage])
        seconds = scenario.reduce_link.seconds(2 * (scenario.replicas - 1) / scenario.replicas * parameter_bytes)
        peers: tuple[Key, ...] = tuple(
            ("backward", other, stage, scenario.micro_batches - 1, step)
            for other in range(scenario.simulated_replicas)
            if other != replica
            for stage in local
        )
        tasks.append(_Task(("reduce", replica, last, 0, step), seconds, peers))
    seconds = sum(
        blocks[name].end_seconds(scenario.images, scenario.micro_batches, deferred=scenario.defers(stage))
        for stage in local
        for name in scenario.split[stage]
    )
    return [*tasks, _Task(("finish", replica, last, 0, step), seconds)]


# --- events -----------------------------------------------------------------------------------------------------------


def _run(workers: Sequence[Sequence[_Task]], cores: float) -> list[Span]:
    """Advance time from event to event until all tasks are done."""
    count = len(workers)
    now, done = 0.0, set()
    position, arrival = [0] * count, [math.nan] * count  # of the current task and its input; nan: not sent yet
    left, start = [math.nan] * count, [0.0] * count  # work left in the current task; nan: not started
    spans: list[Span] = []
    while True:
        # Send inputs that are ready, and start tasks that have theirs.
        for w in range(count):
            if position[w] == len(workers[w]):
                continue
            task = workers[w][position[w]]
            if math.isnan(arrival[w]) and all(key in done for key in task.needs):
                arrival[w] = now + task.transfer
            if math.isnan(left[w]) and arrival[w] <= now:
                left[w], start[w] = task.seconds, now
        # The next event is an arrival or the end of a task.
        busy = [w for w in range(count) if not math.isnan(left[w])]
        speed = min(1.0, cores / len(busy)) if busy else 1.0
        coming = [arrival[w] for w in range(count) if arrival[w] > now]
        if not busy and not coming:
            break
        until = min([*coming, *(now + left[w] / speed for w in busy)])
        # Advance all running tasks to it.
        for w in busy:
            left[w] -= (until - now) * speed
            if left[w] <= 1e-12:
                task = workers[w][position[w]]
                done.add(task.key)
                spans.append(Span(w, task.key, start[w], until))
                position[w] += 1
                arrival[w] = left[w] = math.nan
        now = until
    assert all(position[w] == len(workers[w]) for w in range(count)), "deadlock: a pass waits for one that never runs"
    return spans

"""A training step on paper: when each worker computes what, from the costs of blocks, links and cores.

A worker runs its passes in the order of its schedule. A pass begins once the worker is free and the tensor that it
needs has come; a tensor is sent when both ends are ready for it, because that is when the transports do it. Workers
that share a machine's cores are slowed down while more of them compute than there are cores.

What is left out: the launch of kernels and the schedule's own bookkeeping, the cores that a transport uses, and the
overlap of a gradient's reduction with the backward pass.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from fastalex.parallel.costs import BlockCost, Link, seconds_at
from fastalex.parallel.layout import ScheduleName
from fastalex.parallel.schedules import puts_off

Kind = Literal["forward", "backward", "input", "weight", "reduce", "finish"]
"""``backward`` is both ``input``, a backward pass without the weights' gradients, and ``weight``, those gradients."""


INSTANT = Link()


Key = tuple[Kind, int, int, int, int]
"""What a span did: kind, replica, stage, micro-batch, step."""


Pass = tuple[Kind, int, int]
"""Kind, stage, micro-batch."""


Orders = tuple[tuple[Pass, ...], ...]
"""The passes of a step by rank."""


@dataclass(frozen=True)
class Plan:
    """What is simulated.

    Args:
        stages: block names of every stage of one replica, in order.
        ranks: workers of one replica; stage s belongs to rank s % ranks.
        batch_size: images per step of one replica.
        micro_batches: in how many parts a replica's batch passes through.
        replicas: how many pipelines share the work.
        cores: how many workers can compute at once at full speed: the cores of all machines, as if one had them, over
            the threads of a worker; infinite where each worker has a device of its own.
        link: between the stages.
        reduce_link: between the replicas; a gradient of n bytes crosses it 2 (replicas - 1) / replicas times.
    """

    stages: tuple[tuple[str, ...], ...]
    ranks: int
    batch_size: int
    micro_batches: int
    schedule: ScheduleName
    replicas: int = 1
    cores: float = math.inf
    link: Link = INSTANT
    reduce_link: Link = INSTANT


@dataclass(frozen=True)
class Span:
    """A stretch of a worker's time, in seconds from the start of the simulation."""

    worker: int
    key: Key
    start: float
    end: float


@dataclass(frozen=True)
class Result:
    """A steady step.

    Args:
        seconds: from the end of one step to the end of the next.
        spans: of the passes of one step, all workers; those of one replica where each worker has its own device.
        bubble: the share of the time between a step's first and last pass in which a worker had nothing to compute,
            by worker (:func:`bubble_fractions`).
    """

    seconds: float
    spans: tuple[Span, ...]
    bubble: tuple[float, ...]


def rank_order(schedule: ScheduleName, rank: int, ranks: int, stages: int, micro_batches: int) -> list[tuple]:
    """The passes of one rank as (kind, stage, micro-batch), as ``torch.distributed.pipelining`` orders them."""
    if schedule in ("eager-1f1b", "interleaved"):
        return _interleaved_order(rank, ranks, stages // ranks, micro_batches)
    every = range(micro_batches)
    if schedule == "gpipe":
        return [("forward", rank, m) for m in every] + [("backward", rank, m) for m in every]
    ahead = min(micro_batches, stages - rank)
    order = [("forward", rank, m) for m in range(ahead)]
    for m in every:
        order.append(("backward", rank, m))
        if m + ahead < micro_batches:
            order.append(("forward", rank, m + ahead))
    return order


def _interleaved_order(rank: int, ranks: int, local: int, micro_batches: int) -> list[tuple]:
    in_round = micro_batches // max(1, micro_batches // ranks)
    total = local * micro_batches
    ahead = min((local - 1) * in_round + 2 * (ranks - 1 - rank), total)
    passed: dict[tuple[str, int], int] = {}

    def next_pass(kind: Kind, number: int) -> tuple:
        place = number // in_round % local
        stage = (place if kind == "forward" else local - 1 - place) * ranks + rank
        micro_batch = passed.get((kind, stage), 0)
        passed[kind, stage] = micro_batch + 1
        return kind, stage, micro_batch

    order = [next_pass("forward", number) for number in range(ahead)]
    for number in range(total):
        if number < total - ahead:
            order.append(next_pass("forward", ahead + number))
        order.append(next_pass("backward", number))
    return order


@dataclass
class _Task:
    key: Key
    seconds: float
    needs: tuple[Key, ...]
    transfer: float


def orders(plan: Plan, costs: Sequence[Sequence[BlockCost]]) -> Orders:
    """The passes of every rank: as the schedule has them; those of ``zero-bubble`` are found with the costs.

    A stage that makes weight gradients apart lets the stage before go on sooner and has something to do when it would
    wait; but the two passes take longer than one. So stages are tried one by one.

    Args:
        costs: as :func:`simulate` takes them.
    """
    per_rank, ranks, stages = _by_rank(plan, costs), range(plan.ranks), len(plan.stages)
    if plan.schedule != "zero-bubble":
        return tuple(tuple(rank_order(plan.schedule, rank, plan.ranks, stages, plan.micro_batches)) for rank in ranks)

    def tried(apart: frozenset[int]) -> tuple[float, Orders]:
        found = _list_schedule(plan, per_rank, apart)
        ways = [found, tuple(_merged(passes) for passes in found)]
        seconds = [_seconds(_run(_tasks(plan, per_rank, way, 3), plan.cores), 3) for way in ways]
        return min(zip(seconds, ways, strict=True), key=lambda pair: pair[0])

    # Nobody waits for the first stage's input gradient; other replicas wait for weight gradients.
    open_to_it = range(1, stages) if plan.ranks > 1 and plan.replicas == 1 else range(0)
    starts = [frozenset[int](), frozenset(open_to_it)]
    apart, best = min(((start, tried(start)) for start in starts), key=lambda pair: pair[1][0])
    for stage in open_to_it:
        if (other := tried(apart ^ {stage}))[0] < best[0]:
            apart, best = apart ^ {stage}, other
    return best[1]


def _list_schedule(plan: Plan, costs: Sequence[Sequence[BlockCost]], apart: frozenset[int]) -> Orders:
    """What every rank does if it never waits while it could begin something, and takes first what others wait for:
    backward passes, then the forward pass that is furthest on its way, then weight gradients (list scheduling).

    Args:
        apart: the stages that make weight gradients apart.
    """
    urgency: list[Kind] = ["backward", "input", "forward", "weight", "finish"]
    alone, last = replace(plan, replicas=1, cores=math.inf), 1  # the second step begins as all later ones do
    workers = _tasks(alone, costs, tuple(_unordered(plan, rank, apart) for rank in range(plan.ranks)), last + 1)
    tasks = {task.key: (rank, task) for rank, worker in enumerate(workers) for task in worker}
    needs = {key: _needs(key, task, workers[rank]) for key, (rank, task) in tasks.items()}
    waiting = {key: len(those) for key, those in needs.items()}
    wanted_by: dict[Key, list[Key]] = {key: [] for key in tasks}
    for key, those in needs.items():
        for need in those:
            wanted_by[need].append(key)
    ready: list[dict[Key, float]] = [{} for _ in workers]  # and since when
    for key, count in waiting.items():
        if not count:
            ready[tasks[key][0]][key] = 0.0
    ends: dict[Key, float] = {}
    free = [0.0] * plan.ranks
    found: list[list[Pass]] = [[] for _ in workers]
    while any(ready):
        now, rank = min((max(free[r], min(ready[r].values())), r) for r in range(plan.ranks) if ready[r])
        begun = [key for key, since in ready[rank].items() if since <= now]
        key = min(begun, key=lambda key: (key[4], urgency.index(key[0]), -key[2], key[3]))
        del ready[rank][key]
        ends[key] = free[rank] = now + tasks[key][1].seconds
        kind, _, stage, m, step = key
        if step == last and kind != "finish":
            found[rank].append((kind, stage, m))
        for other in wanted_by[key]:
            waiting[other] -= 1
            if not waiting[other]:
                there, task = tasks[other]
                arrivals = (ends[need] + task.transfer * (need in task.needs) for need in needs[other])
                ready[there][other] = max(arrivals)
    return tuple(tuple(passes) for passes in found)


def _unordered(plan: Plan, rank: int, apart: frozenset[int]) -> tuple[Pass, ...]:
    kinds: dict[bool, tuple[Kind, ...]] = {True: ("forward", "input", "weight"), False: ("forward", "backward")}
    local, every = range(rank, len(plan.stages), plan.ranks), range(plan.micro_batches)
    return tuple((kind, stage, m) for stage in local for m in every for kind in kinds[stage in apart])


def _needs(key: Key, task: _Task, own: Sequence[_Task]) -> list[Key]:
    """What a task waits for, on its own worker as well."""
    kind, replica, stage, m, step = key
    if kind == "finish":
        return [other.key for other in own if other.key[4] == step and other.key != key]
    if kind == "forward":
        return [*task.needs, *(other.key for other in own if other.key[0] == "finish" and other.key[4] == step - 1)]
    return [*task.needs, ("input" if kind == "weight" else "forward", replica, stage, m, step)]


def _merged(passes: Sequence[Pass]) -> tuple[Pass, ...]:
    """Weight gradients that follow their own input's are made with them, which takes less time, but who waits for the
    input's gets it later."""
    merged: list[Pass] = []
    for kind, stage, m in passes:
        if kind == "weight" and merged[-1] == ("input", stage, m):
            merged[-1] = ("backward", stage, m)
        else:
            merged.append((kind, stage, m))
    return tuple(merged)


def _tasks(plan: Plan, costs: Sequence[Sequence[BlockCost]], passes: Orders, steps: int) -> list[list[_Task]]:
    """What every worker does, in order."""
    images = plan.batch_size / plan.micro_batches
    made: dict[tuple[int, int], Kind] = {
        (stage, m): kind for order in passes for kind, stage, m in order if kind in ("backward", "input")
    }
    workers: list[list[_Task]] = []
    for replica in range(_simulated_replicas(plan)):
        for rank, order in enumerate(passes):
            cost = {block.name: block for block in costs[rank]}
            local = range(rank, len(plan.stages), plan.ranks)
            tasks = []
            for step in range(steps):
                for kind, stage, m in order:
                    needs, transfer = _input(plan, costs[0], made, (kind, stage, m), replica, step, images)
                    seconds = sum(
                        _pass_seconds(plan, cost[name], kind, stage, m, images) for name in plan.stages[stage]
                    )
                    tasks.append(_Task((kind, replica, stage, m, step), seconds, needs, transfer))
                tasks += _ends(plan, cost, local, replica, step, images)
            workers.append(tasks)
    return workers


def _pass_seconds(plan: Plan, block: BlockCost, kind: Kind, stage: int, m: int, images: float) -> float:
    """A block's part in a pass of its stage, or in the end of a step."""
    explicit, later = plan.schedule == "zero-bubble", _puts_off(plan, stage)
    product = block.product if explicit and m == plan.micro_batches - 1 else 0.0
    match kind:
        case "forward":
            return seconds_at(block.forward, images)
        case "backward":
            return block.backward_seconds(images, puts_off=later) + product
        case "input":
            return block.backward_seconds(images, puts_off=True)
        case "weight":
            return (seconds_at(block.put_off, images) if block.put_off else 0.0) + product
    return block.end_seconds(images, plan.micro_batches, puts_off=later) - (block.product if explicit else 0.0)


def _puts_off(plan: Plan, stage: int) -> bool:
    return plan.schedule != "zero-bubble" and puts_off(stage, plan.ranks, plan.micro_batches, plan.replicas)


def _by_rank(plan: Plan, costs: Sequence[Sequence[BlockCost]]) -> list[Sequence[BlockCost]]:
    return list(costs) * plan.ranks if len(costs) == 1 else list(costs)


def _simulated_replicas(plan: Plan) -> int:
    """Replicas with devices of their own all do the same at the same time: one stands for all."""
    return 1 if math.isinf(plan.cores) else plan.replicas


def _input(
    plan: Plan,
    costs: Sequence[BlockCost],
    made: dict[tuple[int, int], Kind],
    one: Pass,
    replica: int,
    step: int,
    images: float,
) -> tuple[tuple[Key, ...], float]:
    """What a pass waits for, and how long that takes to arrive.

    Args:
        made: by stage and micro-batch, how the input's gradient is made: ``backward`` or ``input``.
    """
    kind, stage, m = one
    other = stage - 1 if kind == "forward" else stage + 1
    if kind == "weight" or not 0 <= other < len(plan.stages):
        return (), 0.0
    last = plan.stages[min(stage, other)][-1]
    size = images * next(block.output_bytes for block in costs if block.name == last)
    seconds = 0.0 if plan.ranks == 1 else plan.link.seconds(size)
    return (("forward" if kind == "forward" else made[other, m], replica, other, m, step),), seconds


def _ends(plan: Plan, cost: dict[str, BlockCost], local: range, replica: int, step: int, images: float) -> list[_Task]:
    """What a worker does after the passes of a step: gradients summed over replicas or made, then weights updated."""
    blocks = [cost[name] for stage in local for name in plan.stages[stage]]
    tasks = []
    last = local[-1]
    if plan.replicas > 1:
        size = 2 * (plan.replicas - 1) / plan.replicas * sum(block.parameter_bytes for block in blocks)
        peers: tuple[Key, ...] = tuple(
            ("backward", other, stage, plan.micro_batches - 1, step)
            for other in range(_simulated_replicas(plan))
            if other != replica
            for stage in local
        )
        seconds = plan.reduce_link.seconds(size)
        tasks.append(_Task(("reduce", replica, last, 0, step), seconds, peers, 0.0))
    seconds = sum(
        _pass_seconds(plan, cost[name], "finish", stage, 0, images) for stage in local for name in plan.stages[stage]
    )
    tasks.append(_Task(("finish", replica, last, 0, step), seconds, (), 0.0))
    return tasks


def _run(workers: list[list[_Task]], cores: float) -> list[Span]:
    """Let time pass from event to event until all is done."""
    count = len(workers)
    now, done = 0.0, set()
    position, arrival = [0] * count, [math.nan] * count  # of the current task's input; nan: it cannot be sent yet
    left, start = [math.nan] * count, [0.0] * count  # nan: not begun
    spans: list[Span] = []
    while True:
        for w in range(count):
            if position[w] == len(workers[w]):
                continue
            task = workers[w][position[w]]
            if math.isnan(arrival[w]) and all(key in done for key in task.needs):
                arrival[w] = now + task.transfer
            if math.isnan(left[w]) and arrival[w] <= now:
                left[w], start[w] = task.seconds, now
        busy = [w for w in range(count) if not math.isnan(left[w])]
        speed = min(1.0, cores / len(busy)) if busy else 1.0
        coming = [arrival[w] for w in range(count) if arrival[w] > now]
        if not busy and not coming:
            break
        until = min([*coming, *(now + left[w] / speed for w in busy)])
        for w in busy:
            left[w] -= (until - now) * speed
            if left[w] <= 1e-12:
                task = workers[w][position[w]]
                done.add(task.key)
                spans.append(Span(w, task.key, start[w], until))
                position[w] += 1
                arrival[w] = left[w] = math.nan
        now = until
    assert all(position[w] == len(workers[w]) for w in range(count)), "a pass waits for one that never comes"
    return spans


def fewest_seconds(plan: Plan, costs: Sequence[Sequence[BlockCost]]) -> float:
    """A step cannot be shorter: what the worker with most to do computes, gradients made where that is shortest."""
    per_rank, images = _by_rank(plan, costs), plan.batch_size / plan.micro_batches
    work = [0.0] * plan.ranks
    for stage, names in enumerate(plan.stages):
        rank = stage % plan.ranks
        for block in per_rank[rank]:
            if block.name in names:
                apart = block.backward_seconds(images, puts_off=True) + (
                    seconds_at(block.put_off, images) if block.put_off else 0.0
                )
                back = min(block.backward_seconds(images, puts_off=False), apart)
                work[rank] += plan.micro_batches * (seconds_at(block.forward, images) + back) + block.finish
    return max(work)


def simulate(plan: Plan, costs: Sequence[Sequence[BlockCost]], steps: int = 3, passes: Orders | None = None) -> Result:
    """Run a few steps; the last one is steady.

    Args:
        costs: of every block, on the device of each rank; with one list all ranks have the same.
        steps: at least 2.
        passes: in which order; None for what :func:`orders` says.
    """
    per_rank = _by_rank(plan, costs)
    spans = _run(_tasks(plan, per_rank, passes or orders(plan, per_rank), steps), plan.cores)
    chosen = tuple(span for span in spans if span.key[4] == steps - 1)
    simulated = _simulated_replicas(plan)
    return Result(
        seconds=_seconds(spans, steps),
        spans=chosen,
        bubble=bubble_fractions(chosen, plan.ranks * simulated) * (plan.replicas // simulated),
    )


def _seconds(spans: Sequence[Span], steps: int) -> float:
    """From the end of one step to the end of the next."""
    ends = [max(span.end for span in spans if span.key[4] == step) for step in range(steps)]
    return (ends[-1] - ends[0]) / (steps - 1)


def bubble_fractions(spans: Sequence[Span], workers: int) -> tuple[float, ...]:
    """The share of the time from a step's first pass to its last in which each worker computes nothing.

    It computes a pass, or finishes: makes the gradients that were put off, and updates. For S balanced stages and M
    micro-batches on S workers, with nothing to finish: (S - 1) / (M + S - 1).
    """
    passes = [span for span in spans if span.key[0] not in ("reduce", "finish")]
    start, end = min(span.start for span in passes), max(span.end for span in passes)
    computing = [span for span in spans if span.key[0] != "reduce"]
    busy = [
        sum(max(0.0, min(span.end, end) - span.start) for span in computing if span.worker == w) for w in range(workers)
    ]
    return tuple(1 - seconds / (end - start) for seconds in busy)

"""How workers share the work: replicas of the network, each a pipeline of stages over some of the workers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fastalex.errors import ConfigurationError

ScheduleName = Literal["1f1b", "eager-1f1b", "gpipe", "interleaved", "zero-bubble"]
"""The orders of forward and backward passes.

GPipe: all forward passes, then all backward passes (Huang et al. 2019). 1F1B: backward passes as soon as possible, and
no more micro-batches under way than there are stages from here to the end (Narayanan et al. 2019). Eager 1F1B: one more
for each later stage, so that these wait less for what comes next (Zhuang et al. 2023). Interleaved: 1F1B with several
stages a worker (Narayanan et al. 2021). Zero bubble: any number of stages a worker, in the order that the costs of the
passes ask for, with weight gradients where a worker would wait (:func:`fastalex.simulate.orders`; Qi et al. 2024).
"""


@dataclass(frozen=True)
class Layout:
    """``replicas`` pipelines of ``ranks`` workers each, and ``stages`` stages in every one.

    Worker w is rank w % ranks of replica w // ranks, so the workers of a pipeline are neighbours; stage s of a replica
    belongs to its rank s % ranks.
    """

    replicas: int = 1
    ranks: int = 1
    stages: int = 1

    @property
    def workers(self) -> int:
        """Processes, one a device."""
        return self.replicas * self.ranks

    def local_stages(self, rank: int) -> range:
        """The stages of one rank."""
        return range(rank, self.stages, self.ranks)


def puts_off(stage: int, ranks: int, micro_batches: int, replicas: int = 1) -> bool:
    """Whether a stage leaves its convolutions' weight gradients to the end of a step.

    The input's gradient then reaches the stage before sooner, which shortens the pipeline's way back by the share that
    weight gradients have in a backward pass. No stage waits for the first one's input gradient; other replicas wait for
    weight gradients; and with many micro-batches the way back counts little, while a stage that waits for the one
    before it might as well have made them in its passes.
    """
    return stage > 0 and ranks > 1 and replicas == 1 and micro_batches < 4 * ranks


def arrange(
    devices: int, machines: int, stages: int | None, replicas: int | None, schedule: ScheduleName | None
) -> tuple[Layout, ScheduleName]:
    """The layout and schedule for so many devices on each of so many machines.

    What is left out: as many replicas as the devices give with one stage each, as many stages as a replica has devices
    (twice as many for the interleaved and the zero-bubble schedule), and 1F1B, or interleaved where a device has
    several stages.

    Raises:
        ConfigurationError: numbers that do not divide each other, or a schedule for one stage a device with several or
            the other way round.
    """
    workers = devices * machines
    there = f"{devices} devices" if machines == 1 else f"{devices} devices on each of {machines} machines"
    for name, value in (("stages", stages), ("replicas", replicas)):
        if value is not None and value < 1:
            raise ConfigurationError(f"--{name} is {value}; at least 1 is wanted")
    if replicas is None:
        if stages is not None and stages <= workers and workers % stages:
            raise ConfigurationError(
                f"{stages} stages do not divide {there}; choose --stages from {_divisors(workers)}, or name another "
                "number of devices"
            )
        replicas = 1 if stages is None else max(1, workers // stages)
    if workers % replicas:
        raise ConfigurationError(
            f"{replicas} replicas do not divide {there}; choose --replicas from {_divisors(workers)}"
        )
    ranks = workers // replicas
    if stages is None:
        stages = 2 * ranks if schedule in ("interleaved", "zero-bubble") else ranks
    if schedule == "zero-bubble":
        if stages < ranks:
            raise ConfigurationError(
                f"{stages} stages on {ranks} devices leave devices without one; choose --stages {ranks} or more"
            )
        return Layout(replicas, ranks, stages), schedule
    if stages % ranks:
        of_each = f"the {ranks} devices of each replica" if replicas > 1 else f"{ranks} devices"
        raise ConfigurationError(
            f"{stages} stages do not go evenly on {of_each}; choose --stages {ranks} or {2 * ranks}, "
            "or --schedule zero-bubble"
        )
    if schedule == "interleaved" and stages == ranks:
        raise ConfigurationError(
            f"--schedule interleaved runs several stages a device; --stages {stages} on {ranks} "
            f"{'device' if ranks == 1 else 'devices'} makes one: choose --stages {2 * ranks}, or --schedule eager-1f1b"
        )
    if schedule is None:
        schedule = "1f1b" if stages == ranks else "interleaved"
    if schedule != "interleaved" and stages > ranks:
        raise ConfigurationError(
            f"--schedule {schedule} runs one stage a device; {stages} stages on {ranks} "
            f"{'device' if ranks == 1 else 'devices'} need --schedule interleaved or zero-bubble"
        )
    return Layout(replicas, ranks, stages), schedule


def check_batch(layout: Layout, schedule: ScheduleName, batch_size: int, micro_batches: int | None) -> None:
    """Refuse batches that cannot be shared out.

    Args:
        batch_size: images per update, of all replicas together.
        micro_batches: of each replica; None if they are chosen later.

    Raises:
        ConfigurationError: replicas or micro-batches do not divide the batch, or the schedule cannot run so few.
    """
    if batch_size % layout.replicas:
        above = -(-batch_size // layout.replicas) * layout.replicas
        raise ConfigurationError(
            f"{layout.replicas} replicas do not divide a batch of {batch_size}; choose another --batch-size, such as "
            f"{above}"
        )
    if micro_batches is not None:
        rows = batch_size // layout.replicas
        whose = "a batch" if layout.replicas == 1 else "each replica's batch"
        check_micro_batches(rows, micro_batches, layout.stages, schedule, layout.ranks, whose)


def check_micro_batches(
    batch_size: int,
    micro_batches: int,
    stages: int,
    schedule: ScheduleName,
    ranks: int | None = None,
    whose: str = "a batch",
) -> None:
    """Refuse what the engines cannot run.

    Args:
        batch_size: images per step of one replica.
        ranks: workers that share the stages; one each if left out.
        whose: what the batch is called in the error.

    Raises:
        ConfigurationError: micro-batches do not divide the batch, or the schedule cannot run that many.
    """
    ranks = stages if ranks is None else ranks
    if micro_batches < 1:
        raise ConfigurationError(f"--micro-batches is {micro_batches}; at least 1 is wanted")
    if batch_size % micro_batches:
        raise ConfigurationError(
            f"{micro_batches} micro-batches do not divide {whose} of {batch_size}; choose --micro-batches from "
            f"{_divisors(batch_size, 64)}"
        )
    if schedule == "1f1b" and micro_batches < stages:
        raise ConfigurationError(
            f"the 1F1B schedule needs at least as many micro-batches as stages: {micro_batches} micro-batches, "
            f"{stages} stages; raise --micro-batches or choose --schedule gpipe"
        )
    if schedule in ("eager-1f1b", "interleaved") and micro_batches % max(1, micro_batches // ranks):
        raise ConfigurationError(
            f"the {schedule} schedule wants micro-batches in equal rounds of {ranks} or more: {micro_batches} "
            f"micro-batches on {ranks} devices; choose a multiple of {ranks}"
        )


def possible_micro_batches(layout: Layout, schedule: ScheduleName, batch_size: int, most: int = 16) -> list[int]:
    """The numbers up to ``most`` that :func:`check_batch` accepts.

    Raises:
        ConfigurationError: there is none.
    """
    good = []
    for count in range(1, most + 1):
        try:
            check_batch(layout, schedule, batch_size, count)
        except ConfigurationError:
            continue
        good.append(count)
    if not good:
        check_batch(layout, schedule, batch_size, layout.ranks)
    return good


def usual_micro_batches(layout: Layout, schedule: ScheduleName, batch_size: int, device: str) -> int:
    """What is taken without measuring: as many as ranks on CPUs and four on GPUs, or the next larger that divide."""
    possible = possible_micro_batches(layout, schedule, batch_size)
    wanted = 1 if layout.stages == 1 else max(layout.ranks, 4 if device == "cuda" else 1)
    return next((count for count in possible if count >= wanted), possible[-1])


def _divisors(number: int, most: int = 16) -> str:
    return ", ".join(str(n) for n in range(1, min(number, most) + 1) if number % n == 0)

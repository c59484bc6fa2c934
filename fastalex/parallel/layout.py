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
passes ask for, with weight gradients where a worker would wait (Qi et al. 2024).
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


def resolve_layout(
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


def _divisors(number: int, most: int = 16) -> str:
    return ", ".join(str(n) for n in range(1, min(number, most) + 1) if number % n == 0)

"""How workers share a run: replicas of the network, pipeline stages within a replica, micro-batches within a step.

:func:`resolve_layout` turns numbers that a user may leave out into a :class:`Layout`; :class:`ParallelPlan` is the
whole decision, complete and checked. Nothing later parses a device or a split again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, get_args

import torch

from fastalex.errors import ConfigurationError
from fastalex.options.choices import ScheduleName

SCHEDULES: tuple[ScheduleName, ...] = get_args(ScheduleName)

Split = tuple[tuple[str, ...], ...]
"""Block names, stage by stage, in the order of the network."""


@dataclass(frozen=True)
class Layout:
    """``replicas`` pipelines of ``ranks`` workers each, with ``stages`` stages in every pipeline.

    Worker w is rank ``w % ranks`` of replica ``w // ranks``. Stage s of a replica runs on rank ``s % ranks``.
    """

    replicas: int = 1
    ranks: int = 1
    stages: int = 1

    @property
    def workers(self) -> int:
        """Number of processes, one per device."""
        return self.replicas * self.ranks

    def local_stages(self, rank: int) -> range:
        """The stages of one rank."""
        return range(rank, self.stages, self.ranks)


@dataclass(frozen=True)
class ParallelPlan:
    """Which worker computes what. Complete: nothing is left open and nothing is text.

    Args:
        devices: the devices of this machine, one per worker.
        machines: how many machines take part, each with that many devices.
        layout: replicas, ranks and stages over all machines.
        split: block names of every stage.
        schedule: pipeline schedule; without effect where there is one stage.
        micro_batches: parts that each replica's share of a batch is cut into.
    """

    devices: tuple[torch.device, ...]
    machines: int
    layout: Layout
    split: Split
    schedule: ScheduleName
    micro_batches: int

    @classmethod
    def single(cls, device: torch.device, block_names: tuple[str, ...]) -> ParallelPlan:
        """The whole network on one device, each batch in one piece."""
        return cls((device,), 1, Layout(), (block_names,), "1f1b", 1)

    @property
    def device_type(self) -> str:
        """``cpu`` or ``cuda``; all devices are of one type."""
        return self.devices[0].type

    def rows(self, batch_size: int) -> int:
        """Images per step of one replica."""
        return batch_size // self.layout.replicas

    def device_of(self, stage: int) -> torch.device:
        """The device of a stage, in the first replica."""
        return self.devices[stage % self.layout.ranks % len(self.devices)]

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``config.json``."""
        return {
            "devices": [str(device) for device in self.devices],
            "machines": self.machines,
            "replicas": self.layout.replicas,
            "ranks": self.layout.ranks,
            "split": [list(stage) for stage in self.split],
            "schedule": self.schedule,
            "micro_batches": self.micro_batches,
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> ParallelPlan:
        """The inverse of :meth:`to_json`.

        Raises:
            KeyError, TypeError, ValueError, RuntimeError: not what :meth:`to_json` writes.
        """
        split = tuple(tuple(str(name) for name in stage) for stage in values["split"])
        if values["schedule"] not in SCHEDULES:
            raise ValueError(f"unknown pipeline schedule {values['schedule']!r}")
        return cls(
            devices=tuple(torch.device(name) for name in values["devices"]),
            machines=int(values["machines"]),
            layout=Layout(int(values["replicas"]), int(values["ranks"]), len(split)),
            split=split,
            schedule=values["schedule"],
            micro_batches=int(values["micro_batches"]),
        )


def resolve_layout(
    devices: int,
    machines: int = 1,
    stages: int | None = None,
    replicas: int | None = None,
    schedule: ScheduleName | None = None,
) -> tuple[Layout, ScheduleName]:
    """The layout and the pipeline schedule for a number of devices on each machine.

    Defaults: one stage per device (two for ``interleaved``); as many replicas as that leaves; ``eager-1f1b``, or
    ``interleaved`` where a device has several stages.

    Raises:
        ConfigurationError: the numbers do not divide each other, or the schedule does not fit the stages per device.
    """
    workers = devices * machines
    for name, value in (("stages", stages), ("replicas", replicas)):
        if value is not None and value < 1:
            raise ConfigurationError(f"{name} must be at least 1, got {value}")
    replicas = _resolve_replicas(workers, _devices_text(devices, machines), stages, replicas)
    ranks = workers // replicas
    if stages is None:
        stages = 2 * ranks if schedule == "interleaved" else ranks
    if stages % ranks:
        of_each = f"the {ranks} devices of each replica" if replicas > 1 else f"{ranks} devices"
        raise ConfigurationError(
            f"{stages} stages cannot be spread evenly over {of_each}; choose stages {ranks} or {2 * ranks}"
        )
    return Layout(replicas, ranks, stages), _resolve_schedule(schedule, stages, ranks)


def _resolve_replicas(workers: int, there: str, stages: int | None, replicas: int | None) -> int:
    if replicas is None:
        if stages is not None and stages <= workers and workers % stages:
            raise ConfigurationError(
                f"{there} cannot be divided into pipelines of {stages} stages; choose stages from {divisors(workers)}, "
                "or another number of devices"
            )
        return 1 if stages is None else max(1, workers // stages)
    if workers % replicas:
        raise ConfigurationError(
            f"{there} cannot be divided into {replicas} replicas; choose replicas from {divisors(workers)}"
        )
    return replicas


def _resolve_schedule(schedule: ScheduleName | None, stages: int, ranks: int) -> ScheduleName:
    on = f"{ranks} {'device' if ranks == 1 else 'devices'}"
    if schedule == "interleaved" and stages == ranks:
        raise ConfigurationError(
            f"schedule interleaved needs several stages per device, got {stages} on {on}; choose stages {2 * ranks}, "
            "or schedule eager-1f1b"
        )
    if schedule is None:
        return "eager-1f1b" if stages == ranks else "interleaved"
    if schedule != "interleaved" and stages > ranks:
        raise ConfigurationError(
            f"schedule {schedule} runs one stage per device, got {stages} stages on {on}; choose schedule interleaved"
        )
    return schedule


def _devices_text(devices: int, machines: int) -> str:
    return f"{devices} devices" if machines == 1 else f"{devices} devices on each of {machines} machines"


def divisors(number: int, most: int = 16) -> str:
    """The divisors of a number up to ``most``, as text for an error message."""
    return ", ".join(str(n) for n in range(1, min(number, most) + 1) if number % n == 0)

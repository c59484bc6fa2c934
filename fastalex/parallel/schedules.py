"""Pipeline schedules: the order of passes on each rank, and how many micro-batches they can run.

The orders are those of ``torch.distributed.pipelining``; they are written down here because CUDA graphs must be
captured in the order in which they will run.
"""

from __future__ import annotations

from typing import Literal

from fastalex.errors import ConfigurationError
from fastalex.parallel.layout import Layout, ScheduleName, divisors

PassKind = Literal["forward", "backward"]
Pass = tuple[PassKind, int, int]
"""Kind, stage, micro-batch."""

MICRO_BATCHES_PER_DEVICE = {"cpu": 2, "cuda": 4}
"""Defaults. More micro-batches make the pipeline's idle time shorter, and each pass less efficient."""


def rank_order(schedule: ScheduleName, rank: int, ranks: int, stages: int, micro_batches: int) -> list[Pass]:
    """The passes of one rank in a training step, in order."""
    if schedule in ("eager-1f1b", "interleaved"):
        return _interleaved_order(rank, ranks, stages // ranks, micro_batches)
    if schedule == "gpipe":
        kinds: tuple[PassKind, ...] = ("forward", "backward")
        return [(kind, rank, m) for kind in kinds for m in range(micro_batches)]
    ahead = min(micro_batches, stages - rank)
    order: list[Pass] = [("forward", rank, m) for m in range(ahead)]
    for m in range(micro_batches):
        order.append(("backward", rank, m))
        if m + ahead < micro_batches:
            order.append(("forward", rank, m + ahead))
    return order


def _interleaved_order(rank: int, ranks: int, local: int, micro_batches: int) -> list[Pass]:
    """Rounds of micro-batches over the ``local`` stages of a rank (Narayanan et al. 2021)."""
    in_round = micro_batches // max(1, micro_batches // ranks)
    total = local * micro_batches
    ahead = min((local - 1) * in_round + 2 * (ranks - 1 - rank), total)
    passed: dict[tuple[PassKind, int], int] = {}

    def next_pass(kind: PassKind, number: int) -> Pass:
        position = number // in_round % local
        stage = (position if kind == "forward" else local - 1 - position) * ranks + rank
        micro_batch = passed.get((kind, stage), 0)
        passed[kind, stage] = micro_batch + 1
        return kind, stage, micro_batch

    order = [next_pass("forward", number) for number in range(ahead)]
    for number in range(total):
        if number < total - ahead:
            order.append(next_pass("forward", ahead + number))
        order.append(next_pass("backward", number))
    return order


def evaluation_order(rank: int, ranks: int, stages: int, micro_batches: int) -> list[Pass]:
    """Stage by stage, for evaluation with several stages per rank; the backward passes only complete the schedule."""
    local = range(rank, stages, ranks)
    forward: list[Pass] = [("forward", stage, m) for stage in local for m in range(micro_batches)]
    backward: list[Pass] = [("backward", stage, m) for stage in reversed(local) for m in range(micro_batches)]
    return forward + backward


def defers_convolutions(stage: int, ranks: int, micro_batches: int, replicas: int = 1) -> bool:
    """Whether a stage defers its convolutions' weight gradients to the end of the step.

    The previous stage then receives its gradients sooner, which shortens the pipeline's drain. It does not help the
    first stage, which sends no gradient back, nor replicas, which average weight gradients during backward. With many
    micro-batches the drain is a small part of a step, and a waiting stage may as well compute them in its passes.
    """
    return stage > 0 and ranks > 1 and replicas == 1 and micro_batches < 4 * ranks


def check_batch(layout: Layout, schedule: ScheduleName, batch_size: int, micro_batches: int | None) -> None:
    """Refuse batches that cannot be divided among replicas and micro-batches.

    Args:
        batch_size: images per update, of all replicas together.
        micro_batches: per replica; None checks the replicas alone.

    Raises:
        ConfigurationError: replicas or micro-batches do not divide the batch, or the schedule cannot run so few.
    """
    if batch_size % layout.replicas:
        above = -(-batch_size // layout.replicas) * layout.replicas
        raise ConfigurationError(
            f"a batch of {batch_size} cannot be divided among {layout.replicas} replicas; choose another batch size, "
            f"such as {above}"
        )
    if micro_batches is not None:
        rows = batch_size // layout.replicas
        of = "a batch" if layout.replicas == 1 else "each replica's batch"
        check_micro_batches(rows, micro_batches, layout.stages, schedule, layout.ranks, of)


def check_micro_batches(
    batch_size: int,
    micro_batches: int,
    stages: int,
    schedule: ScheduleName,
    ranks: int | None = None,
    of: str = "a batch",
) -> None:
    """Refuse a number of micro-batches that the engines cannot run.

    Args:
        batch_size: images per step of one replica.
        ranks: workers that share the stages; by default one per stage.
        of: what the batch is called in the error.

    Raises:
        ConfigurationError: micro-batches do not divide the batch, or the schedule cannot run that many.
    """
    ranks = stages if ranks is None else ranks
    if micro_batches < 1:
        raise ConfigurationError(f"micro_batches must be at least 1, got {micro_batches}")
    if batch_size % micro_batches:
        raise ConfigurationError(
            f"{of} of {batch_size} cannot be divided into {micro_batches} micro-batches; choose micro-batches from "
            f"{divisors(batch_size, 64)}"
        )
    if schedule == "1f1b" and micro_batches < stages:
        raise ConfigurationError(
            f"schedule 1f1b needs at least as many micro-batches as stages, got {micro_batches} micro-batches for "
            f"{stages} stages; choose more micro-batches, or schedule gpipe"
        )
    if schedule in ("eager-1f1b", "interleaved") and micro_batches % max(1, micro_batches // ranks):
        raise ConfigurationError(
            f"schedule {schedule} runs micro-batches in equal rounds of {ranks} or more, got {micro_batches} "
            f"micro-batches on {ranks} devices; choose a multiple of {ranks}"
        )


def default_micro_batches(layout: Layout, schedule: ScheduleName, batch_size: int, device_type: str) -> int:
    """Two micro-batches per device on CPUs and four on GPUs, or the nearest smaller number that divides the batch.

    One stage runs its batch in one piece.

    Raises:
        ConfigurationError: no number of micro-batches can run.
    """
    check_batch(layout, schedule, batch_size, None)
    if layout.stages == 1:
        return 1
    most = MICRO_BATCHES_PER_DEVICE[device_type] * layout.ranks
    for count in range(most, 0, -1):
        try:
            check_batch(layout, schedule, batch_size, count)
        except ConfigurationError:
            continue
        return count
    check_batch(layout, schedule, batch_size, layout.ranks)  # says why
    return layout.ranks

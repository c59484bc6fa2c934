"""TODO."""

from __future__ import annotations

from fastalex.errors import ConfigurationError
from fastalex.parallel.layout import Layout, ScheduleName, _divisors


def puts_off(stage: int, ranks: int, micro_batches: int, replicas: int = 1) -> bool:
    """Whether a stage leaves its convolutions' weight gradients to the end of a step.

    The input's gradient then reaches the stage before sooner, which shortens the pipeline's way back by the share that
    weight gradients have in a backward pass. No stage waits for the first one's input gradient; other replicas wait for
    weight gradients; and with many micro-batches the way back counts little, while a stage that waits for the one
    before it might as well have made them in its passes.
    """
    return stage > 0 and ranks > 1 and replicas == 1 and micro_batches < 4 * ranks


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

"""Providers that take turns: each is timed once a round, so that a change in the machine's speed affects all of them.

Times of different providers are compared within rounds only. The speed of one relative to another is the median of the
ratios of their medians in the same round.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from harness.device import CUDA
from harness.timing import Clock, DeviceClock, HostClock

FEWEST_ROUNDS, MOST_ROUNDS = 5, 10
_MOST_REPETITIONS = 100  # in one turn


@dataclass
class Contender:
    """Work that is timed in turns with others.

    Attributes:
        prepare: what runs untimed before each repetition.
        work: what is timed; it is given what `prepare` returns.
        share: length of its turns relative to those of the others.
        rounds: milliseconds of each repetition that counts, by round.
        failure: what ended its participation.
    """

    prepare: Callable[[], Any]
    work: Callable[[Any], Any]
    share: float = 1.0
    rounds: list[list[float]] = field(default_factory=list)
    failure: Exception | None = None

    @property
    def round_ms(self) -> list[float]:
        """The median milliseconds of each round."""
        return [statistics.median(times) for times in self.rounds]

    def percentiles(self) -> list[float]:
        """The 20th, 50th and 80th percentile of the rounds: each counts once, however many repetitions it had."""
        deciles = statistics.quantiles(self.round_ms, n=10, method="inclusive")
        return [deciles[1], deciles[4], deciles[7]]

    def repeat_untimed(self) -> None:
        """Prepare and do the work once."""
        self.work(self.prepare())

    def take_turn(self, clock: Clock, seconds: float) -> None:
        """Repeat the work until the time is up, at least once.

        The first repetition meets the caches and the idle threads of the turn before. It counts only if it is alone.
        """
        times: list[float] = []
        end = time.perf_counter() + seconds * self.share
        while not times or (time.perf_counter() < end and len(times) < _MOST_REPETITIONS):
            times.append(clock.time(self.prepare, self.work))
        self.rounds.append(times[1:] or times)


def take_turns(contenders: Sequence[Contender], seconds: float, clock: Clock | None = None) -> None:
    """Time all contenders, round by round, after one untimed repetition of each.

    A contender that raises an exception keeps it as its failure and drops out; the others go on. Every second round has
    the reverse order, so that a steady drift within rounds favours nobody.

    Args:
        seconds: time for each contender. There are at least 5 and at most 10 rounds.
        clock: what times a repetition; by default on the device.
    """
    chosen = clock or (DeviceClock() if CUDA else HostClock())
    for contender in contenders:
        _attempt(contender, contender.repeat_untimed)
    begin, number = time.perf_counter(), 0
    while number < FEWEST_ROUNDS or (
        number < MOST_ROUNDS and time.perf_counter() - begin < seconds * sum(c.share for c in contenders)
    ):
        for contender in contenders if number % 2 == 0 else reversed(contenders):
            if contender.failure is None:
                _attempt(contender, partial(contender.take_turn, chosen, seconds / MOST_ROUNDS))
        number += 1


def _attempt(contender: Contender, action: Callable[[], Any]) -> None:
    try:
        action()
    except Exception as failure:
        contender.failure = failure


def median_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """The median of the ratios of two series, round by round."""
    return statistics.median(above / below for above, below in zip(numerators, denominators, strict=True))

"""Timing of single repetitions, and of repeated work that is compared with nothing."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, Protocol

import torch

from harness.device import CUDA, DEVICE

# Clock cycles that a GPU waits for the host: half a millisecond at first, 8 milliseconds at most.
_FIRST_DELAY, _LONGEST_DELAY = 2**20, 2**24


class Clock(Protocol):
    """Times one repetition."""

    def time(self, prepare: Callable[[], Any], work: Callable[[Any], Any]) -> float:
        """Milliseconds of `work(prepare())` without its preparation."""


class HostClock:
    """Times work that the host computes itself.

    Args:
        now: seconds on a clock, by default `time.perf_counter`; `time.process_time` leaves out what other processes
            take, and adds up all threads.
    """

    def __init__(self, now: Callable[[], float] | None = None) -> None:
        self.now = now or time.perf_counter

    def time(self, prepare: Callable[[], Any], work: Callable[[Any], Any]) -> float:
        """Milliseconds of `work(prepare())` without its preparation."""
        prepared = prepare()
        begin = self.now()
        work(prepared)
        return (self.now() - begin) * 1e3


class DeviceClock:
    """Times work on a GPU with cold caches, without the time that the host takes to queue it."""

    def __init__(self) -> None:
        # Larger than any second-level cache. Reading it evicts the inputs; written lines would be written back while
        # the work runs.
        self.flush = torch.zeros(64 * 2**20, device=DEVICE)
        self.delay = _FIRST_DELAY

    def time(self, prepare: Callable[[], Any], work: Callable[[Any], Any]) -> float:
        """Milliseconds of `work(prepare())` without its preparation, which is repeated with each attempt."""
        while True:
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            prepared = prepare()
            self.flush.sum()
            torch.cuda._sleep(self.delay)
            start.record()
            work(prepared)
            stop.record()
            host_was_late = start.query()
            stop.synchronize()
            # Work that synchronises with the device itself is late however long the delay.
            if not host_was_late or self.delay >= _LONGEST_DELAY:
                return start.elapsed_time(stop)
            self.delay *= 2


def timed(prepare: Callable[[], Any], work: Callable[[Any], Any], seconds: float) -> list[float]:
    """The 20th, 50th and 80th percentile of the milliseconds of `work(prepare())` without its preparation.

    Args:
        seconds: time budget; at least 5 and at most 1000 repetitions run.
    """
    for _ in range(2):
        work(prepare())
    times: list[float] = []
    end = time.perf_counter() + seconds
    clock: Clock = DeviceClock() if CUDA else HostClock()
    while len(times) < 5 or (time.perf_counter() < end and len(times) < 1000):
        times.append(clock.time(prepare, work))
    deciles = statistics.quantiles(times, n=10)
    return [deciles[1], statistics.median(times), deciles[7]]

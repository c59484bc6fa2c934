"""Timing of repeated work, and the ceilings of the device that times are compared with."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from harness.device import CUDA, DEVICE

# Clock cycles that a GPU waits for the host: half a millisecond at first, 8 milliseconds at most.
_FIRST_DELAY, _LONGEST_DELAY = 2**20, 2**24


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
    clock = DeviceClock() if CUDA else None
    while len(times) < 5 or (time.perf_counter() < end and len(times) < 1000):
        if clock is not None:
            times.append(clock.time(prepare, work))
        else:
            prepared = prepare()
            begin = time.perf_counter()
            work(prepared)
            times.append((time.perf_counter() - begin) * 1e3)
    deciles = statistics.quantiles(times, n=10)
    return [deciles[1], statistics.median(times), deciles[7]]


def copy_bandwidth(seconds: float) -> float:
    """GB/s of a copy within the device, bytes read and written together."""
    source = torch.zeros(512 * 2**20 if CUDA else 128 * 2**20, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    _, median, _ = timed(lambda: None, lambda _: target.copy_(source), seconds)
    return 2 * source.nbytes / median / 1e6


def product_speed(dtype: torch.dtype, seconds: float) -> float:
    """TFLOP/s of a large square matrix product."""
    side = 8192 if CUDA else 2048
    a, b = (torch.randn(side, side, device=DEVICE).to(dtype) for _ in range(2))
    _, median, _ = timed(lambda: None, lambda _: a @ b, seconds)
    return 2 * side**3 / median / 1e9

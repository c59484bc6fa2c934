"""Which sample comes when: a function of (seed, epoch) and of nothing else.

The order of an epoch is the stable sort of one random word per sample, drawn from the counter-based generator Philox
4x64 [Salmon et al. 2011]. NumPy keeps the raw words of a bit generator the same in every version, which it does not
promise for ``Generator.permutation``: an order written down today is the order of every later machine.

Batches, replicas and threads cut this one sequence into pieces and never enter into it.
"""

import functools
from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dataloading.errors import DatasetError

# Second key words: keep draws apart from every other use of the same seed.
_SHUFFLE, _SUBSET = 0x5348_5546_464C_4521, 0x5355_4253_4554_2121
SEED_LIMIT = 2**64


def check_seed(seed: int) -> int:
    """Return `seed` when it is a whole number in 0 .. 2**64 - 1, else raise `DatasetError`."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < SEED_LIMIT:
        raise DatasetError(f"seed is {seed!r}; it must be a whole number from 0 to 2**64 - 1")
    return seed


def epoch_order(count: int, *, seed: int, epoch: int, shuffle: bool = True) -> NDArray[np.int64]:
    """Return the samples 0 .. count - 1 in the order in which `epoch` visits them: int64, shape (count,).

    Every epoch is a fresh permutation of all samples; without `shuffle` it is 0, 1, 2, ... each time.
    """
    if not shuffle:
        return np.arange(count, dtype=np.int64)
    key = np.array([check_seed(seed), _SHUFFLE], dtype=np.uint64)
    words = np.random.Philox(key=key, counter=np.array([0, 0, epoch, 0], dtype=np.uint64)).random_raw(count)
    return np.argsort(words, kind="stable").astype(np.int64, copy=False)


def subset(labels: NDArray[np.integer], fraction: float, *, seed: int) -> NDArray[np.int64]:
    """Return the same fraction of the samples of every class: int64, ascending.

    Of a class with n samples these are the first round(fraction * n) in an order that follows from `seed`. So the
    samples of a smaller fraction are among those of a larger one. A class may be left with none.
    """
    key = np.array([check_seed(seed), _SUBSET], dtype=np.uint64)
    words = np.random.Philox(key=key).random_raw(len(labels))
    chosen = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        order = np.argsort(words[members], kind="stable")
        chosen.append(members[order[: round(fraction * len(members))]])
    return np.sort(np.concatenate(chosen)) if chosen else np.empty(0, dtype=np.int64)


class Window(NamedTuple):
    """One batch's place in an epoch's order: `start` to `stop` of all replicas, `first` to `last` of this one.

    A place of `count` or more lies in the next epoch (see `Schedule`, "carry").
    """

    start: int
    stop: int
    first: int
    last: int


class Run(NamedTuple):
    """Consecutive samples of one epoch's order: int64, shape (N,), the first of which has place `first` in it."""

    epoch: int
    first: int
    samples: NDArray[np.int64]


LastBatch = Literal["deliver", "drop", "carry"]


class Schedule:
    """Cuts the orders of all epochs into batches, and each batch into one run per replica.

    A batch of all replicas holds ``batch_size * replicas`` samples; replica r takes the r-th part of it, so that the
    parts of all replicas, laid end to end, are what one replica with the whole batch would see. Every replica sees the
    same number of batches.

    Args:
        count: samples per epoch.
        seed: 0 .. 2**64 - 1.
        shuffle: a new order every epoch; otherwise 0, 1, 2, ...
        batch_size: samples per batch and replica.
        replica, replicas: which part of each batch, of how many.
        last: what happens to the samples at the end of an epoch that do not fill a batch: "deliver" them as a smaller
            batch, divided as evenly as it goes (a replica's part may be empty), "drop" them, or "carry" them over into
            the first batch of the next epoch, which lets every batch be full and loses none.
    """

    def __init__(
        self,
        count: int,
        *,
        seed: int,
        shuffle: bool,
        batch_size: int,
        replica: int = 0,
        replicas: int = 1,
        last: LastBatch = "deliver",
    ) -> None:
        self.count, self.seed, self.shuffle, self.last = count, check_seed(seed), shuffle, last
        self.replica, self.replicas, self.whole = replica, replicas, batch_size * replicas
        # Kept are this epoch's order and the next one's, which is being prefetched, in a thread of its own.
        self._kept_order = functools.lru_cache(2)(functools.partial(_order, count, seed, shuffle))

    def start(self, epoch: int) -> int:
        """Return the place at which an epoch's first batch begins when all before it were run with these settings."""
        return -epoch * self.count % self.whole if self.last == "carry" else 0

    def batches(self, start: int) -> int:
        """Return how many batches begin in an epoch whose first one begins at `start`."""
        left = max(self.count - start, 0)
        return left // self.whole if self.last == "drop" else -(-left // self.whole)

    def windows(self, start: int) -> Iterator[Window]:
        """Yield the batches of an epoch whose first one begins at `start`."""
        for number in range(self.batches(start)):
            begin = start + number * self.whole
            end = begin + self.whole if self.last == "carry" else min(begin + self.whole, self.count)
            size = end - begin
            first, last = (begin + part * size // self.replicas for part in (self.replica, self.replica + 1))
            yield Window(begin, end, first, last)

    def after(self, epoch: int, window: Window) -> tuple[int, int]:
        """Return the epoch and place at which the batch after `window` begins."""
        if self.last == "drop" and window.stop + self.whole > self.count:
            return epoch + 1, 0
        return epoch + window.stop // self.count, window.stop % self.count

    def runs(self, epoch: int, window: Window) -> list[Run]:
        """Return this replica's samples of a batch: one run, or several where it reaches into later epochs."""
        runs, place = [], window.first
        while place < window.last:
            behind, first = divmod(place, self.count)
            length = min(window.last - place, self.count - first)
            runs.append(Run(epoch + behind, first, self._order(epoch + behind)[first : first + length]))
            place += length
        return runs

    def _order(self, epoch: int) -> NDArray[np.int64]:
        return self._kept_order(epoch if self.shuffle else 0)


def _order(count: int, seed: int, shuffle: bool, epoch: int) -> NDArray[np.int64]:
    return epoch_order(count, seed=seed, epoch=epoch, shuffle=shuffle)


def samples_of(runs: list[Run]) -> NDArray[np.int64]:
    """Return the samples of `runs` in order: int64, shape (N,), not shared with anything."""
    return np.concatenate([run.samples for run in runs]) if runs else np.empty(0, dtype=np.int64)

"""The order of samples: a function of (seed, epoch) and of nothing else.

The order of an epoch is the stable sort of one random word per sample (`seeds.random_words`), so an order written down
today is the order on every later machine. Batches and replicas only cut this sequence into pieces.

Krizhevsky's program of 2012 shuffled the images once, when it wrote them to files, and read these in the same order in
every epoch. So does `EpochBatches` without `reshuffle`: every epoch has the order of epoch 0.
"""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dataloading.seeds import check_seed, random_words

_PURPOSE = 0x5348_5546_464C_4521  # "SHUFFLE!"


def epoch_order(count: int, *, seed: int, epoch: int, shuffle: bool = True) -> NDArray[np.int64]:
    """Return the samples 0 to count - 1 in the order in which `epoch` visits them: int64, shape (count,).

    Every epoch has a new permutation. Without `shuffle`, the order is 0, 1, 2, ... in every epoch.
    """
    if not shuffle:
        return np.arange(count, dtype=np.int64)
    words = random_words(count, seed=seed, purpose=_PURPOSE, epoch=epoch)
    return np.argsort(words, kind="stable").astype(np.int64, copy=False)


class BatchRange(NamedTuple):
    """The positions of one batch in the order of an epoch.

    The batch of all replicas has positions `start` to `stop`; this replica's part has `own_start` to `own_stop`.
    """

    start: int
    stop: int
    own_start: int
    own_stop: int

    @property
    def is_empty(self) -> bool:
        """Whether this replica has no sample in the batch."""
        return self.own_start == self.own_stop


class EpochBatches:
    """Cuts the order of every epoch into batches, and every batch into one part per replica.

    A global batch has ``batch_size * replicas`` samples. Replica r takes the r-th part of it, so the parts of all
    replicas, concatenated, are the batch of a single replica with the global batch size. All replicas have the same
    number of batches. No batch continues into the next epoch.

    Args:
        count: samples per epoch.
        seed: 0 to 2**64 - 1.
        shuffle: a random order; otherwise 0, 1, 2, ...
        reshuffle: a new random order every epoch; otherwise that of epoch 0 in every epoch.
        batch_size: samples per batch and replica.
        replica, replicas: which part of each batch, and how many parts there are.
        drop_last: leave out the last samples of an epoch if they do not fill a batch. Otherwise they form a smaller
            batch, divided among the replicas as evenly as possible; a replica's part may be empty.
    """

    def __init__(
        self,
        count: int,
        *,
        seed: int,
        shuffle: bool,
        reshuffle: bool = True,
        batch_size: int,
        replica: int = 0,
        replicas: int = 1,
        drop_last: bool = False,
    ) -> None:
        self.count, self.seed, self.shuffle, self.drop_last = count, check_seed(seed), shuffle, drop_last
        self.reshuffle = shuffle and reshuffle
        self.replica, self.replicas, self.global_batch_size = replica, replicas, batch_size * replicas
        # Two orders are cached: this epoch's, and the next one's, which another thread prefetches.
        self._cached_order = functools.lru_cache(2)(functools.partial(_order, count, seed, shuffle))

    def batch_count(self, start: int = 0) -> int:
        """Return the number of batches of an epoch from position `start` on."""
        left = self.count - start
        return left // self.global_batch_size if self.drop_last else -(-left // self.global_batch_size)

    def ranges(self, start: int = 0) -> Iterator[BatchRange]:
        """Yield the batches of an epoch from position `start` on."""
        for number in range(self.batch_count(start)):
            begin = start + number * self.global_batch_size
            end = min(begin + self.global_batch_size, self.count)
            first, last = (begin + part * (end - begin) // self.replicas for part in (self.replica, self.replica + 1))
            yield BatchRange(begin, end, first, last)

    def samples(self, epoch: int, batch: BatchRange) -> NDArray[np.int64]:
        """Return this replica's samples of a batch: int64, shape (N,), a copy."""
        order = self._cached_order(epoch if self.reshuffle else 0)
        return order[batch.own_start : batch.own_stop].copy()


def _order(count: int, seed: int, shuffle: bool, epoch: int) -> NDArray[np.int64]:
    return epoch_order(count, seed=seed, epoch=epoch, shuffle=shuffle)

"""Which sample comes when: a function of (seed, epoch) and of nothing else.

The order of an epoch is the stable sort of one random word per sample, drawn from the counter-based generator Philox
4x64 [Salmon et al. 2011]. NumPy keeps the raw words of a bit generator the same in every version, which it does not
promise for ``Generator.permutation``: an order written down today is the order of every later machine.

Batches, replicas and threads cut this one sequence into pieces and never enter into it.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dataloading.errors import DatasetError

_SHUFFLE = 0x5348_5546_464C_4521  # second key word: keeps these draws apart from every other use of the same seed
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
    words = np.random.Philox(key=[check_seed(seed), _SHUFFLE], counter=[0, 0, epoch, 0]).random_raw(count)
    return np.argsort(words, kind="stable").astype(np.int64, copy=False)


class Window(NamedTuple):
    """One batch's place in an epoch's order: `start` to `stop` of all replicas, `first` to `last` of this one."""

    start: int
    stop: int
    first: int
    last: int


def windows(
    count: int, *, batch_size: int, replica: int = 0, replicas: int = 1, start: int = 0, drop_last: bool = False
) -> Iterator[Window]:
    """Cut positions `start` .. count - 1 of an epoch into batches, and each batch into one run per replica.

    A batch of all replicas holds ``batch_size * replicas`` samples; replica r takes the r-th run of it, so that the
    runs of all replicas, laid end to end, are what one replica with the whole batch would see. The last, partial batch
    is divided as evenly as it goes (a run may then be empty: every replica sees the same number of batches), or left
    out with `drop_last`.
    """
    whole = batch_size * replicas
    for begin in range(start, count, whole):
        end = min(begin + whole, count)
        if drop_last and end - begin < whole:
            return
        size = end - begin
        yield Window(begin, end, begin + replica * size // replicas, begin + (replica + 1) * size // replicas)


def batches(count: int, *, batch_size: int, replicas: int = 1, start: int = 0, drop_last: bool = False) -> int:
    """Return how many batches `windows` yields."""
    left, whole = max(count - start, 0), batch_size * replicas
    return left // whole if drop_last else -(-left // whole)

"""Seeds, and random words that depend on the seed and on counters alone.

The words come from the counter-based generator Philox 4x64 [Salmon et al. 2011]. NumPy keeps the raw words of a bit
generator the same in every version, which it does not promise for methods such as ``Generator.permutation``. So
anything sorted by these words is the same on every machine and in every version.
"""

import numpy as np
from numpy.typing import NDArray

from dataloading.errors import DatasetError

SEED_LIMIT = 2**64


def check_seed(seed: int) -> int:
    """Return `seed` if it is an integer from 0 to 2**64 - 1, else raise `DatasetError`."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < SEED_LIMIT:
        raise DatasetError(f"seed must be an integer from 0 to 2**64 - 1, got {seed!r}")
    return seed


def random_words(count: int, *, seed: int, purpose: int, epoch: int = 0) -> NDArray[np.uint64]:
    """Return random 64-bit words: uint64, shape (count,).

    Args:
        count: number of words.
        seed: 0 to 2**64 - 1.
        purpose: second key word; keeps the words for one purpose independent of those for another.
        epoch: counter; each epoch has words of its own.
    """
    key = np.array([check_seed(seed), purpose], dtype=np.uint64)
    return np.random.Philox(key=key, counter=np.array([0, 0, epoch, 0], dtype=np.uint64)).random_raw(count)

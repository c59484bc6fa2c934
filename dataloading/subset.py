"""A random subset of a data set with the same fraction of every class."""

import numpy as np
from numpy.typing import NDArray

from dataloading.seeds import random_words

_PURPOSE = 0x5355_4253_4554_2121  # "SUBSET!!"


def balanced_subset(labels: NDArray[np.integer], fraction: float, *, seed: int) -> NDArray[np.int64]:
    """Return the same fraction of the samples of every class: sample numbers, int64, ascending.

    A class with n samples contributes the first round(fraction * n) of them in an order that depends on `seed`. So a
    smaller fraction is a subset of a larger one with the same seed. A class may be left without samples.
    """
    words = random_words(len(labels), seed=seed, purpose=_PURPOSE)
    chosen = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        order = np.argsort(words[members], kind="stable")
        chosen.append(members[order[: round(fraction * len(members))]])
    return np.sort(np.concatenate(chosen)) if chosen else np.empty(0, dtype=np.int64)

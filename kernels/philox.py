"""Random bits as a pure function of counters: Philox4x32-10.

A mask from a stateful generator depends on everything that was drawn before. Here it depends only on (seed, row,
feature), so it is the same on a CPU and a GPU, for any split of a batch into micro-batches or devices, and after a
restart.

Source: Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011). The tests compare with
the known answers that the authors publish in Random123.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_WORD = 0xFFFFFFFF

# The last counter word separates the uses of one seed.
_DROPOUT_DOMAIN = 0
_DERIVE_DOMAIN = 1


def philox_4x32(counter, key):
    """Philox4x32-10: four 32-bit words from a counter of four 32-bit words and a key of two.

    Words are Python ints, or int64 tensors that broadcast against each other, with values in [0, 2^32). On tensors the
    32 x 32-bit product may overflow int64. Its upper half is still right after a shift by 32 and a mask, because only
    bits above the mask depend on the sign.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for round_index in range(_ROUNDS):
        if round_index > 0:
            k0 = (k0 + _KEY_STEPS[0]) & _WORD
            k1 = (k1 + _KEY_STEPS[1]) & _WORD
        product0 = c0 * _MULTIPLIERS[0]
        product1 = c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((product1 >> 32) & _WORD) ^ c1 ^ k0,
            product1 & _WORD,
            ((product0 >> 32) & _WORD) ^ c3 ^ k1,
            product0 & _WORD,
        )
    return c0, c1, c2, c3


def derive_seed(seed: int, *counters: int) -> int:
    """A 63-bit seed for one use of a run's seed: `derive_seed(run_seed, step, layer)`.

    Each counter is encrypted together with its position; the key is the result of the previous counters. The result is
    the same on every machine and in every release.

    Args:
        seed: in [0, 2^64).
        *counters: each in [0, 2^64).

    Returns:
        An int in [0, 2^63), which fits an int64 tensor.

    Raises:
        TypeError: an argument is not an int.
        ValueError: an argument is out of range.
    """
    for name, value in (("seed", seed), *((f"counters[{index}]", value) for index, value in enumerate(counters))):
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"{name} must be an int, got {type(value).__name__}: {value!r}")
        if not 0 <= value < 1 << 64:
            raise ValueError(f"{name} must be in [0, 2^64), got {value}")
    key = seed
    for position, value in enumerate((*counters, len(counters))):
        counter = (value & _WORD, value >> 32, position, _DERIVE_DOMAIN)
        low, high, _, _ = philox_4x32(counter, (key & _WORD, key >> 32))
        key = low | high << 32
    return key & ((1 << 63) - 1)


def drop_threshold(p: float) -> int:
    """The number of 32-bit words, out of 2^32, that mean "dropped": p * 2^32, rounded."""
    return min(round(p * 2**32), 2**32 - 1)


def keep_mask(seed: Tensor, first_row: Tensor, rows: int, features: int, p: float) -> Tensor:
    """The dropout mask, True where kept, of shape rows x features.

    Feature `c` of global row `r = first_row + row` uses word `c % 4` of the Philox block with key `seed` and counter
    `(c // 4, low half of r, high half of r, 0)`. It is dropped if that word is below `drop_threshold(p)`.

    Args:
        seed, first_row: int64 tensors of one element; the mask is on their device.
    """
    columns = torch.arange((features + 3) // 4, dtype=torch.int64, device=seed.device)
    row = first_row.reshape(1, 1) + torch.arange(rows, dtype=torch.int64, device=seed.device).unsqueeze(1)
    key = seed.reshape(1, 1)
    words = philox_4x32(
        (columns.unsqueeze(0), row & _WORD, (row >> 32) & _WORD, _DROPOUT_DOMAIN),
        (key & _WORD, (key >> 32) & _WORD),
    )
    threshold = drop_threshold(p)
    return torch.stack([word >= threshold for word in words], dim=-1).flatten(1)[:, :features]

"""Random numbers: published answers, and the properties that dropout masks need."""

from __future__ import annotations

import math

import pytest
import torch

from kernels import philox

# Random123's kat_vectors, philox4x32 with 10 rounds: counter, key, answer.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text: str) -> tuple[int, ...]:
    return tuple(int(word, 16) for word in text.split())


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_published_answers(counter: str, key: str, answer: str) -> None:
    assert philox.philox_4x32(words(counter), words(key)) == words(answer)
    tensors = philox.philox_4x32([torch.tensor([w]) for w in words(counter)], [torch.tensor([w]) for w in words(key)])
    assert tuple(int(word) for word in tensors) == words(answer)


def test_mask_is_made_of_the_words_that_the_definition_names() -> None:
    seed, first_row, p = 0x0123_4567_89AB_CDEF, (1 << 32) - 2, 0.3
    mask = philox.keep_mask(torch.tensor(seed), torch.tensor(first_row), 5, 11, p)
    for row in range(5):
        for feature in range(11):
            number = first_row + row
            block = philox.philox_4x32(
                (feature // 4, number & 0xFFFFFFFF, number >> 32, 0), (seed & 0xFFFFFFFF, seed >> 32)
            )
            assert bool(mask[row, feature]) == (block[feature % 4] >= round(p * 2**32))


@pytest.mark.parametrize(
    ("p", "threshold"),
    [(0.0, 0), (2**-33, 0), (0.3, 1288490189), (0.5, 2**31), (1 - 2**-32, 2**32 - 1), (1 - 1e-12, 2**32 - 1)],
)
def test_the_threshold_is_rounded_and_fits_a_word(p: float, threshold: int) -> None:
    assert philox.drop_threshold(p) == threshold


def test_derived_seeds_do_not_change() -> None:
    # Recorded once: a run that is resumed with a later release must draw the same masks.
    assert philox.derive_seed(0) == 1389609246023119845
    assert philox.derive_seed(1, 2, 3) == 6017991011838916406
    assert philox.derive_seed(2**64 - 1, 2**64 - 1) == 2019344639352022749


def test_derived_seeds_differ() -> None:
    seeds = [philox.derive_seed(7, step, layer) for step in range(100) for layer in range(10)]
    seeds += [philox.derive_seed(7), *(philox.derive_seed(7, step) for step in range(100))]
    seeds += [philox.derive_seed(philox.derive_seed(7, step), 3) for step in range(100)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 1 << 63 for seed in seeds)
    mean = sum(seeds) / len(seeds) / 2**63
    assert abs(mean - 0.5) < 5 / math.sqrt(12 * len(seeds))


@pytest.mark.parametrize("bad", [-1, 1 << 64])
def test_derive_seed_names_the_number_out_of_range(bad: int) -> None:
    with pytest.raises(ValueError, match=rf"counters\[1\] must be in \[0, 2\^64\), got {bad}"):
        philox.derive_seed(1, 2, bad)


@pytest.mark.parametrize("bad", [1.0, True, "1"])
def test_derive_seed_refuses_what_is_not_an_int(bad: object) -> None:
    with pytest.raises(TypeError, match="seed must be an int"):
        philox.derive_seed(bad)  # type: ignore[arg-type]

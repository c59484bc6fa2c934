"""The order of samples, and batches cut from it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from dataloading import DatasetError
from dataloading.loading.order import EpochBatches, epoch_order

SEEDS = st.integers(0, 2**64 - 1)
COUNTS = st.integers(1, 400)


@given(count=st.integers(0, 2000), seed=SEEDS, epoch=st.integers(0, 10**6))
def test_every_epoch_visits_every_sample_once(count, seed, epoch):
    order = epoch_order(count, seed=seed, epoch=epoch)
    assert order.dtype == np.int64
    assert np.array_equal(np.sort(order), np.arange(count))


def test_the_order_is_the_same_on_every_machine():
    assert epoch_order(12, seed=0, epoch=0).tolist() == ORDER_00
    assert epoch_order(12, seed=2012, epoch=89).tolist() == ORDER_2012


ORDER_00 = [8, 6, 9, 0, 10, 1, 7, 3, 2, 5, 4, 11]
ORDER_2012 = [2, 3, 4, 7, 10, 0, 5, 11, 6, 9, 8, 1]


def test_large_seeds_are_told_apart():
    seeds = [0, 1, 2**53, 2**53 + 1, 2**63, 2**63 + 1, 2**64 - 2, 2**64 - 1]
    assert len({tuple(epoch_order(50, seed=seed, epoch=0).tolist()) for seed in seeds}) == len(seeds)


def test_orders_of_epochs_and_seeds_are_independent():
    orders = [epoch_order(20_000, seed=seed, epoch=epoch) for seed in (0, 1) for epoch in (0, 1, 2)]
    for i, one in enumerate(orders):
        for other in orders[:i]:
            assert abs(np.corrcoef(np.argsort(one), np.argsort(other))[0, 1]) < 0.03
            assert (one == other).sum() < 10


def test_every_sample_is_equally_likely_at_every_position():
    places = np.array([np.argsort(epoch_order(10, seed=5, epoch=epoch)) for epoch in range(4000)])
    for sample in range(10):
        assert stats.chisquare(np.bincount(places[:, sample], minlength=10)).pvalue > 1e-4


def test_without_shuffling_the_order_is_that_of_the_index():
    assert epoch_order(7, seed=3, epoch=9, shuffle=False).tolist() == [0, 1, 2, 3, 4, 5, 6]


@given(count=COUNTS, seed=SEEDS, size=st.integers(1, 30), replicas=st.sampled_from([1, 2, 4]), data=st.data())
def test_a_fixed_order_is_that_of_the_first_epoch_in_every_epoch(count, seed, size, replicas, data):
    start = data.draw(st.integers(0, count))
    parts = replicas_of(count, seed, size, replicas, drop_last=False, reshuffle=False)
    for epoch in (0, 3):
        batches = [delivered(part, epoch, start) for part in parts]
        together = [sample for batch in zip(*batches, strict=True) for part in batch for sample in part]
        assert together == epoch_order(count, seed=seed, epoch=0).tolist()[start:]


@pytest.mark.parametrize("seed", [-1, 2**64, 1.0, True])
def test_a_seed_out_of_range_is_refused(seed):
    with pytest.raises(DatasetError, match=r"seed must be an integer from 0 to 2"):
        epoch_order(5, seed=seed, epoch=0)


def replicas_of(count: int, seed: int, batch_size: int, replicas: int, **options: bool) -> list[EpochBatches]:
    common = {"seed": seed, "shuffle": True, "batch_size": batch_size, "replicas": replicas, **options}
    return [EpochBatches(count, replica=replica, **common) for replica in range(replicas)]


def delivered(batches: EpochBatches, epoch: int, start: int) -> list[np.ndarray]:
    return [batches.samples(epoch, batch) for batch in batches.ranges(start)]


@given(count=COUNTS, seed=SEEDS, size=st.integers(1, 30), replicas=st.sampled_from([1, 2, 3, 4, 8]), data=st.data())
def test_replicas_together_deliver_the_epoch_once(count, seed, size, replicas, data):
    start = data.draw(st.integers(0, count))
    parts = [delivered(part, 2, start) for part in replicas_of(count, seed, size, replicas, drop_last=False)]
    assert len({len(part) for part in parts}) == 1
    together = [sample for batch in zip(*parts, strict=True) for part in batch for sample in part]
    assert together == epoch_order(count, seed=seed, epoch=2).tolist()[start:]


@given(count=COUNTS, seed=SEEDS, size=st.integers(1, 30), replicas=st.sampled_from([1, 2, 4]))
def test_dropping_leaves_whole_batches_only(count, seed, size, replicas):
    for part in replicas_of(count, seed, size, replicas, drop_last=True):
        batches = delivered(part, 0, 0)
        assert len(batches) == part.batch_count() == count // (size * replicas)
        assert all(len(batch) == size for batch in batches)


@given(count=COUNTS, size=st.integers(1, 60), start=st.integers(0, 400), drop_last=st.booleans())
def test_batches_of_an_epoch_follow_one_another(count, size, start, drop_last):
    batches = EpochBatches(count, seed=0, shuffle=True, batch_size=size, drop_last=drop_last)
    position = start = min(start, count)
    for batch in batches.ranges(start):
        assert batch.start == batch.own_start == position
        assert batch.stop == batch.own_stop <= count
        position = batch.stop
    assert position == (count - (count - start) % size if drop_last else count)


def test_samples_of_a_batch_are_a_copy():
    batches = EpochBatches(5, seed=0, shuffle=True, batch_size=5)
    (batch,) = batches.ranges()
    batches.samples(0, batch)[:] = 0
    assert batches.samples(0, batch).tolist() == epoch_order(5, seed=0, epoch=0).tolist()


def test_a_replica_without_a_sample_of_the_last_batch_has_an_empty_part():
    parts = [list(part.ranges()) for part in replicas_of(5, 0, 2, 2, drop_last=False)]
    assert [[batch.is_empty for batch in part] for part in parts] == [[False, True], [False, False]]

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from dataloading import DatasetError
from dataloading.order import LastBatch, Schedule, epoch_order, samples_of, subset

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


def test_epochs_and_seeds_have_nothing_in_common():
    orders = [epoch_order(20_000, seed=seed, epoch=epoch) for seed in (0, 1) for epoch in (0, 1, 2)]
    for i, one in enumerate(orders):
        for other in orders[:i]:
            assert abs(np.corrcoef(np.argsort(one), np.argsort(other))[0, 1]) < 0.03
            assert (one == other).sum() < 10


def test_every_sample_comes_at_every_place_equally_often():
    places = np.array([np.argsort(epoch_order(10, seed=5, epoch=epoch)) for epoch in range(4000)])
    for sample in range(10):
        assert stats.chisquare(np.bincount(places[:, sample], minlength=10)).pvalue > 1e-4


def test_without_shuffling_the_order_is_that_of_the_index():
    assert epoch_order(7, seed=3, epoch=9, shuffle=False).tolist() == [0, 1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("seed", [-1, 2**64, 1.0, True])
def test_a_seed_out_of_range_is_refused(seed):
    with pytest.raises(DatasetError, match=r"seed is .* whole number from 0"):
        epoch_order(5, seed=seed, epoch=0)


@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=200).map(np.array),
    fractions=st.lists(st.floats(0.0, 1.0), min_size=2, max_size=2).map(sorted),
    seed=SEEDS,
)
def test_subsets_are_nested_and_keep_the_balance_of_classes(labels, fractions, seed):
    smaller, larger = (subset(labels, fraction, seed=seed) for fraction in fractions)
    assert set(smaller) <= set(larger)
    for chosen, fraction in ((smaller, fractions[0]), (larger, fractions[1])):
        assert np.array_equal(chosen, np.unique(chosen))
        for label in np.unique(labels):
            assert (labels[chosen] == label).sum() == round(fraction * (labels == label).sum())


def test_every_sample_is_as_likely_to_be_in_a_subset():
    labels = np.repeat([0, 1], [10, 30])
    counts = np.bincount(np.concatenate([subset(labels, 0.3, seed=seed) for seed in range(2000)]), minlength=40)
    assert stats.chisquare(counts).pvalue > 1e-4


def schedules(count: int, seed: int, whole: int, replicas: int, last: LastBatch) -> list[Schedule]:
    return [
        Schedule(
            count, seed=seed, shuffle=True, batch_size=whole // replicas, replica=replica, replicas=replicas, last=last
        )
        for replica in range(replicas)
    ]


def delivered(schedule: Schedule, epoch: int, start: int) -> list[np.ndarray]:
    return [samples_of(schedule.runs(epoch, window)) for window in schedule.windows(start)]


@given(count=COUNTS, seed=SEEDS, size=st.integers(1, 30), replicas=st.sampled_from([1, 2, 3, 4, 8]), data=st.data())
def test_replicas_together_deliver_the_epoch_once(count, seed, size, replicas, data):
    start = data.draw(st.integers(0, count))
    parts = [delivered(s, 2, start) for s in schedules(count, seed, size * replicas, replicas, "deliver")]
    assert len({len(part) for part in parts}) == 1
    together = [sample for batch in zip(*parts, strict=True) for part in batch for sample in part]
    assert together == epoch_order(count, seed=seed, epoch=2).tolist()[start:]


@given(count=COUNTS, seed=SEEDS, size=st.integers(1, 30), replicas=st.sampled_from([1, 2, 4]))
def test_dropping_leaves_whole_batches_only(count, seed, size, replicas):
    for schedule in schedules(count, seed, size * replicas, replicas, "drop"):
        batches = delivered(schedule, 0, 0)
        assert len(batches) == schedule.batches(0) == count // (size * replicas)
        assert all(len(batch) == size for batch in batches)


@given(count=COUNTS, seed=SEEDS, size=st.integers(1, 60), epochs=st.integers(1, 5))
def test_carrying_delivers_all_epochs_as_one_sequence_of_whole_batches(count, seed, size, epochs):
    (schedule,) = schedules(count, seed, size, 1, "carry")
    found = []
    for epoch in range(epochs):
        batches = delivered(schedule, epoch, schedule.start(epoch))
        assert all(len(batch) == size for batch in batches)
        found += [sample for batch in batches for sample in batch]
    wanted = [sample for epoch in range(epochs + size) for sample in epoch_order(count, seed=seed, epoch=epoch)]
    assert found == wanted[: len(found)]
    assert len(found) >= epochs * count


@given(count=COUNTS, size=st.integers(1, 60), last=st.sampled_from(["deliver", "drop", "carry"]))
def test_each_batch_says_where_the_next_one_begins(count, size, last):
    schedule = Schedule(count, seed=0, shuffle=True, batch_size=size, last=last)
    place, seen = (0, 0), 0
    for epoch in range(4):
        start = schedule.start(epoch)
        for window in schedule.windows(start):
            assert place == (epoch, window.start)
            place, seen = schedule.after(epoch, window), seen + 1
        if last == "drop" and not schedule.batches(0):
            place = epoch + 1, 0
    assert seen > 0 or count < size

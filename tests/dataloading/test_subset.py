"""Random subsets with the same fraction of every class."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from dataloading.subset import balanced_subset


@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=200).map(np.array),
    fractions=st.lists(st.floats(0.0, 1.0), min_size=2, max_size=2).map(sorted),
    seed=st.integers(0, 2**64 - 1),
)
def test_subsets_are_nested_and_keep_the_balance_of_classes(labels, fractions, seed):
    smaller, larger = (balanced_subset(labels, fraction, seed=seed) for fraction in fractions)
    assert set(smaller) <= set(larger)
    for chosen, fraction in ((smaller, fractions[0]), (larger, fractions[1])):
        assert np.array_equal(chosen, np.unique(chosen))
        for label in np.unique(labels):
            assert (labels[chosen] == label).sum() == round(fraction * (labels == label).sum())


def test_every_sample_is_equally_likely_to_be_in_a_subset():
    labels = np.repeat([0, 1], [10, 30])
    counts = np.bincount(
        np.concatenate([balanced_subset(labels, 0.3, seed=seed) for seed in range(2000)]), minlength=40
    )
    assert stats.chisquare(counts).pvalue > 1e-4

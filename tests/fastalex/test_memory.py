"""Peaks, what there is, and batches that do not fit. What a step needs is tested in test_planning."""

import resource
from dataclasses import replace

import pytest
import torch

from fastalex import memory
from fastalex.errors import ConfigurationError
from fastalex.memory import check_memory, does_not_fit, stages_memory


def test_a_batch_that_cannot_fit_is_refused_and_the_largest_that_can_is_named(config, monkeypatch):
    (stage,) = stages_memory(config)
    there = stage.total(1000)
    monkeypatch.setattr(memory, "_available", lambda _: [there])
    with pytest.raises(ConfigurationError, match=r"a batch of 1002 does not fit .*needs .* --batch-size (9\d\d|1000),"):
        check_memory(replace(config, recipe=replace(config.recipe, batch_size=1002)))
    check_memory(replace(config, recipe=replace(config.recipe, batch_size=1000)))
    monkeypatch.setattr(memory, "_available", lambda _: None)  # unknown
    check_memory(replace(config, recipe=replace(config.recipe, batch_size=10**6)))


def test_what_failed_is_never_recommended(config):
    plenty = [10**15]
    error = does_not_fit(config, "CUDA out of memory", plenty)
    assert "about 6 would fit: --batch-size 6" in str(error)  # 8 did not; micro-batches are pairs
    assert "not even the smallest would fit" in str(does_not_fit(config, "CUDA out of memory", [1]))


def test_memory_of_this_machine_is_known():
    available = memory.available_bytes(torch.device("cpu"))
    assert available is not None
    assert 2**20 < available < 2**50
    assert memory.peak_bytes(torch.device("cpu")) >= resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

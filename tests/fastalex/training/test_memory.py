"""Peak and available memory, and batches that do not fit."""

import resource
from dataclasses import replace

import pytest
import torch

from fastalex.errors import ConfigurationError
from fastalex.parallel.layout import Layout, ParallelPlan
from fastalex.training import memory
from fastalex.training.memory import check_memory, does_not_fit, stages_memory

CPU = torch.device("cpu")
BATCH_OF_1002 = r"a batch size of 1002 does not fit .*needs .* a batch size of about (9\d\d|1000) would fit"


def test_a_batch_that_cannot_fit_is_refused_and_the_largest_that_can_is_named(config, monkeypatch):
    (stage,) = stages_memory(config)
    there = stage.total(1000)
    monkeypatch.setattr(memory, "_available_per_device", lambda _: [there])
    with pytest.raises(ConfigurationError, match=BATCH_OF_1002):
        check_memory(replace(config, recipe=replace(config.recipe, batch_size=1002)))
    check_memory(replace(config, recipe=replace(config.recipe, batch_size=1000)))
    monkeypatch.setattr(memory, "_available_per_device", lambda _: None)  # unknown
    check_memory(replace(config, recipe=replace(config.recipe, batch_size=10**6)))


def test_what_failed_is_never_recommended(config):
    for plenty in (10**15, None):
        error = does_not_fit(config, "CUDA out of memory", {0: plenty})
        assert "a batch size of about 6 would fit" in str(error)  # 8 did not; micro-batches are pairs
    assert "not even the smallest batch would fit" in str(does_not_fit(config, "CUDA out of memory", {0: 1}))


def test_a_worker_counts_its_own_stages(config):
    recipe = replace(config.recipe, batch_size=1000)
    names = config.parallel.split[0]
    plan = replace(
        config.parallel, devices=(CPU, CPU), layout=Layout(1, 2, 2), split=(names[:2], names[2:]), schedule="1f1b"
    )
    config = replace(config, parallel=plan, recipe=recipe)
    stages = stages_memory(config)
    there = stages[1].total(500)
    assert stages[1].total(1000) < stages[0].total(500)  # the first stage would not fit into that
    assert "about 500 would fit" in str(does_not_fit(config, "out of memory", {1: there}))
    assert "about 500 would fit" not in str(does_not_fit(config, "out of memory", {0: there, 1: there}))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpus_are_asked_by_another_process():
    (free,) = memory._available_per_device(ParallelPlan.single(torch.device("cuda", 0), ()))
    assert 0 < free <= torch.cuda.get_device_properties(0).total_memory


def test_memory_of_this_machine_is_known():
    available = memory.available_bytes(torch.device("cpu"))
    assert available is not None
    assert 2**20 < available < 2**50
    assert memory.peak_bytes(torch.device("cpu")) >= resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

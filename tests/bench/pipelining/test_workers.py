"""Timed steps of a trial, in one process."""

from collections import Counter

import pytest
import torch
from pipelining.measurement import Measurement
from pipelining.workers import Trial, measure_trial, time_steps
from torch.distributed.pipelining import PipelineStage

from fastalex.network.model import AlexNet, Stage
from fastalex.parallel.layout import Layout, ParallelPlan
from fastalex.parallel.partition import partition
from fastalex.parallel.world import World

CPU = torch.device("cpu")


@pytest.fixture
def model() -> AlexNet:
    return AlexNet("krizhevsky", 5, seed=1, width=1 / 16, lrn=False)


def trial(model: AlexNet, layout: Layout, schedule: str, micro_batches: int, **options) -> Trial:
    split = tuple(partition(model.architecture, layout.stages))
    return Trial(ParallelPlan((CPU,), 1, layout, split, schedule, micro_batches), 4, **options)


def test_passes_and_the_end_of_the_last_step_are_recorded(model):
    forward, finish = PipelineStage.forward_one_chunk, Stage.finish_gradients
    world = World(0, 1, CPU)
    pipelined = trial(model, Layout(1, 1, 2), "interleaved", 2)
    world.arrange(pipelined.plan.layout)
    try:
        result = time_steps(world, model, pipelined, steps=2)
    finally:
        torch.distributed.destroy_process_group()
    keys = Counter(span.key[:4] for span in result["spans"])
    passes = {(kind, 0, stage, m) for kind in ("forward", "backward") for stage in (0, 1) for m in (0, 1)}
    assert keys == dict.fromkeys(passes | {("finish", 0, 0, 0)}, 1)
    assert all(span.start < span.end for span in result["spans"])
    assert result["spans"][-1].key[0] == "finish"
    assert 0 < result["spans"][-1].end - result["spans"][0].start < result["seconds"]
    # Recording ends with the trial.
    assert (PipelineStage.forward_one_chunk, Stage.finish_gradients) == (forward, finish)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("deferred", [True, False])
def test_a_single_process_has_costs_and_no_spans(model, deferred):
    result = measure_trial(World(0, 1, CPU), model, trial(model, Layout(), "1f1b", 2, deferred=deferred), steps=1)
    assert result["seconds"] > 0
    assert result["spans"] == []
    assert [[cost.name for cost in costs] for costs in result["costs"]] == [list(model.architecture.block_names)]


def test_a_trial_says_what_it_is(model, tmp_path):
    bench = Measurement(model.architecture, 8, 8, 1, 1, "fp32", tmp_path)
    assert str(bench.trial(Layout(1, 2, 2), 4)) == "1 replica, 2 workers, 2 stages, 1f1b, micro-batches of 2"
    assert str(bench.trial(Layout(2, 1, 1), 1)) == "2 replicas, 1 worker, 1 stage, micro-batches of 4"

"""Trained networks: their mean image, and their parallel plan."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import dataloading
from fastalex import build_architecture
from fastalex.errors import ConfigurationError
from fastalex.evaluation.ensemble import Evaluation, evaluate
from fastalex.evaluation.trained_network import TrainedNetwork, inference_plan
from fastalex.parallel.layout import Layout, ParallelPlan
from tests.fastalex.conftest import write_images
from tests.fastalex.evaluation.conftest import HERE


def test_the_mean_of_the_training_images_is_subtracted(runs, prepared, tmp_path):
    """The network sees other data with its own training mean, not with the mean of the data."""
    source = write_images(tmp_path / "source", train=2, val=3)
    (source / "val" / "red" / "000.jpg").unlink()
    other = dataloading.prepare_dataset(source, tmp_path / "other", progress=False, workers=1)
    assert not np.array_equal(other.mean_image, dataloading.Dataset(prepared).mean_image)
    network = TrainedNetwork.find(runs[0])
    assert network.mean_image_for(other) == str(prepared)
    assert network.mean_image_for(dataloading.Dataset(prepared)) is None
    plan = ParallelPlan.single(HERE.device, network.spec.build_architecture().block_names)
    evaluation = Evaluation((network,), (plan,), str(other.root), "val", 1, (1.0,), None, 4, "fp32")
    with_own = evaluate(HERE, evaluation)
    with_others = evaluate(HERE, replace(evaluation, networks=(replace(network, data=None),)))
    assert with_own is not None
    assert with_others is not None
    assert with_own.predictions.metrics.loss != with_others.predictions.metrics.loss


CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def test_the_plan_has_one_stage_per_worker_on_all_machines():
    architecture = build_architecture("krizhevsky")
    assert inference_plan([GPU], 1, architecture, 5) == ParallelPlan.single(GPU, architecture.block_names)
    plan = inference_plan([CPU, CPU], 2, architecture, 64)
    assert (plan.devices, plan.machines, plan.layout) == ((CPU, CPU), 2, Layout(1, 4, 4))
    assert (plan.schedule, plan.micro_batches) == ("gpipe", 4)
    assert sum(plan.split, ()) == architecture.block_names
    assert len(plan.split) == 4


@pytest.mark.parametrize(("batch_size", "micro_batches"), [(4, 2), (9, 3), (7, 1)])
def test_micro_batches_divide_the_batch(batch_size, micro_batches):
    plan = inference_plan([CPU] * 3, 1, build_architecture("krizhevsky"), batch_size)
    assert plan.micro_batches == micro_batches


def test_more_workers_than_blocks_are_refused():
    with pytest.raises(ConfigurationError, match="9 stages"):
        inference_plan([CPU] * 9, 1, build_architecture("krizhevsky"), 64)


def test_a_weights_file_in_a_run_folder_knows_its_data(runs, prepared, tmp_path):
    in_run = TrainedNetwork.find(runs[0] / "best.safetensors")
    assert (in_run.data, in_run.stored_size) == (str(prepared), 256)
    alone = tmp_path / "alone.safetensors"
    alone.write_bytes(in_run.weights.read_bytes())
    network = TrainedNetwork.find(alone)
    assert network.spec == in_run.spec
    assert (network.data, network.stored_size) == (None, None)

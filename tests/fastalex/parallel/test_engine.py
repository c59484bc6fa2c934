"""Micro-batches change nothing but rounding; dropout masks differ from step to step."""

from types import SimpleNamespace

import pytest
import torch

from fastalex.parallel.engine import Replica, WholeNetwork
from fastalex.parallel.pipeline import Pipeline
from tests.fastalex.parallel.conftest import CPU, single_device
from tests.fastalex.parallel.engine_workers import BATCH, batch, network


@pytest.mark.parametrize("filtered", [False, True])
@pytest.mark.parametrize("micro_batches", [2, 4, 8])
def test_micro_batches_change_nothing_but_rounding(request, micro_batches, filtered):
    if filtered:
        request.getfixturevalue("minimal_filtering")
    whole, parts = single_device(1), single_device(micro_batches)
    for name, expected in whole.items():
        # fp32 sums over the batch in another order: errors scale with the largest summands of the gradient
        scale = expected.abs().max().item()
        torch.testing.assert_close(
            parts[name],
            expected,
            rtol=1e-4,
            atol=(4e-5 if filtered else 1e-5) * scale,
            msg=lambda m, n=name: f"{n}: {m}",
        )


def test_masks_differ_from_step_to_step():
    engine = WholeNetwork(network(), CPU, BATCH)
    images, labels = batch(0)
    losses = {engine.train_step(images, labels, seed=seed)[0].item() for seed in (1, 2, 3, 1)}
    assert len(losses) == 3


def test_what_keeps_steps_out_of_cuda_graphs():
    engine = WholeNetwork(network(), CPU, BATCH)
    assert engine.capture_obstacle(None) == "CUDA graphs are off: the device is a CPU"
    engine.device = torch.device("cuda", 0)
    assert engine.capture_obstacle(None) is None
    assert engine.capture_obstacle(False) == "CUDA graphs are off, as requested"
    with pytest.raises(RuntimeError, match="WholeNetwork does not capture single passes"):
        engine.capture(lambda run: run)
    engine._replicated = engine.stage  # type: ignore[assignment]
    for requested in (None, True):
        assert engine.capture_obstacle(requested) == (
            "CUDA graphs are off: replicas exchange gradients during backward"
        )


@pytest.mark.parametrize(
    ("device", "replica", "requested", "obstacle"),
    [
        ("cuda", None, True, None),
        ("cuda", None, None, "CUDA graphs are off: for pipeline stages they are experimental and must be requested"),
        ("cuda", None, False, "CUDA graphs are off, as requested"),
        ("cuda", Replica(0, None), True, "CUDA graphs are off: replicas exchange gradients during backward"),
        ("cpu", None, True, "CUDA graphs are off: the device is a CPU"),
    ],
)
def test_what_keeps_the_passes_of_stages_out_of_cuda_graphs(device, replica, requested, obstacle):
    stages = SimpleNamespace(device=torch.device(device), _replica=replica)
    assert Pipeline.capture_obstacle(stages, requested) == obstacle  # type: ignore[arg-type]

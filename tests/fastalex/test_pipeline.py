"""One device and several give the same gradients, losses and logits, dropout included."""

from pathlib import Path

import pytest
import torch

from fastalex import launch
from fastalex.errors import ConfigurationError
from fastalex.pipeline import SingleDevice, check_micro_batches
from tests.fastalex.workers import BATCH, batch, network, pipeline_gradients

CPU = torch.device("cpu")
STEPS = 3


def single_device(micro_batches: int, precision: str = "fp32") -> dict[str, torch.Tensor]:
    """What `pipeline_gradients` saves, from one device."""
    engine = SingleDevice(network(precision), CPU, BATCH, micro_batches)
    saved = {}
    for step in range(STEPS):
        images, labels = batch(step)
        engine.stage.zero_grad()
        saved[f"{step}.counts"] = engine.train_step(images, labels, seed=step)
        saved |= {f"{step}.{name}": p.grad.clone() for name, p in engine.stage.named_parameters()}
        saved[f"{step}.logits"] = engine.logits(images).double()
    return saved


@pytest.mark.parametrize("micro_batches", [2, 4, 8])
def test_micro_batches_change_nothing_but_rounding(micro_batches):
    whole, parts = single_device(1), single_device(micro_batches)
    for name, expected in whole.items():
        # fp32 sums over the batch in another order: errors scale with the largest summands of the gradient
        scale = expected.abs().max().item()
        torch.testing.assert_close(
            parts[name], expected, rtol=1e-4, atol=1e-5 * scale, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize(
    ("stages", "micro_batches", "schedule", "precision"),
    [(2, 2, "1f1b", "fp32"), (2, 4, "gpipe", "fp32"), (3, 4, "1f1b", "fp32"), (2, 2, "1f1b", "bf16")],
)
def test_stages_give_the_gradients_of_one_device_to_the_bit(
    tmp_path: Path, monkeypatch, stages, micro_batches, schedule, precision
):
    # One thread here as in each worker: the same summation order, so the same bits.
    if (
        stages == 2
    ):  # the engine then checks every tensor's shape and dtype; it miscounts where stages send unequally often
        monkeypatch.setenv("TORCH_DISTRIBUTED_DEBUG", "DETAIL")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    path = tmp_path / "saved.pt"
    argument = {
        "path": str(path),
        "steps": STEPS,
        "micro_batches": micro_batches,
        "schedule": schedule,
        "precision": precision,
    }
    launch.run(pipeline_gradients, argument, [CPU] * stages)
    pipelined = torch.load(path)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = single_device(micro_batches, precision)
    finally:
        torch.set_num_threads(threads)
    assert set(pipelined) == set(alone)
    for name, expected in alone.items():
        assert torch.equal(pipelined[name], expected), name
    assert len({alone[f"{step}.counts"][0].item() for step in range(STEPS)}) == STEPS


def test_masks_differ_from_step_to_step():
    engine = SingleDevice(network(), CPU, BATCH)
    images, labels = batch(0)
    losses = {engine.train_step(images, labels, seed=seed)[0].item() for seed in (1, 2, 3, 1)}
    assert len(losses) == 3


@pytest.mark.parametrize(
    ("batch_size", "micro_batches", "stages", "schedule", "message"),
    [
        (30, 4, 2, "1f1b", "4 micro-batches do not divide a batch of 30; choose --micro-batches from 1, 2, 3, 5, 6"),
        (32, 0, 1, "1f1b", "--micro-batches is 0"),
        (32, 2, 4, "1f1b", "at least as many micro-batches as stages: 2 micro-batches, 4 stages"),
    ],
)
def test_what_cannot_run_is_refused(batch_size, micro_batches, stages, schedule, message):
    with pytest.raises(ConfigurationError, match=message):
        check_micro_batches(batch_size, micro_batches, stages, schedule)


def test_gpipe_runs_fewer_micro_batches_than_stages():
    check_micro_batches(32, 2, 4, "gpipe")

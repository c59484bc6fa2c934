"""Pipelines and replicas give the gradients, losses and logits of one device, dropout included."""

from pathlib import Path

import pytest
import torch

from fastalex.parallel.launch import run_workers
from fastalex.parallel.layout import Layout, ParallelPlan
from fastalex.parallel.partition import partition
from tests.fastalex.parallel.conftest import CPU, STEPS, single_device
from tests.fastalex.parallel.engine_workers import graphed_steps, network, pipeline_gradients


def workers_gradients(
    path: Path,
    layout: Layout,
    micro_batches: int,
    schedule: str,
    precision: str = "fp32",
    *,
    recorded: bool = False,
    filtered: bool = False,
) -> dict:
    """What `pipeline_gradients` saves, from as many workers as the layout has."""
    split = partition(network(precision).architecture, layout.stages)
    argument = {
        "path": str(path / "saved.pt"),
        "steps": STEPS,
        "plan": ParallelPlan((CPU,) * layout.workers, 1, layout, split, schedule, micro_batches),
        "precision": precision,
        "recorded": recorded,
        "filtered": filtered,
    }
    run_workers(pipeline_gradients, argument, [CPU] * layout.workers)
    return torch.load(path / "saved.pt")


@pytest.fixture
def one_thread(monkeypatch):
    """One thread here as in each worker: the same summation order, so the same bits."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("layout", "micro_batches", "schedule", "precision", "recorded"),
    [
        (Layout(1, 2, 2), 2, "1f1b", "fp32", False),
        (Layout(1, 2, 2), 4, "gpipe", "bf16", True),
        (Layout(1, 3, 3), 4, "1f1b", "fp32", True),
        (Layout(1, 2, 2), 4, "eager-1f1b", "fp32", True),
        (Layout(1, 2, 4), 4, "interleaved", "fp32", False),
        (Layout(1, 1, 2), 2, "interleaved", "fp32", True),
    ],
)
def test_stages_give_the_gradients_of_one_device_to_the_bit(
    request, tmp_path: Path, monkeypatch, one_thread, layout, micro_batches, schedule, precision, recorded
):
    # Replays share nothing between micro-batches, so that minimal filtering adds up in another order.
    if filtered := precision == "fp32" and not recorded:
        request.getfixturevalue("minimal_filtering")
    if layout == Layout(1, 2, 2):
        # torch then checks the shape and dtype of every tensor; it miscounts if stages send unequally often
        monkeypatch.setenv("TORCH_DISTRIBUTED_DEBUG", "DETAIL")
    pipelined = workers_gradients(
        tmp_path, layout, micro_batches, schedule, precision, recorded=recorded, filtered=filtered
    )
    alone = single_device(micro_batches, precision)
    assert set(pipelined) == set(alone)
    for name, expected in alone.items():
        assert torch.equal(pipelined[name], expected), name
    assert len({alone[f"{step}.counts"][0].item() for step in range(STEPS)}) == STEPS


@pytest.mark.parametrize(
    ("layout", "schedule", "filtered"),
    [
        (Layout(2, 2, 2), "1f1b", True),
        (Layout(2, 1, 1), "1f1b", False),
        (Layout(2, 1, 1), "1f1b", True),
        (Layout(2, 1, 2), "interleaved", False),
    ],
)
def test_replicas_give_the_gradients_of_the_whole_batch(
    request, tmp_path: Path, one_thread, layout, schedule, filtered
):
    if filtered:
        request.getfixturevalue("minimal_filtering")
    shared_out = workers_gradients(tmp_path, layout, 2, schedule, filtered=filtered)
    # Each replica's two micro-batches have the rows of one of these four, and so its roundings; the sums over replicas
    # and over micro-batches are in another order. Minimal filtering adds them up before it transforms them back, which
    # makes more of these differences.
    rounding = 4e-5 if filtered else 2e-6
    alone = single_device(4)
    assert set(shared_out) == set(alone)
    for name, expected in alone.items():
        scale = expected.abs().max().item()
        torch.testing.assert_close(
            shared_out[name], expected, rtol=1e-5, atol=rounding * scale, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("micro_batches", "precision"), [(1, "fp32"), (2, "bf16"), (4, "fp32")])
def test_passes_in_cuda_graphs_make_the_plain_steps(tmp_path: Path, micro_batches, precision):
    argument = {"path": str(tmp_path / "saved.pt"), "micro_batches": micro_batches, "precision": precision}
    run_workers(graphed_steps, argument, [torch.device("cuda", 0)])
    plain, graphed = torch.load(tmp_path / "saved.pt")
    assert (plain["kind"], graphed["kind"]) == ("TrainingStep", "GraphedPasses")
    assert graphed["said"] == []
    torch.testing.assert_close(graphed["counts"], plain["counts"], rtol=1e-3, atol=1e-3)
    rtol, atol = (1e-3, 1e-6) if precision == "fp32" else (1e-2, 1e-4)  # cuDNN may add up in another order
    for name, weight in plain["weights"].items():
        torch.testing.assert_close(graphed["weights"][name], weight, rtol=rtol, atol=atol, msg=name)

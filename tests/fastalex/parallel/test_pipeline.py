"""One device and several give the same gradients, losses and logits, dropout included."""

from pathlib import Path

import pytest
import torch

from fastalex.parallel.engine import SingleDevice
from fastalex.parallel.launch import run_workers
from fastalex.parallel.layout import Layout
from fastalex.parallel.partition import partition
from fastalex.parallel.simulate import Plan, orders
from fastalex.parallel.tuning import counted_costs
from kernels import winograd
from tests.fastalex.workers import BATCH, batch, filter_everything, graphed_steps, network, pipeline_gradients

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


@pytest.fixture
def minimal_filtering(monkeypatch):
    """Here and in the workers that are told so."""
    for name in ("_LEAST_CHANNELS", "_LEAST_TILES"):
        monkeypatch.setattr(winograd, name, getattr(winograd, name))  # to be set back
    filter_everything()


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
    stages = tuple(partition(network(precision).architecture, layout.stages))
    plan = Plan(stages, layout.ranks, BATCH // layout.replicas, micro_batches, schedule, layout.replicas)
    zero_bubble = schedule == "zero-bubble"
    passes = orders(plan, [counted_costs(network().architecture, plan.batch_size)]) if zero_bubble else None
    if passes is not None and layout.ranks == 2 and layout.replicas == 1:
        assert any(kind == "weight" for order in passes for kind, _, _ in order)  # and not only whole backward passes
    argument = {
        "path": str(path / "saved.pt"),
        "orders": passes,
        "steps": STEPS,
        "layout": layout,
        "micro_batches": micro_batches,
        "schedule": schedule,
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
        (Layout(1, 2, 5), 4, "zero-bubble", "fp32", False),
        (Layout(1, 2, 4), 4, "zero-bubble", "bf16", False),
        (Layout(1, 1, 3), 2, "zero-bubble", "fp32", False),
    ],
)
def test_stages_give_the_gradients_of_one_device_to_the_bit(
    request, tmp_path: Path, monkeypatch, one_thread, layout, micro_batches, schedule, precision, recorded
):
    # Replays share nothing between micro-batches, so that minimal filtering adds up in another order.
    if filtered := precision == "fp32" and not recorded:
        request.getfixturevalue("minimal_filtering")
    if layout == Layout(1, 2, 2):
        # the engine then checks every tensor's shape and dtype; it miscounts where stages send unequally often
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
        (Layout(2, 2, 3), "zero-bubble", True),
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


def test_masks_differ_from_step_to_step():
    engine = SingleDevice(network(), CPU, BATCH)
    images, labels = batch(0)
    losses = {engine.train_step(images, labels, seed=seed)[0].item() for seed in (1, 2, 3, 1)}
    assert len(losses) == 3

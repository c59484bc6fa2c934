"""Pipelines and replicas give the gradients, losses and logits of one device, dropout included."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from fastalex.network.precision import Precision
from fastalex.parallel.launch import run_workers
from fastalex.parallel.layout import Layout, ParallelPlan, ScheduleName
from fastalex.parallel.partition import partition
from tests.fastalex.parallel.conftest import CPU, STEPS, single_device
from tests.fastalex.parallel.engine_workers import graphed_steps, network, pipelines_gradients


@dataclass(frozen=True)
class Case:
    """A pipeline or replicas, and how they run."""

    layout: Layout
    micro_batches: int
    schedule: ScheduleName
    precision: Precision = "fp32"
    recorded: bool = False
    filtered: bool = False
    """By minimal filtering. Replays share nothing between micro-batches, so that it adds up in another order there."""

    def argument(self, path: Path) -> dict:
        """What `pipeline_gradients` takes."""
        split = partition(network(self.precision).architecture, self.layout.stages)
        devices = (CPU,) * self.layout.workers
        return {
            "path": str(path),
            "steps": STEPS,
            "plan": ParallelPlan(devices, 1, self.layout, split, self.schedule, self.micro_batches),
            "precision": self.precision,
            "recorded": self.recorded,
            "filtered": self.filtered,
        }


# The cases of a tuple run in the same workers. torch checks the shape and dtype of every tensor of CHECKED; it would
# miscount if stages sent unequally often, as those of an interleaved schedule do.
CHECKED = (
    Case(Layout(1, 2, 2), 2, "1f1b", filtered=True),
    Case(Layout(1, 2, 2), 4, "gpipe", "bf16", recorded=True),
    Case(Layout(1, 2, 2), 4, "eager-1f1b", recorded=True),
)
INTERLEAVED = Case(Layout(1, 2, 4), 4, "interleaved", filtered=True)
REPLICAS = (
    Case(Layout(2, 1, 1), 2, "1f1b"),
    Case(Layout(2, 1, 1), 2, "1f1b", filtered=True),
    Case(Layout(2, 1, 2), 2, "interleaved"),
)
THREE_STAGES = Case(Layout(1, 3, 3), 4, "1f1b", recorded=True)
ONE_WORKER = Case(Layout(1, 1, 2), 2, "interleaved", recorded=True)
REPLICAS_OF_STAGES = Case(Layout(2, 2, 2), 2, "1f1b", filtered=True)
LAUNCHES = (CHECKED, (INTERLEAVED, *REPLICAS), (THREE_STAGES,), (ONE_WORKER,), (REPLICAS_OF_STAGES,))


@pytest.fixture(scope="module")
def workers_gradients(tmp_path_factory):
    """What `pipeline_gradients` saves, by case. The workers of a launch start at the first of its cases."""
    folder, paths = tmp_path_factory.mktemp("pipelines"), {}

    def saved(case: Case) -> dict[str, torch.Tensor]:
        launch = next(launch for launch in LAUNCHES if case in launch)
        if case not in paths:
            paths.update({member: folder / f"{len(paths) + index}.pt" for index, member in enumerate(launch)})
            arguments = [member.argument(paths[member]) for member in launch]
            with pytest.MonkeyPatch.context() as patch:
                if launch is CHECKED:
                    patch.setenv("TORCH_DISTRIBUTED_DEBUG", "DETAIL")
                run_workers(pipelines_gradients, arguments, [CPU] * case.layout.workers)
        return torch.load(paths[case])

    return saved


@pytest.fixture
def one_thread(monkeypatch):
    """One thread here as in each worker: the same summation order, so the same bits."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("case", [*CHECKED, INTERLEAVED, THREE_STAGES, ONE_WORKER])
def test_stages_give_the_gradients_of_one_device_to_the_bit(request, one_thread, workers_gradients, case):
    pipelined = workers_gradients(case)
    if case.filtered:
        request.getfixturevalue("minimal_filtering")
    alone = single_device(case.micro_batches, case.precision)
    assert set(pipelined) == set(alone)
    for name, expected in alone.items():
        assert torch.equal(pipelined[name], expected), name
    assert len({alone[f"{step}.counts"][0].item() for step in range(STEPS)}) == STEPS


@pytest.mark.parametrize("case", [*REPLICAS, REPLICAS_OF_STAGES])
def test_replicas_give_the_gradients_of_the_whole_batch(request, one_thread, workers_gradients, case):
    shared_out = workers_gradients(case)
    if case.filtered:
        request.getfixturevalue("minimal_filtering")
    # Each replica's two micro-batches have the rows of one of these four, and so its roundings; the sums over replicas
    # and over micro-batches are in another order. Minimal filtering adds them up before it transforms them back, which
    # makes more of these differences.
    rounding = 4e-5 if case.filtered else 2e-6
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

"""One eager training step: seeds and rates from memory, skipped updates, and the counts of bad steps."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import kernels
from fastalex.errors import ConfigurationError
from fastalex.network.model import AlexNet
from fastalex.network.precision import Precision
from fastalex.parallel.engine import WholeNetwork
from fastalex.recipes.optimizer import KrizhevskySGD
from fastalex.recipes.schedule import Recipe
from fastalex.training.graphed_step import build_step
from fastalex.training.step import OverlappedUpdate, TrainingStep
from tests.fastalex.parallel.engine_workers import BATCH, CLASSES, batch

RECIPE = Recipe("test", epochs=1, batch_size=BATCH, lr=1e-3)
CUDA = torch.cuda.is_available()
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not CUDA, reason="needs a GPU"))]


def build(device: str = "cpu", micro_batches: int = 1, precision: Precision = "fp32", **options) -> TrainingStep:
    model = AlexNet("krizhevsky", CLASSES, seed=4, width=1 / 16, lrn=False, dropout=0.5)
    model.set_precision(precision)
    with torch.no_grad():
        for block in model.blocks():
            block.weight.mul_(3)
    engine = WholeNetwork(model, torch.device(device), BATCH, micro_batches)
    optimizer = KrizhevskySGD(engine.stage, RECIPE, engine.stage.compute_copies())
    return build_step(engine, optimizer, **options)


def weights(step: TrainingStep) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().cpu().clone() for name, parameter in step.engine.stage.named_parameters()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor], device: str = "cpu") -> bool:
    """To the last bit on a CPU; on a GPU convolutions may add up in another order."""
    if device == "cpu":
        return all(torch.equal(first[name], second[name]) for name in first)
    return all(torch.allclose(first[name], second[name], rtol=1e-3, atol=1e-6) for name in first)


@pytest.mark.parametrize("device", DEVICES)
def test_a_key_in_memory_makes_the_step_that_the_number_makes(device):
    made = {}
    for kind in ("number", "tensor", "other number"):
        step = build(device, graphs=False)
        for number in range(2):
            images, labels = batch(number)
            seed = number + (7 if kind == "other number" else 0)
            key = torch.tensor(seed, device=device) if kind == "tensor" else seed
            step(images, labels, key)  # type: ignore[arg-type]
        made[kind] = weights(step)
    assert same(made["number"], made["tensor"], device)
    assert not same(made["number"], made["other number"], device)  # the masks did depend on it


class _Streams:
    """Stands for CUDA's streams: writes down what each is told, and in which one weights change."""

    def __init__(self, patched: pytest.MonkeyPatch) -> None:
        self.log: list[tuple[str, ...]] = []
        self.current = self.stream("main")
        patched.setattr(torch.cuda, "Stream", lambda _: self.stream("second"))
        patched.setattr(torch.cuda, "current_stream", lambda _: self.current)
        patched.setattr(torch.cuda, "stream", self.switched)
        patched.setattr(torch.Tensor, "record_stream", lambda _, stream: self.log.append(("keep", stream.name)))

    def stream(self, name: str) -> SimpleNamespace:
        made = SimpleNamespace(name=name)
        made.wait_stream = lambda other: self.log.append((name, "waits for", other.name))
        return made

    @contextmanager
    def switched(self, stream: SimpleNamespace) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before


def overlapped(monkeypatch: pytest.MonkeyPatch, micro_batches: int) -> tuple[TrainingStep, _Streams]:
    """A step whose update overlaps its backward pass, on a CPU. The streams' log names the weights of each update."""
    streams, step = _Streams(monkeypatch), build(micro_batches=micro_batches)
    monkeypatch.setattr(step.engine, "device", torch.device("cuda", 0))
    step._overlapped = OverlappedUpdate(step.engine, step.optimizer)
    monkeypatch.setattr(step.engine, "device", torch.device("cpu"))
    names = {id(parameter): name for name, parameter in step.engine.stage.named_parameters()}
    update = kernels.sgd_update_

    def logged(weights, *others, **options):
        streams.log.append(
            (streams.current.name, "updates", *(names.get(id(weight), "another step's") for weight in weights))
        )
        update(weights, *others, **options)

    monkeypatch.setattr(kernels, "sgd_update_", logged)
    return step, streams


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_an_overlapped_update_makes_the_same_steps(micro_batches, monkeypatch):
    expected = build(micro_batches=micro_batches)
    step, _ = overlapped(monkeypatch, micro_batches)
    for number in range(3):
        images, labels = batch(number)
        counts, others = expected(images, labels, number), step(images, labels, number)
        assert counts is not None
        assert others is not None
        assert torch.equal(counts, others)
    assert same(weights(step), weights(expected))
    velocities = [[s.optimizer.velocity(p) for p in s.engine.stage.parameters()] for s in (step, expected)]
    assert all(torch.equal(one, other) for one, other in zip(*velocities, strict=True))


def test_the_streams_of_an_overlapped_update_wait_for_each_other(monkeypatch):
    step, streams = overlapped(monkeypatch, 2)
    step(*batch(0), 0)
    fork, keep = ("second", "waits for", "main"), [("keep", "second")] * 4  # rows and gradients of two micro-batches
    layers = [("second", "updates", f"{name}.weight") for name in ("fc8", "fc7", "fc6")]
    early = [event for layer in layers for event in (fork, *keep, layer)]
    others = [name for name, _ in step.engine.stage.named_parameters() if name[:2] != "fc" or name.endswith("bias")]
    assert streams.log == [*early, ("main", "waits for", "second"), ("main", "updates", *others)]


def test_an_overlapped_update_happens_within_steps_only(monkeypatch):
    """A failed step, too, waits for the second stream, and passes outside of a step update nothing."""
    step, streams = overlapped(monkeypatch, 1)
    before = weights(step)
    with monkeypatch.context() as patched:
        patched.setattr(step.engine, "train_step", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            step(*batch(0), 0)
    assert streams.log == [("main", "waits for", "second")]
    step.engine.train_step(*batch(0), 0)
    assert same(weights(step), before)
    assert len(streams.log) == 1


def test_an_update_that_cannot_overlap_is_refused():
    with pytest.raises(
        ConfigurationError, match="overlap_update needs one GPU that holds the whole network, got Whole"
    ):
        build(overlap_update=True)
    with pytest.raises(ConfigurationError, match="overlap_update needs on_non_finite stop, got skip: leave one"):
        build(overlap_update=True, on_non_finite="skip")


@pytest.mark.skipif(not CUDA, reason="needs a GPU")
@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_overlapped_update_makes_the_same_steps_on_a_gpu(graphs, precision):
    made = []
    for overlap_update in (False, True):
        step = build("cuda", graphs=graphs, overlap_update=overlap_update, precision=precision)
        for number in range(8):
            images, labels = batch(number)
            step(images, labels, number)
        made.append(weights(step))
    assert same(*made, "cuda")


def test_rates_are_read_from_the_same_memory_in_every_step():
    step = build()
    images, labels = batch(0)
    address = step.optimizer.rates.data_ptr()
    before = weights(step)
    step.optimizer.recipe = replace(RECIPE, lr=0.0)
    step.optimizer.set_epoch(1)
    step(images, labels, 0)
    assert same(weights(step), before)
    step.optimizer.recipe = RECIPE
    step.optimizer.set_epoch(1)
    step(images, labels, 0)
    assert not same(weights(step), before)
    assert step.optimizer.rates.data_ptr() == address


@pytest.mark.parametrize("device", DEVICES)
def test_a_step_that_is_not_finite_is_skipped_and_the_next_one_is_as_if_it_had_not_been(device):
    clean, dirty = build(device, on_non_finite="skip"), build(device, on_non_finite="skip")
    images, labels = batch(0)
    ruined = images.clone()
    ruined[3, 1, 5, 5] = float("nan")
    for number in range(8):
        if number in (1, 6):  # before and after a capture
            counts = dirty(ruined, labels, 50)
            assert counts is not None
            assert counts.tolist() == [0, 0, 0, 0]
        counts = dirty(images, labels, number)
        assert counts is not None
        assert counts[3] == BATCH
        clean(images, labels, number)
    assert same(weights(clean), weights(dirty), device)
    assert (int(clean.skipped), int(dirty.skipped)) == (0, 2)
    assert (int(clean.first_bad), int(dirty.first_bad)) == (0, 2)


def test_gradients_that_are_not_finite_are_skipped_too():
    step = build(on_non_finite="skip")
    images, labels = batch(0)
    step.engine.stage.get_parameter("conv3.weight").register_hook(lambda gradient: gradient * float("inf"))
    before = weights(step)
    step(images, labels, 0)
    assert same(weights(step), before)
    assert int(step.skipped) == 1
    assert int(step.first_bad) == 0  # the loss itself was finite


def test_a_loss_that_is_not_finite_is_skipped_though_all_gradients_are():
    step = build(on_non_finite="skip")
    images, labels = batch(0)
    compute = step.engine.train_step

    def overflow(*arguments):
        counts = compute(*arguments)
        assert counts is not None
        return counts + torch.tensor([float("inf"), 0, 0, 0])

    before = weights(step)
    step.engine.train_step = overflow  # type: ignore[method-assign]
    step(images, labels, 0)
    assert same(weights(step), before)
    assert (int(step.skipped), int(step.first_bad)) == (1, 1)


def test_a_step_is_skipped_if_another_worker_cannot_make_it():
    asked = []

    def another_cannot(own: torch.Tensor) -> None:
        asked.append(own.tolist())
        own.zero_()

    step = build(on_non_finite="skip", agree=another_cannot)
    images, labels = batch(0)
    before = weights(step)
    counts = step(images, labels, 0)
    assert counts is not None
    assert counts.tolist() == [0, 0, 0, 0]
    assert same(weights(step), before)
    assert (asked, int(step.skipped), int(step.first_bad)) == ([1.0], 1, 0)


def test_a_step_starts_without_the_gradients_of_the_one_before():
    step = build()
    step(*batch(0), 0)
    assert all(parameter.grad is None for parameter in step.engine.stage.parameters())


def test_without_skipping_the_first_bad_step_is_known():
    step = build()
    images, labels = batch(0)
    for ruin in (False, False, True, True):
        step(images * (float("nan") if ruin else 1.0), labels, 0)
    assert int(step.first_bad) == 3
    assert int(step.skipped) == 0

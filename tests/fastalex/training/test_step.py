"""One training step: keys and rates from memory, skipped updates, late counts, and what becomes of a failed capture."""

import weakref
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from fastalex.network.model import AlexNet
from fastalex.parallel import cuda_graphs as captured
from fastalex.parallel.cuda_graphs import GraphedStage
from fastalex.parallel.engine import SingleDevice
from fastalex.parallel.pipeline import Pipeline
from fastalex.recipes.optimizer import KrizhevskySGD
from fastalex.recipes.schedule import Recipe
from fastalex.training.graphed_step import WARM_UP_STEPS, GraphedPasses, GraphedStep, build_step, capture_obstacle
from fastalex.training.readback import DelayedReadback
from fastalex.training.step import TrainingStep
from tests.fastalex.workers import BATCH, CLASSES, batch, network

RECIPE = Recipe("test", epochs=1, batch_size=BATCH, lr=1e-3)
CUDA = torch.cuda.is_available()
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not CUDA, reason="needs a GPU"))]


def build(device: str = "cpu", micro_batches: int = 1, **options) -> TrainingStep:
    model = AlexNet("krizhevsky", CLASSES, seed=4, width=1 / 16, lrn=False, dropout=0.5)
    with torch.no_grad():
        for block in model.blocks():
            block.weight.mul_(3)
    engine = SingleDevice(model, torch.device(device), BATCH, micro_batches)
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


def test_rates_are_read_from_the_same_memory_in_every_step():
    step = build()
    images, labels = batch(0)
    address = step.optimizer.rates.data_ptr()
    before = weights(step)
    step.optimizer.recipe = replace(RECIPE, lr=0.0)
    step.optimizer.set_epoch(0)
    step(images, labels, 0)
    assert same(weights(step), before)
    step.optimizer.recipe = RECIPE
    step.optimizer.set_epoch(0)
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


def test_without_skipping_the_first_bad_step_is_known():
    step = build()
    images, labels = batch(0)
    for ruin in (False, False, True, True):
        step(images * (float("nan") if ruin else 1.0), labels, 0)
    assert int(step.first_bad) == 3
    assert int(step.skipped) == 0


@pytest.mark.parametrize("delay", [0, 1, 3])
def test_late_reading_keeps_everything_in_order(delay):
    reader: DelayedReadback[int] = DelayedReadback(delay)
    values, seen = torch.zeros(2), []
    for number in range(7):
        values += 1
        reader.put(values, number)
        seen += reader.take()
        assert len(seen) == max(0, number + 1 - delay)
    seen += reader.take(everything=True)
    assert [tag for _, tag in seen] == list(range(7))
    assert [vector.tolist() for vector, _ in seen] == [[number + 1.0] * 2 for number in range(7)]
    assert reader.take(everything=True) == []


def pipeline(*, replicated: bool = False, zero_bubble: bool = False) -> Pipeline:
    """A pipeline on a GPU, as far as it can be told without one."""
    engine = Pipeline.__new__(Pipeline)
    engine.device, engine.replicated = torch.device("cuda"), replicated
    engine._replayed = [] if replicated or zero_bubble else [GraphedStage(torch.nn.Identity(), torch.device("cpu"))]  # type: ignore[arg-type]
    return engine


@pytest.mark.parametrize(
    ("replicated", "graphs", "expected"),
    [
        (False, None, "CUDA graphs are off: those of stages are new and have to be asked for (--cuda-graphs)"),
        (False, False, "CUDA graphs are off, as was asked for"),
        (True, True, "CUDA graphs are off: replicas exchange gradients in the middle of a step"),
    ],
)
def test_steps_that_are_not_captured_have_a_reason(monkeypatch, replicated, graphs, expected):
    monkeypatch.setattr(TrainingStep, "__init__", lambda *_: None)
    engine = pipeline(replicated=replicated)
    assert capture_obstacle(engine, graphs) == expected
    assert type(build_step(engine, None, graphs=graphs)) is TrainingStep  # type: ignore[arg-type]


def test_passes_of_zero_bubble_are_not_captured():
    expected = "CUDA graphs are off: passes of the zero-bubble schedule are not captured"
    assert capture_obstacle(pipeline(zero_bubble=True), True) == expected


def test_stages_on_gpus_are_captured_where_that_is_asked_for(without_cuda):
    engine = pipeline()
    assert capture_obstacle(engine, True) is None
    without_cuda.setattr(TrainingStep, "__init__", lambda step, engine, *_: setattr(step, "engine", engine))
    assert type(build_step(engine, None, graphs=True)) is GraphedPasses  # type: ignore[arg-type]


def test_a_cpu_captures_nothing():
    step = build(graphs=True)
    assert type(step) is TrainingStep
    assert capture_obstacle(step.engine, True) == "CUDA graphs are off: this is a CPU"


class _Recorder:
    """Stands for CUDA where there is none: a capture runs the code under it once, a replay does nothing."""

    def __init__(self, error: str | None = None) -> None:
        self.error, self.captures = error, 0
        self.images: list[weakref.ref] = []
        self.dropped = 0  # of these, before the end of a capture

    def __call__(self, graph, stream, **_):
        self.captures += 1
        self.stream = stream
        return self

    def __enter__(self):
        self.before = torch.cuda.current_stream(None)
        torch.cuda.set_stream(self.stream)

    def __exit__(self, *_):
        self.dropped += sum(image() is None for image in self.images)
        if self.error:  # as in torch, the stream is then not put back
            raise RuntimeError(self.error)
        torch.cuda.set_stream(self.before)


@pytest.fixture
def without_cuda(monkeypatch):
    """`torch.cuda`'s streams do nothing, so that the order of GraphedStep's calls can be followed on a CPU."""
    current, capturing = (SimpleNamespace(wait_stream=lambda _: None, device=torch.device("cuda", 0)) for _ in range(2))
    streams = [current]
    monkeypatch.setattr(torch.cuda, "Stream", lambda _: capturing)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: streams[-1])
    monkeypatch.setattr(torch.cuda, "set_stream", streams.append)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, stream: None)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=lambda: None))
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(captured, "_leave_pool", lambda *_: None)
    return monkeypatch


def test_a_capture_that_fails_says_so_once_and_the_run_goes_on_unchanged(without_cuda):
    recorder = _Recorder("operation not permitted when stream is capturing\nmore")
    without_cuda.setattr(torch.cuda, "graph", recorder)
    current = torch.cuda.current_stream(None)
    said: list[str] = []
    expected, other = build(), build()
    graphed = GraphedStep(other.engine, other.optimizer, say=said.append)
    for number in range(6):
        images, labels = batch(number)
        expected(images, labels, number)
        graphed(images, labels, number)
    assert recorder.captures == 1
    assert said == ["CUDA graphs are off, as the capture failed: operation not permitted when stream is capturing"]
    assert same(weights(graphed), weights(expected))
    assert torch.cuda.current_stream(None) is current


@pytest.mark.parametrize("error", [None, "operation not permitted when stream is capturing"])
def test_passes_are_captured_once_and_before_that_no_image_is_given_back(without_cuda, monkeypatch, error):
    events: list[str] = []
    held: list[weakref.ref] = []

    def record(_):
        events.append("record")
        assert all(image() is not None for image in held)  # the loader would synchronise
        if error:
            try:
                raise RuntimeError(error)
            finally:
                raise RuntimeError("operation failed due to a previous error during capture")

    step = build()
    monkeypatch.setattr(step.engine, "record", record, raising=False)
    compute = step.engine.train_step
    monkeypatch.setattr(step.engine, "train_step", lambda *given: events.append("step") or compute(*given))
    said: list[str] = []
    passes = GraphedPasses(step.engine, step.optimizer, say=said.append)  # type: ignore[arg-type]
    for number in range(WARM_UP_STEPS + 3):
        images, labels = batch(number)
        held.append(weakref.ref(images))
        passes(images, labels, number)
    del images
    assert events == ["step"] * WARM_UP_STEPS + ["record"] + ["step"] * 3
    assert said == ([f"CUDA graphs are off, as the capture failed: {error}"] if error else [])
    assert all(image() is None for image in held)


def test_the_steps_before_a_capture_are_steps_of_the_run(without_cuda):
    recorder = _Recorder()
    without_cuda.setattr(torch.cuda, "graph", recorder)
    expected, other = build(), build()
    graphed = GraphedStep(other.engine, other.optimizer)
    for number in range(WARM_UP_STEPS):
        images, labels = batch(number)
        recorder.images.append(weakref.ref(images))
        counts, others = expected(images, labels, number), graphed(images, labels, number)
        assert counts is not None
        assert others is not None
        assert torch.equal(counts, others)
    del images
    assert recorder.captures == 0
    assert same(weights(graphed), weights(expected))
    graphed(*batch(9), 9)
    assert recorder.captures == 2  # gradients, then the update, which needs their addresses
    assert recorder.dropped == 0  # the loader would synchronise
    assert all(image() is None for image in recorder.images)


@pytest.mark.skipif(not CUDA, reason="needs a GPU")
@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("on_non_finite", ["stop", "skip"])
def test_steady_steps_never_wait_for_the_device(graphs, on_non_finite):
    step = build("cuda", graphs=graphs, on_non_finite=on_non_finite)
    images, labels = (tensor.cuda() for tensor in batch(0))
    late: DelayedReadback[int] = DelayedReadback(1)

    def steps(numbers: range) -> None:
        for number in numbers:
            step.optimizer.set_warmup(1 / (20 - number))
            counts = step(images, labels, number)
            assert counts is not None
            late.put(counts, number)

    steps(range(6))
    torch.cuda.set_sync_debug_mode("error")
    try:
        steps(range(6, 12))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert [number for _, number in late.take(everything=True)] == list(range(12))


@pytest.mark.skipif(not CUDA, reason="needs a GPU")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_replays_are_the_plain_steps(precision):
    made = []
    for graphs in (False, True):
        model = network(precision)
        engine = SingleDevice(model, torch.device("cuda"), BATCH)
        optimizer = KrizhevskySGD(engine.stage, RECIPE, engine.stage.compute_copies())
        said: list[str] = []
        step = build_step(engine, optimizer, graphs=graphs, say=said.append)
        counts = []
        for number in range(8):
            if number == 6:
                optimizer.recipe = replace(RECIPE, lr=1e-4)
                optimizer.set_epoch(0)
            images, labels = batch(number)
            counts.append(step(images.cuda(), labels.cuda(), number).clone())
        assert said == []
        made.append((torch.stack(counts).cpu(), weights(step)))
    torch.testing.assert_close(made[0][0], made[1][0], rtol=1e-3, atol=1e-3)
    assert same(made[0][1], made[1][1], "cuda")

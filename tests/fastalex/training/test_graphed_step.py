"""Steps from CUDA graphs: which step an engine gets, the order of a capture, and what happens when it fails."""

import weakref
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from fastalex.parallel import cuda_graphs
from fastalex.parallel.engine import WholeNetwork
from fastalex.parallel.pipeline import Pipeline
from fastalex.recipes.optimizer import KrizhevskySGD
from fastalex.training.graphed_step import WARM_UP_STEPS, GraphedPasses, GraphedStep, build_step
from fastalex.training.readback import DelayedReadback
from fastalex.training.step import TrainingStep
from tests.fastalex.parallel.engine_workers import BATCH, batch, network
from tests.fastalex.training.test_step import CUDA, RECIPE, build, same, weights


class _Engine(SimpleNamespace):
    """An engine as far as :func:`build_step` asks it."""

    def capture_obstacle(self, requested):
        return None if requested else "not requested"


@pytest.mark.parametrize(
    ("captures_passes", "graphs", "expected"),
    [(False, True, GraphedStep), (True, True, GraphedPasses), (False, False, TrainingStep), (True, None, TrainingStep)],
)
def test_the_engine_says_how_its_steps_are_captured(without_cuda, captures_passes, graphs, expected):
    without_cuda.setattr(TrainingStep, "__init__", lambda step, engine, *_, **__: setattr(step, "engine", engine))
    engine = _Engine(captures_passes=captures_passes, device=torch.device("cuda"))
    assert type(build_step(engine, None, graphs=graphs)) is expected  # type: ignore[arg-type]


def test_a_cpu_captures_nothing():
    step = build(graphs=True)
    assert type(step) is TrainingStep
    assert step.engine.capture_obstacle(True) == "CUDA graphs are off: the device is a CPU"
    assert (WholeNetwork.captures_passes, Pipeline.captures_passes) == (False, True)


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
    monkeypatch.setattr(cuda_graphs, "_release_pool", lambda *_: None)
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
    assert said == ["CUDA graphs are off because the capture failed: operation not permitted when stream is capturing"]
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
    monkeypatch.setattr(step.engine, "capture", record)
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
    assert said == ([f"CUDA graphs are off because the capture failed: {error}"] if error else [])
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
        engine = WholeNetwork(model, torch.device("cuda"), BATCH)
        optimizer = KrizhevskySGD(engine.stage, RECIPE, engine.stage.compute_copies())
        said: list[str] = []
        step = build_step(engine, optimizer, graphs=graphs, say=said.append)
        counts = []
        for number in range(8):
            if number == 6:
                optimizer.recipe = replace(RECIPE, lr=1e-4)
                optimizer.set_epoch(1)
            images, labels = batch(number)
            counts.append(step(images.cuda(), labels.cuda(), number).clone())
        assert said == []
        made.append((torch.stack(counts).cpu(), weights(step)))
    torch.testing.assert_close(made[0][0], made[1][0], rtol=1e-3, atol=1e-3)
    assert same(made[0][1], made[1][1], "cuda")

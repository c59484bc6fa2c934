"""The worker processes of bench/pipeline.py, in a module of their own because new processes import it by name."""

from __future__ import annotations

import gc
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.pipelining import PipelineStage

from fastalex.network.architecture import Architecture
from fastalex.network.model import AlexNet, Stage
from fastalex.network.precision import Precision, configure_libraries
from fastalex.parallel.layout import Layout, ParallelPlan
from fastalex.parallel.pipeline import build_engine
from fastalex.parallel.world import World
from fastalex.recipes.optimizer import KrizhevskySGD
from fastalex.recipes.published import krizhevsky
from fastalex.training.graphed_step import WARM_UP_STEPS, build_step
from fastalex.training.memory import keep_freed_memory
from pipelining.block_timing import measure_costs, measure_links
from pipelining.simulation import Key, Span

WARM_UP = 1
"""Untimed steps without CUDA graphs; the first one allocates memory."""


@dataclass(frozen=True)
class Trial:
    """One configuration to time.

    Attributes:
        plan: how workers share the work.
        batch_size: images of all replicas per step.
        threads: of each worker.
        deferred: whether weight gradients are deferred as in training. False computes all of them in the backward
            pass of their micro-batch.
        graphs: whether steps run from CUDA graphs.
    """

    plan: ParallelPlan
    batch_size: int
    threads: int = 1
    deferred: bool = True
    graphs: bool = False

    @property
    def rows(self) -> int:
        """Images per step of one replica."""
        return self.batch_size // self.plan.layout.replicas

    def __str__(self) -> str:
        layout, parts = self.plan.layout, []
        for count, name in ((layout.replicas, "replica"), (layout.ranks, "worker"), (layout.stages, "stage")):
            parts.append(f"{count} {name}" + "s" * (count > 1))
        schedule = f", {self.plan.schedule}" if layout.stages > 1 else ""
        return f"{', '.join(parts)}{schedule}, micro-batches of {self.rows // self.plan.micro_batches}"


@dataclass(frozen=True)
class Job:
    """What a group of workers does: measure costs and links, then time all trials in turn, round after round.

    Attributes:
        trials: those with a single worker run on the first worker while the others wait.
        sizes: micro-batch sizes at which costs are measured; empty measures none.
        layouts: layouts whose links are measured.
        batch_size: images per step for which costs are measured.
        steps: timed steps of each trial in a round, after the warm-up.
        threads: of each worker while costs are measured.
        path: file for the results.
    """

    architecture: Architecture
    trials: Sequence[Trial]
    sizes: Sequence[int]
    layouts: Sequence[Layout]
    batch_size: int
    steps: int
    rounds: int
    threads: int
    precision: Precision
    path: str


def run(world: World, job: Job) -> None:
    """Save `{"costs", "links": {layout: (link, reduce_link)}, "rounds"}`.

    Each round has a `{"seconds", "spans", "costs"}` for every trial.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)  # there is nothing to save: end at once
    if world.device.type == "cpu":
        torch.set_num_threads(job.threads)
        keep_freed_memory()  # like the trainer
    configure_libraries(job.precision)
    model = AlexNet(job.architecture, seed=0)
    model.set_precision(job.precision)
    saved: dict[str, Any] = {"links": {}}
    if job.sizes:
        world.arrange(Layout(1, world.size, world.size))
        saved["costs"] = measure_costs(world, model, job.batch_size, job.sizes)
    for layout in job.layouts:
        world.arrange(layout)
        saved["links"][layout] = measure_links(world)
    saved["rounds"] = []
    for _ in range(job.rounds):
        saved["rounds"].append([])
        for trial in job.trials:
            measurement = measure_trial(world, model, trial, job.steps)
            saved["rounds"][-1].append(measurement)
            if world.is_first:
                rate = job.steps * trial.batch_size / measurement["seconds"]
                print(f"{trial}: {rate:.1f} images/s", flush=True)
    if world.is_first:
        torch.save(saved, job.path)


def measure_trial(world: World, model: AlexNet, trial: Trial, steps: int) -> dict[str, Any]:
    """The costs of the blocks at this moment, and the time of a trial's steps."""
    alone = trial.plan.layout.workers == 1 < world.size
    result = {}
    if world.is_first or not alone:
        torch.set_num_threads(trial.threads)
        own = World(0, 1, world.device) if alone else world
        own.arrange(trial.plan.layout)
        costs = measure_costs(own, model, trial.rows, [trial.rows // trial.plan.micro_batches])
        result = time_steps(own, model, trial, steps) | {"costs": costs}
    world.barrier()
    return result


def time_steps(world: World, model: AlexNet, trial: Trial, steps: int) -> dict[str, Any]:
    """Seconds of all timed steps, and the spans of the last one on all workers.

    Each worker is timed from the end of its last warm-up step: a training run fills the pipeline once, not every few
    steps.
    """
    # Build the engine, the optimizer and one batch.
    engine = build_engine(model, world, trial.plan, trial.batch_size)
    if not trial.deferred:
        engine.stage.configure_deferral(1, convolutions=False)
    optimizer = KrizhevskySGD(engine.stage, krizhevsky(), engine.stage.compute_copies())
    architecture = engine.stage.architecture
    generator = torch.Generator().manual_seed(world.replica)
    images = 60 * torch.randn(trial.rows, 3, architecture.image_size, architecture.image_size, generator=generator)
    images = images.contiguous(memory_format=torch.channels_last).to(world.device)
    labels = torch.arange(trial.rows, device=world.device) % architecture.num_classes
    inputs = images if engine.is_first else None, labels if engine.is_last else None
    # Run the steps; the recording of the last one is kept.
    start, warm_up = 0.0, WARM_UP_STEPS + 2 if trial.graphs else WARM_UP
    step = build_step(engine, optimizer, graphs=trial.graphs)
    is_recorded = trial.plan.layout.stages > 1 and not trial.graphs  # a graph cannot contain our events
    recorder = Recorder(world)
    with recorder.recording() if is_recorded else recorder.idle():
        for number in range(steps + warm_up):
            if number == warm_up:
                start = _now(world)
            recorder.begin_step()
            step(*inputs, number)
            recorder.end_step()
    seconds = _now(world) - start
    # Collect the spans of all workers, and free what the trial allocated.
    gathered = world.gather_objects(recorder.seconds())
    spans = [Span(rank, *span) for rank, own in enumerate(gathered) for span in own]
    for parameter in model.parameters():
        parameter.grad = None
    del engine, optimizer, step
    gc.collect()  # removes the hooks of DistributedDataParallel from the parameters
    return {"seconds": max(world.gather_objects(seconds)), "spans": spans}


class Recorder:
    """Records when the passes of a pipeline's stages start and end, and when the step is finished."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._spans: list[tuple[Key, Any, Any]] = []
        self._finish: Any = None

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Wrap the methods that run passes and finish gradients, for all pipelines of this process."""
        wrapped = {"forward_one_chunk": "forward", "backward_one_chunk": "backward"}
        originals = {name: getattr(PipelineStage, name) for name in wrapped}
        finish_gradients = Stage.finish_gradients
        for name, kind in wrapped.items():
            setattr(PipelineStage, name, self._recorded(originals[name], kind))

        def finish(stage: Stage) -> None:
            if self._finish is None:
                self._finish = self._mark()
            finish_gradients(stage)

        Stage.finish_gradients = finish  # type: ignore[assignment]  # mypy allows no method to be replaced
        try:
            yield
        finally:
            for name, method in originals.items():
                setattr(PipelineStage, name, method)
            Stage.finish_gradients = finish_gradients  # type: ignore[method-assign]

    @contextmanager
    def idle(self) -> Iterator[None]:
        """Record nothing."""
        yield

    def begin_step(self) -> None:
        """Forget the previous step."""
        self._spans.clear()
        self._finish = None

    def end_step(self) -> None:
        """Note the end of the update."""
        if self._finish is not None:
            self._spans.append((("finish", self._world.replica, 0, 0, 0), self._finish, self._mark()))

    def seconds(self) -> list[tuple[Key, float, float]]:
        """The recorded spans in seconds of `perf_counter`, which is the same clock in all processes of a machine."""
        if self._world.device.type == "cpu":
            return self._spans
        torch.cuda.synchronize()
        now, event = time.perf_counter(), self._mark()
        event.synchronize()

        def at(mark: Any) -> float:
            return now - mark.elapsed_time(event) / 1000

        return [(key, at(start), at(end)) for key, start, end in self._spans]

    def _recorded(self, run_pass: Any, kind: Any) -> Any:
        def recorded(stage: Any, micro_batch: int, *arguments: Any, **options: Any) -> Any:
            start = self._mark()
            result = run_pass(stage, micro_batch, *arguments, **options)
            key: Key = (kind, self._world.replica, stage.stage_index, micro_batch, 0)
            self._spans.append((key, start, self._mark()))
            return result

        return recorded

    def _mark(self) -> Any:
        """The current time; on a GPU an event, which needs no synchronisation."""
        if self._world.device.type == "cpu":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def _now(world: World) -> float:
    """The time at which this worker's device has finished its work."""
    if world.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()

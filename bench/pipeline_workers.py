"""What the workers of bench/pipeline.py run; here because a new process imports it by name."""

from __future__ import annotations

import gc
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fastalex.network.architecture import Architecture
from fastalex.network.blocks import Convolution
from fastalex.network.model import AlexNet
from fastalex.network.precision import configure_libraries
from fastalex.parallel.engine import DataParallel, Replica, SingleDevice
from fastalex.parallel.layout import Layout, ScheduleName
from fastalex.parallel.pipeline import Pipeline
from fastalex.parallel.simulate import Key, Orders, Span
from fastalex.parallel.tuning import measure_costs, measure_links
from fastalex.parallel.world import World
from fastalex.recipes.optimizer import KrizhevskySGD
from fastalex.recipes.published import krizhevsky
from fastalex.training.allocator import keep_freed_memory
from fastalex.training.graphed_step import WARM_UP_STEPS, build_step

WARM_UP = 1  # steps without graphs; the first one takes memory from the system


@dataclass(frozen=True)
class Trial:
    """One way to compute steps.

    Attributes:
        batch_size: images of all replicas per step.
        threads: of each worker.
        deferred: whether weight gradients are put off where training does so: fully connected ones to be made once a
            step, later stages' convolutional ones at its end. False makes all of them in their backward passes.
        orders: of the passes, by rank, where the schedule is zero-bubble.
    """

    layout: Layout
    stages: tuple[tuple[str, ...], ...]
    micro_batches: int
    schedule: ScheduleName
    batch_size: int
    threads: int = 1
    deferred: bool = True
    graphs: bool = False
    orders: Orders | None = None

    def __str__(self) -> str:
        layout, parts = self.layout, []
        for count, name in ((layout.replicas, "replica"), (layout.ranks, "worker"), (layout.stages, "stage")):
            parts.append(f"{count} {name}" + "s" * (count > 1))
        schedule = f", {self.schedule}" if layout.stages > 1 else ""
        return (
            f"{', '.join(parts)}{schedule}, micro-batches of {self.batch_size // layout.replicas // self.micro_batches}"
        )


@dataclass(frozen=True)
class Work:
    """What a group of workers does: measure costs and links, then time all trials in turn, round after round.

    Attributes:
        trials: those of one worker are run by the first, while the others wait.
        sizes: micro-batch sizes to measure costs at; none measures none.
        layouts: of which the links are measured.
        steps: timed steps of each trial in a round, after `WARM_UP`.
        threads: of each worker while costs are measured at those sizes.
    """

    architecture: Architecture
    trials: Sequence[Trial]
    sizes: Sequence[int]
    layouts: Sequence[Layout]
    batch_size: int
    steps: int
    rounds: int
    threads: int
    precision: str
    path: str


def run(world: World, work: Work) -> None:
    """Save ``{"costs", "links": {layout: (link, reduce_link)}, "rounds"}``, where each round has a
    ``{"seconds", "spans", "costs"}`` for every trial."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)  # there is nothing to save: end at once
    if world.device.type == "cpu":
        torch.set_num_threads(work.threads)
        keep_freed_memory()  # as the trainer
    configure_libraries(work.precision)  # type: ignore[arg-type]
    model = AlexNet(work.architecture, seed=0)
    model.set_precision(work.precision)  # type: ignore[arg-type]
    saved: dict[str, Any] = {"links": {}}
    if work.sizes:
        world.arrange(Layout(1, world.size, world.size))
        saved["costs"], _ = measure_costs(world, model, work.batch_size, work.sizes)
    for layout in work.layouts:
        world.arrange(layout)
        saved["links"][layout] = measure_links(world)
    saved["rounds"] = []
    for number in range(1, work.rounds + 1):
        saved["rounds"].append([])
        for trial in work.trials:
            found = measured(world, model, trial, work.steps)
            saved["rounds"][-1].append(found)
            if world.is_first:
                rate = work.steps * trial.batch_size / found["seconds"]
                print(f"round {number} of {work.rounds}: {trial}: {rate:.1f} images/s", flush=True)
    if world.is_first:
        torch.save(saved, work.path)


def measured(world: World, model: AlexNet, trial: Trial, steps: int) -> dict[str, Any]:
    """What the blocks cost just now, and how long steps take."""
    alone = trial.layout.workers == 1 < world.size
    result = {}
    if world.is_first or not alone:
        torch.set_num_threads(trial.threads)
        place = World(0, 1, world.device) if alone else world
        place.arrange(trial.layout)
        rows = trial.batch_size // trial.layout.replicas
        costs, _ = measure_costs(place, model, rows, [rows // trial.micro_batches])
        result = timed(place, model, trial, steps) | {"costs": costs}
    world.barrier()
    return result


def timed(world: World, model: AlexNet, trial: Trial, steps: int) -> dict[str, Any]:
    """Seconds of the timed steps together, and the passes of the last one on all workers.

    Each worker's steps are timed from its own end of the last one to warm up: a pipeline is filled once in a training
    run, not every few steps.
    """
    engine = _engine(world, model, trial)
    if not trial.deferred:
        for block in engine.stage.blocks():
            block.kept = None
            if isinstance(block, Convolution):
                block.put_off = None
    optimizer = KrizhevskySGD(engine.stage, krizhevsky(), engine.stage.compute_copies())
    size = engine.stage.architecture.image_size
    generator = torch.Generator().manual_seed(world.replica)
    images = 60 * torch.randn(engine.batch_size, 3, size, size, generator=generator)
    images = images.contiguous(memory_format=torch.channels_last).to(world.device)
    labels = torch.arange(engine.batch_size, device=world.device) % engine.stage.architecture.num_classes
    marks: list[tuple[Key, Any, Any]] = []
    passed: list[Any] = []
    if isinstance(engine, Pipeline) and not trial.graphs:  # no event of ours in a graph
        for stage in _pipelined(engine):
            _record(stage, world, marks)
        finish = engine.stage.finish_gradients

        def recorded_finish() -> None:
            passed.append(_mark(world))
            finish()

        engine.stage.finish_gradients = recorded_finish  # type: ignore[method-assign]
    start, warm_up = 0.0, WARM_UP_STEPS + 2 if trial.graphs else WARM_UP
    step = build_step(engine, optimizer, graphs=trial.graphs)
    for number in range(steps + warm_up):
        if number == warm_up:
            start = _now(world)
        marks.clear()
        step(images if engine.is_first else None, labels if engine.is_last else None, number)
        if passed:
            marks.append((("finish", world.replica, 0, 0, 0), passed.pop(), _mark(world)))
    seconds = _now(world) - start
    gathered = world.gather_objects(_seconds(world, marks))
    every = [Span(rank, *span) for rank, one in enumerate(gathered) for span in one]
    for parameter in model.parameters():
        parameter.grad = None
    del engine, optimizer, step
    gc.collect()  # a replica's hooks on the parameters end with it
    return {"seconds": max(world.gather_objects(seconds)), "spans": every}


def _engine(world: World, model: AlexNet, trial: Trial) -> SingleDevice | Pipeline:
    layout = trial.layout
    rows = trial.batch_size // layout.replicas
    replica = Replica(world.replica, world.replica_group) if layout.replicas > 1 else None
    if layout.stages > 1:
        return Pipeline(
            model,
            trial.stages,
            world.pipeline_rank,
            world.device,
            rows,
            trial.micro_batches,
            trial.schedule,
            orders=trial.orders,
            ranks=layout.ranks,
            group=world.pipeline_group,
            replica=replica,
        )
    if replica:
        return DataParallel(model, world.device, rows, trial.micro_batches, replica)
    return SingleDevice(model, world.device, rows, trial.micro_batches)


def _now(world: World) -> float:
    """The time at which this worker's device is done."""
    if world.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _pipelined(engine: Pipeline) -> list[Any]:
    schedule = engine._train
    return schedule._stages if hasattr(schedule, "_stages") else [schedule._stage]


def _record(stage: Any, world: World, marks: list[tuple[Key, Any, Any]]) -> None:
    """Note when each pass of a stage begins and ends."""
    for name, whole in (("forward", "forward"), ("backward", "backward"), ("backward_weight", "weight")):
        run_pass = getattr(stage, f"{name}_one_chunk")

        def recorded(micro_batch: int, *arguments: Any, run_pass: Any = run_pass, whole: Any = whole, **options: Any):
            start = _mark(world)
            result = run_pass(micro_batch, *arguments, **options)
            kind = whole if options.get("full_backward", True) else "input"
            marks.append(((kind, world.replica, stage.stage_index, micro_batch, 0), start, _mark(world)))
            return result

        setattr(stage, f"{name}_one_chunk", recorded)


def _mark(world: World) -> Any:
    """This moment: of the device where that is a GPU, so that nothing has to wait for it."""
    if world.device.type == "cpu":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _seconds(world: World, marks: list[tuple[Key, Any, Any]]) -> list[tuple[Key, float, float]]:
    """The marks as seconds. ``perf_counter`` is the same clock in all processes, and a GPU's is set by it."""
    if world.device.type == "cpu":
        return marks
    torch.cuda.synchronize()
    now, event = time.perf_counter(), _mark(world)
    event.synchronize()

    def at(mark: Any) -> float:
        return now - mark.elapsed_time(event) / 1000

    return [(key, at(start), at(end)) for key, start, end in marks]

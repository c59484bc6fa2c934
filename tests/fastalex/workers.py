"""What the launch tests run in worker processes; here because a spawned process imports it by name."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import torch

from dataloading.loader import Batch
from fastalex.errors import Interrupted
from fastalex.evaluation.ensemble import Evaluation, evaluate
from fastalex.evaluation.features import Extraction, extract
from fastalex.network.model import AlexNet
from fastalex.parallel.engine import DataParallel, Replica
from fastalex.parallel.layout import Layout
from fastalex.parallel.partition import partition
from fastalex.parallel.pipeline import Pipeline
from fastalex.parallel.world import World
from fastalex.recipes.optimizer import KrizhevskySGD
from fastalex.recipes.schedule import Recipe
from fastalex.training.config import RunConfig
from fastalex.training.graphed_step import build_step
from fastalex.training.trainer import Trainer
from kernels import winograd

BATCH = 8
CLASSES = 4


def batch(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The same images and labels in every process."""
    generator = torch.Generator().manual_seed(seed)
    return 50 * torch.randn(BATCH, 3, 224, 224, generator=generator), torch.arange(BATCH) % CLASSES


def network(precision: str = "fp32") -> AlexNet:
    """A narrow network whose signal is large enough to learn from noise."""
    model = AlexNet("krizhevsky", CLASSES, seed=4, width=1 / 16, lrn=False)
    with torch.no_grad():
        for block in model.blocks():
            block.weight.mul_(3)
    model.set_precision(precision)  # type: ignore[arg-type]
    return model


def filter_everything() -> None:
    """From now on fp32 convolutions are computed by minimal filtering, although they are too small for it to pay."""
    winograd._LEAST_CHANNELS = winograd._LEAST_TILES = 1


class RunAgain:
    """Records where there are no CUDA graphs: a replay runs the same once more. Both are counted."""

    recorded = replays = 0

    def __call__(self, run: Callable[[], None]) -> Callable[[], None]:
        run()
        self.recorded += 1

        def replay() -> None:
            self.replays += 1
            run()

        return replay


def pipeline_gradients(world: World, argument: dict) -> None:
    """Gradients, losses and logits of a few steps; the first worker saves them."""
    if argument["filtered"]:
        filter_everything()
    model = network(argument["precision"])
    layout, schedule = argument["layout"], argument["schedule"]
    world.arrange(layout)
    rows = BATCH // layout.replicas
    replica = Replica(world.replica, world.replica_group) if layout.replicas > 1 else None
    engine: Pipeline | DataParallel
    if layout.stages == 1:
        assert replica is not None
        engine = DataParallel(model, world.device, rows, argument["micro_batches"], replica)
    else:
        engine = Pipeline(
            model,
            partition(model.architecture, layout.stages),
            world.pipeline_rank,
            world.device,
            rows,
            argument["micro_batches"],
            schedule,
            orders=argument["orders"],
            ranks=layout.ranks,
            group=world.pipeline_group,
            replica=replica,
        )
    mine = slice(world.replica * rows, (world.replica + 1) * rows)
    saved: dict[str, torch.Tensor] = {}
    record = RunAgain()
    for step in range(argument["steps"]):
        if step == 1 and argument["recorded"]:
            assert isinstance(engine, Pipeline)
            engine.record(record)
        images, labels = batch(step)
        engine.stage.zero_grad()
        images, labels = images[mine], labels[mine]
        counts = engine.train_step(images if engine.is_first else None, labels if engine.is_last else None, seed=step)
        gradients = world.gather({name: p.grad.clone() for name, p in engine.stage.named_parameters()})
        logits = engine.logits(images if engine.is_first else None)
        shared = torch.zeros(BATCH + 1, max(4, CLASSES), dtype=torch.float64)
        assert logits is None or not logits.requires_grad
        if counts is not None and logits is not None:
            shared[-1, :4], shared[mine, :CLASSES] = counts, logits.double()
        shared = world.sum(shared)
        saved |= {f"{step}.{name}": gradient for name, gradient in gradients.items()}
        saved[f"{step}.counts"], saved[f"{step}.logits"] = shared[-1, :4], shared[:-1, :CLASSES]
    if argument["recorded"]:  # every pass, and all of it replayed in each later step
        assert record.recorded >= 2 * argument["micro_batches"] * len(layout.local_stages(world.pipeline_rank))
        assert record.replays == (argument["steps"] - 1) * record.recorded
    if world.is_first:
        torch.save(saved, argument["path"])


def note_pids(world: World, folder: str) -> None:
    """Write this process's id to a file for the test."""
    (Path(folder) / f"{world.rank}.pid").write_text(str(os.getpid()))


def fail_on_last(world: World, kind: type[Exception] | None) -> None:
    """The last worker raises an exception, or is killed; the others wait for it."""
    if world.rank == world.size - 1:
        if kind is None:
            os.kill(os.getpid(), signal.SIGKILL)
        else:
            raise kind("the thing must be 4, got 3")
    world.barrier()


def be_killed_twice(world: World, folder: str) -> None:
    """The last worker is killed, but not a third time."""
    attempts = len(list(Path(folder).iterdir()))
    world.barrier()
    if attempts < 2 and world.rank == world.size - 1:
        (Path(folder) / str(attempts)).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    world.barrier()


def wait_for_the_end(world: World, folder: str) -> None:
    """Work until told to stop."""
    note_pids(world, folder)
    while not world.stop_requested():
        time.sleep(0.05)
    raise Interrupted("stopped", world.signal_number)


def be_told_to_stop(world: World, number: int) -> None:
    """The last worker receives a signal; all stop."""
    if world.rank == world.size - 1:
        os.kill(os.getpid(), number)
    while not world.stop_requested():
        time.sleep(0.05)
    raise Interrupted("stopped", world.signal_number)


def heed_nothing(world: World, folder: str) -> None:
    """Hang and ignore all requests to stop."""
    note_pids(world, folder)
    while True:
        time.sleep(1)


def evaluate_and_extract(world: World, argument: tuple[Evaluation, Extraction, Path]) -> None:
    """Judge networks and write activations; the first worker saves the judgement."""
    evaluation, extraction, path = argument
    judgement = evaluate(world, evaluation)
    if world.is_first:
        torch.save(judgement, path)
    extract(world, extraction)


class _BadImages(Trainer):
    """Gets images that are not numbers in its third step."""

    def _step(self, batch: Batch) -> torch.Tensor | None:
        if self.progress.step == 2 and batch.images is not None:
            batch = batch._replace(images=batch.images * float("nan"))
        return super()._step(batch)


def train_with_bad_images(world: World, config: RunConfig) -> None:
    """A run whose third step is not finite."""
    trainer = _BadImages(world, config)
    try:
        trainer.run()
    finally:
        trainer.close()


def graphed_steps(world: World, argument: dict) -> None:
    """Steps of both stages in one worker, without CUDA graphs and with them: counts, weights, and what was said."""
    world.arrange(Layout(1, 1, 2))
    saved = []
    for graphs in (False, True):
        model = network(argument["precision"])
        stages = partition(model.architecture, 2)
        engine = Pipeline(model, stages, 0, world.device, BATCH, argument["micro_batches"], "interleaved", ranks=1)
        recipe = Recipe("test", epochs=1, batch_size=BATCH, lr=1e-3)
        optimizer = KrizhevskySGD(engine.stage, recipe, engine.stage.compute_copies())
        said: list[str] = []
        step = build_step(engine, optimizer, graphs=graphs, say=said.append)
        counts = []
        for number in range(8):
            images, labels = (tensor.to(world.device) for tensor in batch(number))
            made = step(images, labels, number)
            assert made is not None
            counts.append(made.cpu())
            if number == 5:
                engine.logits(images)  # between replays, as validation is
        weights = {name: parameter.detach().cpu() for name, parameter in engine.stage.named_parameters()}
        saved.append({"kind": type(step).__name__, "counts": torch.stack(counts), "weights": weights, "said": said})
    torch.save(saved, argument["path"])

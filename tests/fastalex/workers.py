"""What the launch tests run in worker processes; here because a spawned process imports it by name."""

import os
import signal
import time
from pathlib import Path

import torch

from dataloading.loader import Batch
from fastalex.errors import ConfigurationError, Interrupted
from fastalex.evaluation.ensemble import Evaluation, evaluate
from fastalex.evaluation.features import Extraction, extract
from fastalex.parallel.world import World
from fastalex.training.config import RunConfig
from fastalex.training.trainer import Trainer


def note_pids(world: World, folder: str) -> None:
    """Leave this process's id where the test finds it."""
    (Path(folder) / f"{world.rank}.pid").write_text(str(os.getpid()))


def fail_on_last(world: World, argument: str) -> None:
    """The last worker fails; the others wait for it."""
    if world.rank == world.size - 1:
        if argument == "configuration":
            raise ConfigurationError("the thing is 3; 4 is wanted")
        if argument == "bug":
            raise RuntimeError("a tensor went missing")
        if argument == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
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
    stopped = torch.zeros(1)
    while not stopped.item():
        time.sleep(0.05)
        stopped = world.sum(torch.tensor([float(world.signal_number)]))
    raise Interrupted("stopped", world.signal_number or signal.SIGINT)


def heed_nothing(world: World, folder: str) -> None:
    """Hang, whatever one is told."""
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

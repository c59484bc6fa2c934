"""A run from the options to its end, as ``python -m fastalex.train`` makes it."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from dataloading.process import command
from fastalex.errors import Aborted, Interrupted, WorkerError
from fastalex.options.training import TrainOptions, resume_command
from fastalex.parallel.devices import Devices
from fastalex.parallel.launch import run_workers
from fastalex.parallel.torchrun import is_worker, run_under_torchrun
from fastalex.parallel.world import World
from fastalex.training.checkpoint import finished_epochs
from fastalex.training.resolve import resolve, resolve_for_torchrun
from fastalex.training.trainer import train


def run_training(options: TrainOptions) -> None:
    """Train: as one of torchrun's workers, in this process, or in new workers.

    Raises:
        ConfigurationError, dataloading.DatasetError: the run cannot be made.
        WorkerError, Interrupted: the run has ended early; the message names the command that resumes it.
    """
    if is_worker():
        run_under_torchrun(_train_under_torchrun, options, options.parallel.devices, saves_checkpoint=True)
        return
    with ExitStack() as owner:
        config = resolve(options, owner=owner)
        with _resume_hint(config.folder, lambda: finished_epochs(config.folder) >= config.recipe.epochs):
            run_workers(train, config, config.parallel.devices, options.parallel.max_restarts, saves_checkpoint=True)


def _train_under_torchrun(world: World, argument: tuple[TrainOptions, Devices]) -> None:
    """The first worker resolves the options for all; all workers train the same run, each on its machine's devices."""
    options, devices = argument
    with ExitStack() as owner:  # on the first worker
        config = world.from_first(lambda: resolve_for_torchrun(options, devices, owner))
        train(world, config.on_devices(devices))


@contextmanager
def _resume_hint(run: Path, is_finished: Callable[[], bool]) -> Iterator[None]:
    """Append how to go on to the message of a failed worker or of an abort: the command that resumes the run.

    Args:
        is_finished: whether the run has saved its last epoch, so that only its end was disturbed.
    """
    try:
        yield
    except WorkerError as error:
        raise WorkerError(f"{error}; {_how_to_go_on(run, is_finished())}") from None
    except (Aborted, KeyboardInterrupt) as error:
        number = getattr(error, "signal_number", signal.SIGINT)
        raise Interrupted(f"interrupted; {_how_to_go_on(run, is_finished())}", number) from None


def _how_to_go_on(run: Path, is_finished: bool) -> str:
    if is_finished:
        return f"the run is finished and saved in {run}; evaluate it with: {command('fastalex.evaluate', run)}"
    return f"resume with: {resume_command(run)}"

"""``python -m fastalex.train [DATA]``: train AlexNet on one device, or on several as a pipeline or with replicas."""

from __future__ import annotations

from contextlib import ExitStack

from dataloading.command_line import parse
from fastalex import cli
from fastalex.parallel.devices import Devices
from fastalex.parallel.launch import run_workers
from fastalex.parallel.torchrun import is_worker, run_under_torchrun
from fastalex.parallel.world import World
from fastalex.training.checkpoint import finished_epochs
from fastalex.training.options import TrainOptions
from fastalex.training.resolve import resolve, resolve_for_torchrun
from fastalex.training.trainer import train


def main() -> None:
    """Parse the options and train: as one of torchrun's workers, in this process, or in new workers."""
    options = parse(TrainOptions, prog="python -m fastalex.train")
    if is_worker():
        run_under_torchrun(train_under_torchrun, options, options.parallel.devices, saves_checkpoint=True)
        return
    with ExitStack() as owner:
        config = resolve(options, owner=owner)
        with cli.resume_hint(config.folder, lambda: finished_epochs(config.folder) >= config.recipe.epochs):
            run_workers(train, config, config.parallel.devices, options.parallel.max_restarts, saves_checkpoint=True)


def train_under_torchrun(world: World, argument: tuple[TrainOptions, Devices]) -> None:
    """The first worker resolves the options; all workers train the same run, each on its machine's devices."""
    options, devices = argument
    with ExitStack() as owner:  # on the first worker
        config = world.from_first(lambda: resolve_for_torchrun(options, devices, owner))
        train(world, config.on_devices(devices))


if __name__ == "__main__":
    cli.main(main)

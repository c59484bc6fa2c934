"""``python -m fastalex.train [DATA]``: train AlexNet on one device, or on several as a pipeline or with replicas."""

from __future__ import annotations

from dataloading.command_line import parse
from fastalex import cli
from fastalex.parallel.launch import run_workers
from fastalex.parallel.torchrun import is_worker, run_under_torchrun
from fastalex.training.options import TrainOptions
from fastalex.training.resolve import resolve, resolve_and_train
from fastalex.training.trainer import train


def main() -> None:
    """Parse the options and train: as one of torchrun's workers, in this process, or in new workers."""
    options = parse(TrainOptions, prog="python -m fastalex.train")
    if is_worker():
        run_under_torchrun(resolve_and_train, options.on, options.machine.devices, saves_checkpoint=True)
        return
    config, restarts = resolve(options), options.machine.max_restarts
    with cli.resume_hint(config.folder):
        run_workers(train, config, config.parallel.devices, restarts, saves_checkpoint=True)


if __name__ == "__main__":
    cli.main(main)

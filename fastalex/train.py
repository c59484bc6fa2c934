"""``python -m fastalex.train [DATA]``: train AlexNet on one device, or on several as a pipeline or with replicas."""

from __future__ import annotations

from dataloading.command_line import parse
from fastalex import cli
from fastalex.options.training import COMMON, TrainOptions


def main() -> None:
    """Parse the options and train: as one of torchrun's workers, in this process, or in new workers."""
    options = parse(TrainOptions, module="fastalex.train", common=COMMON)
    with cli.slow_imports():
        from fastalex.training.session import run_training
    run_training(options)


if __name__ == "__main__":
    cli.main(main)

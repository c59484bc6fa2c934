"""``python -m fastalex.train [DATA]``: train the network of 2012, on one device or split over several."""

from __future__ import annotations

from pathlib import Path

import tyro

from fastalex import cli, launch
from fastalex.options import TrainOptions, resolve, resolve_and_train
from fastalex.trainer import train


def main() -> None:
    """Parse, then train here, in new workers, or as one of torchrun's."""
    options = tyro.cli(TrainOptions, prog="python -m fastalex.train", description=TrainOptions.__doc__)
    if launch.is_worker():
        launch.run_under_torchrun(resolve_and_train, options.on, options.machine.devices)
    else:
        config = resolve(options)
        try:
            launch.run(train, config, launch.parse_devices(config.devices), options.machine.max_restarts)
        except launch.WorkerError as error:
            if not any(Path(config.output).glob("checkpoints/[0-9]*")):
                raise
            remedy = f"go on with: {launch.command('fastalex.train', '--resume', config.output)}"
            raise launch.WorkerError(f"{error}; {remedy}") from None


if __name__ == "__main__":
    cli.main(main)

"""``python -m fastalex.train [DATA]``: train the network of 2012, on one device or split over several."""

from __future__ import annotations

import tyro

from fastalex import cli, launch
from fastalex.options import TrainOptions, resolve, resolve_and_train
from fastalex.trainer import train


def main() -> None:
    """Parse, then train here, in new workers, or as one of torchrun's."""
    options = tyro.cli(TrainOptions, prog="python -m fastalex.train", description=TrainOptions.__doc__)
    if launch.is_worker():
        devices = launch.devices_under_torchrun(options.machine.devices)
        launch.run(resolve_and_train, options.on(devices), devices)
    else:
        config = resolve(options)
        launch.run(train, config, launch.parse_devices(config.devices))


if __name__ == "__main__":
    cli.main(main)

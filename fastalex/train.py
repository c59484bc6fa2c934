"""``python -m fastalex.train [DATA]``: train the network of 2012, on one device or split over several."""

from __future__ import annotations

import signal
from pathlib import Path

from dataloading.command_line import parse
from fastalex import cli, launch
from fastalex.options import TrainOptions, resolve, resolve_and_train
from fastalex.trainer import train


def main() -> None:
    """Parse, then train here, in new workers, or as one of torchrun's."""
    options = parse(TrainOptions, prog="python -m fastalex.train")
    if launch.is_worker():
        launch.run_under_torchrun(resolve_and_train, options.on, options.machine.devices)
    else:
        config = resolve(options)
        try:
            launch.run(train, config, launch.parse_devices(config.devices), options.machine.max_restarts)
        except launch.WorkerError as error:
            raise launch.WorkerError(f"{error}; {_way_on(Path(config.output))}") from None
        except (launch.Aborted, KeyboardInterrupt) as error:
            number = getattr(error, "signal_number", signal.SIGINT)
            raise launch.Interrupted(f"interrupted; {_way_on(Path(config.output))}", number) from None


def _way_on(run: Path) -> str:
    if not any(run.glob("checkpoints/[0-9]*")):
        return f"the run has no checkpoint yet: remove {run} and start it anew"
    return f"go on with: {launch.command('fastalex.train', '--resume', run)}"


if __name__ == "__main__":
    cli.main(main)

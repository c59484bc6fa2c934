"""``python -m fastalex.train [DATA]``: train the network of 2012, on one device or split over several."""

from __future__ import annotations

import signal
from pathlib import Path

from dataloading.command_line import parse
from fastalex import cli
from fastalex.console import command
from fastalex.errors import Aborted, Interrupted
from fastalex.parallel.devices import parse_devices
from fastalex.parallel.failures import WorkerError
from fastalex.parallel.launch import run_workers
from fastalex.parallel.torchrun import is_worker, run_under_torchrun
from fastalex.training.options import TrainOptions
from fastalex.training.resolve import resolve, resolve_and_train
from fastalex.training.trainer import train


def main() -> None:
    """Parse, then train here, in new workers, or as one of torchrun's."""
    options = parse(TrainOptions, prog="python -m fastalex.train")
    if is_worker():
        run_under_torchrun(resolve_and_train, options.on, options.machine.devices)
    else:
        config = resolve(options)
        try:
            run_workers(train, config, parse_devices(config.devices), options.machine.max_restarts)
        except WorkerError as error:
            raise WorkerError(f"{error}; {_way_on(Path(config.output))}") from None
        except (Aborted, KeyboardInterrupt) as error:
            number = getattr(error, "signal_number", signal.SIGINT)
            raise Interrupted(f"interrupted; {_way_on(Path(config.output))}", number) from None


def _way_on(run: Path) -> str:
    if not any(run.glob("checkpoints/[0-9]*")):
        return f"the run has no checkpoint yet: remove {run} and start it anew"
    return f"go on with: {command('fastalex.train', '--resume', run)}"


if __name__ == "__main__":
    cli.main(main)

"""``python -m fastalex.evaluate RUN [RUN ...] [DATA]``: error rates of trained networks, on one crop or ten."""

from __future__ import annotations

from dataloading.command_line import parse
from fastalex import cli
from fastalex.evaluation.options import EvaluateOptions, evaluate_and_report, resolve, resolve_and_evaluate
from fastalex.parallel.devices import parse_devices
from fastalex.parallel.launch import run_workers
from fastalex.parallel.torchrun import is_worker, run_under_torchrun


def main() -> None:
    """Parse, then evaluate here, in new workers, or as one of torchrun's."""
    options = parse(EvaluateOptions, prog="python -m fastalex.evaluate")
    if is_worker():
        run_under_torchrun(resolve_and_evaluate, options.on, options.devices)
    else:
        job = resolve(options)
        run_workers(evaluate_and_report, job, parse_devices(job.devices))


if __name__ == "__main__":
    cli.main(main)

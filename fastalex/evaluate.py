"""``python -m fastalex.evaluate RUN [RUN ...] [DATA]``: error rates of trained networks, on one crop or ten."""

from __future__ import annotations

from dataloading.command_line import parse
from fastalex import cli, launch
from fastalex.evaluation_options import EvaluateOptions, evaluate_and_report, resolve, resolve_and_evaluate


def main() -> None:
    """Parse, then evaluate here, in new workers, or as one of torchrun's."""
    options = parse(EvaluateOptions, prog="python -m fastalex.evaluate")
    if launch.is_worker():
        launch.run_under_torchrun(resolve_and_evaluate, options.on, options.devices)
    else:
        job = resolve(options)
        launch.run(evaluate_and_report, job, launch.parse_devices(job.devices))


if __name__ == "__main__":
    cli.main(main)

"""``python -m fastalex.evaluate RUN [RUN ...] [DATA]``: error rates of trained networks, with 1 or 10 crops."""

from __future__ import annotations

from dataloading.command_line import parse
from fastalex import cli
from fastalex.options.evaluate import COMMON, EvaluateOptions
from fastalex.startup import is_worker


def main() -> None:
    """Parse the options and evaluate: as one of torchrun's workers, in this process, or in new workers."""
    options = parse(EvaluateOptions, module="fastalex.evaluate", common=COMMON)
    with cli.slow_imports():
        from fastalex.evaluation.options import evaluate_and_report, resolve, resolve_and_evaluate
        from fastalex.parallel.launch import run_workers
        from fastalex.parallel.torchrun import run_under_torchrun
    if is_worker():
        run_under_torchrun(resolve_and_evaluate, options, options.devices)
    else:
        job = resolve(options)
        run_workers(evaluate_and_report, job, job.devices)


if __name__ == "__main__":
    cli.main(main)

"""``python -m fastalex.evaluate RUN [DATA]``: error rates of a trained network, on one crop or ten."""

from __future__ import annotations

import tyro

from fastalex import cli
from fastalex.evaluation_options import EvaluateOptions, evaluate_run


def main() -> None:
    """Parse, evaluate, print."""
    options = tyro.cli(EvaluateOptions, prog="python -m fastalex.evaluate", description=EvaluateOptions.__doc__)
    evaluate_run(options)


if __name__ == "__main__":
    cli.main(main)

"""``python -m fastalex.predict WEIGHTS IMAGES ...``: what trained networks see in images that have no labels."""

from __future__ import annotations

import sys

from dataloading.command_line import parse
from fastalex import cli
from fastalex.options.predict import PredictOptions


def main() -> None:
    """Parse the options and predict. The exit code is 2 if an image could not be used."""
    options = parse(PredictOptions, module="fastalex.predict")
    with cli.slow_imports():
        from fastalex.prediction.options import predict_and_report
    unusable = predict_and_report(options)
    if unusable:
        sys.exit(2)


if __name__ == "__main__":
    cli.main(main)

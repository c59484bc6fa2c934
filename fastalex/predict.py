"""``python -m fastalex.predict WEIGHTS IMAGES ...``: what trained networks see in images that have no labels."""

from __future__ import annotations

import sys

from dataloading.command_line import parse
from fastalex import cli
from fastalex.prediction.options import PredictOptions, predict_and_report


def main() -> None:
    """Parse the options and predict. The exit code is 2 if an image could not be used."""
    unusable = predict_and_report(parse(PredictOptions, prog="python -m fastalex.predict"))
    if unusable:
        sys.exit(2)


if __name__ == "__main__":
    cli.main(main)

"""``python -m fastalex.baseline [DATA]``: errors of the methods before 2012 on the same images, to compare with."""

from __future__ import annotations

from dataloading.command_line import parse
from fastalex import cli
from fastalex.handcrafted.options import BaselineOptions, run_baseline


def main() -> None:
    """Parse, measure, print."""
    options = parse(BaselineOptions, prog="python -m fastalex.baseline")
    run_baseline(options)


if __name__ == "__main__":
    cli.main(main)

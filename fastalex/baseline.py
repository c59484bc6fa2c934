"""``python -m fastalex.baseline [DATA]``: error rates of the best methods before 2012 on the same images."""

from __future__ import annotations

from dataloading.command_line import parse
from fastalex import cli
from fastalex.handcrafted.options import BaselineOptions, run_baseline


def main() -> None:
    """Parse the options and run the baseline."""
    run_baseline(parse(BaselineOptions, prog="python -m fastalex.baseline"))


if __name__ == "__main__":
    cli.main(main)

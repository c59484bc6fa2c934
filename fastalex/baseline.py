"""``python -m fastalex.baseline [DATA]``: error rates of the best methods before 2012 on the same images."""

from __future__ import annotations

from dataloading.command_line import parse
from fastalex import cli
from fastalex.options.baseline import BaselineOptions


def main() -> None:
    """Parse the options and run the baseline."""
    options = parse(BaselineOptions, module="fastalex.baseline")
    with cli.slow_imports():
        from fastalex.handcrafted.options import run_baseline
    run_baseline(options)


if __name__ == "__main__":
    cli.main(main)

"""``python -m fastalex.reproduce WHAT DATA``: tables, figures and claims of the paper, from the data to one page."""

from __future__ import annotations

from dataloading.command_line import parse
from fastalex import cli
from fastalex.reproduction.options import ReproduceOptions, resolve
from fastalex.reproduction.session import reproduce


def main() -> None:
    """Parse the options, and do what is missing."""
    reproduce(resolve(parse(ReproduceOptions, prog="python -m fastalex.reproduce")))


if __name__ == "__main__":
    cli.main(main)

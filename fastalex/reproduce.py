"""``python -m fastalex.reproduce WHAT DATA``: tables, figures and claims of the paper, from the data to one page."""

from __future__ import annotations

from dataloading.command_line import parse
from fastalex import cli
from fastalex.options.reproduce import ReproduceOptions


def main() -> None:
    """Parse the options, and do what is missing."""
    options = parse(ReproduceOptions, module="fastalex.reproduce")
    with cli.slow_imports():
        from fastalex.reproduction.options import resolve
        from fastalex.reproduction.session import reproduce
    reproduce(resolve(options))


if __name__ == "__main__":
    cli.main(main)

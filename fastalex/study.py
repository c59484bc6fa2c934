"""``python -m fastalex.study NAME [DATA]``: test one of the paper's claims on your own images."""

from __future__ import annotations

from dataloading.command_line import parse
from fastalex import cli
from fastalex.studies.options import StudyOptions
from fastalex.studies.session import run_study


def main() -> None:
    """Parse the options and run the study, which starts its own workers."""
    run_study(parse(StudyOptions, prog="python -m fastalex.study"))


if __name__ == "__main__":
    cli.main(main)

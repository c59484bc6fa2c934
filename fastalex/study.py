"""``python -m fastalex.study NAME [DATA]``: test one of the paper's claims on your own images."""

from __future__ import annotations

from dataloading.command_line import parse
from fastalex import cli
from fastalex.options.study import COMMON, StudyOptions


def main() -> None:
    """Parse the options and run the study, which starts its own workers."""
    options = parse(StudyOptions, module="fastalex.study", common=COMMON)
    with cli.slow_imports():
        from fastalex.studies.session import run_study
    run_study(options)


if __name__ == "__main__":
    cli.main(main)

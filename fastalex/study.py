"""``python -m fastalex.study NAME [DATA]``: test one of the paper's claims on your own images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from rich.console import Console
from tyro.conf import OmitArgPrefixes, Positional, arg

from dataloading.command_line import parse
from fastalex import cli
from fastalex.cli import optional
from fastalex.errors import Interrupted
from fastalex.parallel.torchrun import refuse_launcher
from fastalex.studies import comparison
from fastalex.studies import runs as experiment
from fastalex.studies.claims import STUDIES, Study, find_study
from fastalex.training.options import NetworkOptions, ParallelOptions, ReadingOptions, RecipeOptions, TrainOptions


@dataclass(frozen=True)
class StudyOptions:
    """Test one of the paper's claims: train networks that differ in one thing, with several seeds, and compare errors.

    The same command goes on with a study that was interrupted.
    """

    name: Annotated[Positional[str], arg(metavar="NAME", help=f"One of {', '.join(STUDIES)}.")]
    data: Annotated[Positional[Path | None], optional("[DATA]")] = None
    """As for fastalex.train. Default: the bundled digits."""
    seeds: int = 3
    """Runs of each variant, with --seed and the numbers that follow it."""
    network: OmitArgPrefixes[NetworkOptions] = field(default_factory=NetworkOptions)
    training: OmitArgPrefixes[RecipeOptions] = field(default_factory=RecipeOptions)
    machine: OmitArgPrefixes[ParallelOptions] = field(default_factory=ParallelOptions)
    reading: OmitArgPrefixes[ReadingOptions] = field(default_factory=ReadingOptions)
    output: Annotated[Path | None, optional("DIR")] = None
    """Folder of the study. Default: one in studies/, named after the study and the data."""


def run(options: StudyOptions) -> None:
    """Make the runs that are missing, then print the table and write ``study.json`` and ``study.png``."""
    refuse_launcher("a study starts its workers itself; leave torchrun out and name --devices")
    study = find_study(options.name)
    shared = TrainOptions(
        options.data,
        network=options.network,
        training=options.training,
        machine=options.machine,
        reading=options.reading,
    )
    named = options.data.resolve().name if options.data else "digits"
    folder = options.output or Path("studies") / f"{named}-{study.name}"
    members = experiment.plan(study, shared, options.seeds, folder)
    with experiment.alone_in(folder):
        _carry_out(study, members, folder, options.machine.max_restarts)


def _carry_out(study: Study, members: Sequence[experiment.StudyRun], folder: Path, restarts: int) -> None:
    console = Console(soft_wrap=True, highlight=False)
    if not console.is_terminal:
        console.width = 140
    for number, member in enumerate(members, 1):
        if not experiment.is_finished(member):
            console.print(f"{study.name}, run {number} of {len(members)}: {member.variant.name}, {member.folder.name}")
            try:
                experiment.run_to_completion(member, restarts)
            except Interrupted as error:
                text = f"stopped in run {number} of {len(members)}; the same command goes on from there"
                raise Interrupted(text, error.signal_number) from None
        table = comparison.write(study, members, folder)
    comparison.draw(study, table, folder / "study.png")
    console.print(comparison.shown(study, table))
    for remark in comparison.remarks(study, members, table):
        console.print(remark)
    console.print(f"written: {folder / 'study.json'}, {folder / 'study.png'}")


def main() -> None:
    """Parse and run."""
    run(parse(StudyOptions, prog="python -m fastalex.study"))


if __name__ == "__main__":
    cli.main(main)

"""The options of ``python -m fastalex.study``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes, Positional, arg

from dataloading.command_line import optional
from dataloading.sources.names import name_of_set
from fastalex.options.training import NetworkOptions, ParallelOptions, ReadingOptions, RecipeOptions, TrainOptions

COMMON = (
    "seeds",
    "arch",
    "width",
    "recipe",
    "epochs",
    "batch_size",
    "lr",
    "seed",
    "fraction",
    "devices",
    "precision",
    "output",
)
"""What ``--help`` shows of the options; ``--help-all`` shows all."""


@dataclass(frozen=True)
class StudyOptions:
    """Test one of the paper's claims: train networks that differ in one thing, with several seeds, and compare errors.

    An interrupted study continues when the same command is given again.
    """

    name: Annotated[Positional[str], arg(metavar="NAME")]
    """The claim: depth, width, dataset-size, dropout, augmentation, lrn, overlapping, towers, activation or init."""
    data: Annotated[Positional[Path | None], optional("[DATA]")] = None
    """As for fastalex.train. Default: the bundled digits."""
    seeds: int = 3
    """Runs per variant, with the seeds --seed, --seed + 1, ..."""
    network: OmitArgPrefixes[NetworkOptions] = field(default_factory=NetworkOptions)
    training: OmitArgPrefixes[RecipeOptions] = field(default_factory=RecipeOptions)
    parallel: OmitArgPrefixes[ParallelOptions] = field(default_factory=ParallelOptions)
    reading: OmitArgPrefixes[ReadingOptions] = field(default_factory=ReadingOptions)
    output: Annotated[Path | None, optional("DIR")] = None
    """Folder of the study. Default: studies/DATA-NAME."""

    @property
    def shared(self) -> TrainOptions:
        """The options that all runs share."""
        return TrainOptions(
            self.data,
            network=self.network,
            training=self.training,
            parallel=self.parallel,
            reading=self.reading,
        )

    @property
    def folder(self) -> Path:
        """The folder of the study."""
        data = name_of_set(self.data) if self.data else "digits"
        return self.output or Path("studies") / f"{data}-{self.name}"

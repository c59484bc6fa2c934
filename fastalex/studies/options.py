"""The options of ``python -m fastalex.study``."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes, Positional, arg

from dataloading.sources.names import name_of_set
from fastalex.cli import check_positive, optional
from fastalex.errors import ConfigurationError
from fastalex.studies.claims import STUDIES, Study, find_study
from fastalex.training.metrics_log import say
from fastalex.training.options import NetworkOptions, ParallelOptions, ReadingOptions, RecipeOptions, TrainOptions


@dataclass(frozen=True)
class StudyOptions:
    """Test one of the paper's claims: train networks that differ in one thing, with several seeds, and compare errors.

    An interrupted study continues when the same command is given again.
    """

    name: Annotated[Positional[str], arg(metavar="NAME", help=f"One of {', '.join(STUDIES)}.")]
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


_GROUPS = (NetworkOptions, RecipeOptions, ParallelOptions, ReadingOptions)
_OPTIONS = {option.name: option.name for group in _GROUPS for option in fields(group)} | {
    "network.architecture": "arch",
    "recipe.name": "recipe",
    "recipe.weight_decay": "wd",
    "recipe.crops": "random_crops",
    "edits": "set",
}
"""Options by the fields of a run's configuration that they set, where these have the same name or one above."""

OTHER_FOLDER = "choose another --output"
"""What to do if the folder of the study cannot be used."""


def option_of(field: str) -> str:
    """The option that sets a field of a run's configuration, such as ``recipe.epochs``; else the field itself."""
    option = _OPTIONS.get(field) or _OPTIONS.get(field.rpartition(".")[2])
    return f"--{option.replace('_', '-')}" if option else field


def resolve(options: StudyOptions) -> Study:
    """Check the options that training does not check, and return the study.

    Raises:
        ConfigurationError: the study is unknown, there is no seed, or an option is one that the study compares.
    """
    study = find_study(options.name)
    if options.name != study.name:
        say(f"note: the study {options.name} is now called {study.name}; the old name still works")
    check_positive("--seeds", options.seeds)
    for given, default, group in (
        (options.network, NetworkOptions(), "network"),
        (options.training, RecipeOptions(), "training"),
    ):
        compared = {name for variant in study.variants for name in getattr(variant, group)} - {"width"}
        for name in sorted(compared):
            if getattr(given, name) != getattr(default, name):
                raise ConfigurationError(f"study {study.name} sets --{name.replace('_', '-')} itself; leave it out")
    return study

"""The options of ``python -m fastalex.study``."""

from __future__ import annotations

from dataclasses import fields

from fastalex.cli import check_positive
from fastalex.errors import ConfigurationError
from fastalex.options.study import StudyOptions
from fastalex.options.training import NetworkOptions, ParallelOptions, ReadingOptions, RecipeOptions
from fastalex.studies.claims import Study, find_study
from fastalex.training.metrics_log import say

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

"""How long the missing steps will take, from the measured speed of the network."""

from __future__ import annotations

import json
from pathlib import Path

import tyro

from dataloading import Dataset
from fastalex.datasets import open_prepared
from fastalex.handcrafted.classify import check_method
from fastalex.handcrafted.options import method_of
from fastalex.network.footprint import training_macs
from fastalex.options.baseline import BaselineOptions
from fastalex.options.training import TrainOptions
from fastalex.reproduction.steps import Baseline, Step, StudyStep, Training
from fastalex.studies.options import StudyOptions
from fastalex.studies.options import resolve as resolve_study
from fastalex.studies.runs import StudyRun, is_finished, plan_runs
from fastalex.training.checkpoint import finished_epochs
from fastalex.training.config import RunConfig
from fastalex.training.resolve import check, new_run

FORWARD_SHARE = 1 / 3
"""Of a training step's arithmetic, what an evaluation makes."""


class Estimate:
    """The seconds that steps will take. Arithmetic is taken to run as fast in every network as in the measured one.

    Args:
        plan: the JSON file of ``fastalex.plan`` with the measured speed.
    """

    def __init__(self, plan: Path) -> None:
        values = json.loads(plan.read_bytes())
        self.macs_per_image = values["training_macs_per_image"]
        self.macs_per_second = values["images_per_second"] * self.macs_per_image

    def seconds(self, step: Step, finished: set[str]) -> float | None:
        """The time that a step will take; None where this is not known, as for hand-crafted features.

        Args:
            finished: identities of runs that are finished by then; those of this step are added. Studies share them.

        Raises:
            ConfigurationError, dataloading.DatasetError: the step is not possible.
        """
        macs = 0.0
        for config, epochs in _trainings(step):
            identity = repr((config.network.build_architecture(), config.recipe, config.fraction, config.seed))
            if isinstance(step, Training) or identity not in finished:
                images = open_prepared(config.data, config.fraction, config.seed).count("train")
                macs += epochs * images * _macs(config)
            if isinstance(step, StudyStep):
                finished.add(identity)
        macs += step.forwards * FORWARD_SHARE * self.macs_per_image
        return macs / self.macs_per_second if step.forwards or isinstance(step, Training | StudyStep) else None


def check_possible(step: Step) -> None:
    """Check that a step could start, hours before it does.

    Raises:
        ConfigurationError, dataloading.DatasetError: it could not.
    """
    for config, _ in _trainings(step):
        if not config.init_from:
            check(config)
    if isinstance(step, Baseline):
        options = tyro.cli(BaselineOptions, args=step.words[1:])
        dataset = Dataset(options.data or "").subset("train", options.fraction, seed=options.seed)
        check_method(dataset, method_of(options), options.split)


def recipe_of(step: Training) -> RunConfig:
    """The configuration of a run that need not have begun."""
    return new_run(tyro.cli(TrainOptions, args=_without_weights(step.words[1:])))


def _trainings(step: Step) -> list[tuple[RunConfig, int]]:
    """The runs that a step has to train, and how many epochs of each are left."""
    if isinstance(step, Training):
        if (step.result / "config.json").is_file():
            config = RunConfig.load(step.result)
            return [(config, config.recipe.epochs - finished_epochs(step.result))]
        config = recipe_of(step)
        return [(config, config.recipe.epochs)]
    if isinstance(step, StudyStep):
        return [(run.config, _epochs_left(run)) for run in _runs(step) if not is_finished(run)]
    return []


def _runs(step: StudyStep) -> list[StudyRun]:
    options = tyro.cli(StudyOptions, args=step.words[1:])
    return plan_runs(resolve_study(options), options.shared, options.seeds, options.folder)


def _epochs_left(run: StudyRun) -> int:
    return run.config.recipe.epochs - finished_epochs(run.folder)


def _without_weights(words: tuple[str, ...]) -> list[str]:
    """Without the weights to start from, which an earlier step is still to make."""
    kept = list(words)
    if "--init-from" in kept:
        place = kept.index("--init-from")
        del kept[place : place + 2]
    return kept


def _macs(config: RunConfig) -> int:
    """Multiply-accumulate operations of a training step, per image."""
    return sum(training_macs(config.network.build_architecture()).values())

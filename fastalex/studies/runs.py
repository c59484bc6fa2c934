"""The runs of a study: their configurations, their state, and their training.

The folder of a study holds one folder per variant, and in it one ordinary run folder per seed, as ``fastalex.train``
with the same options writes it. There is no other state: a finished run is read, a run with a checkpoint resumes, and
all others start from the beginning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fastalex.datasets import open_prepared
from fastalex.errors import ConfigurationError, NonFiniteLoss
from fastalex.files import new_folder, owned, write_atomically
from fastalex.options.training import NetworkOptions, ParallelOptions, RecipeOptions, TrainOptions
from fastalex.parallel.launch import run_workers
from fastalex.parallel.world import World
from fastalex.studies.claims import TRAINING_ERROR_GOAL, Study, Variant
from fastalex.studies.options import OTHER_FOLDER, option_of
from fastalex.training.checkpoint import checkpoints_of, latest_checkpoint, load_state
from fastalex.training.config import RunConfig
from fastalex.training.metrics_log import read_metrics
from fastalex.training.resolve import check, new_run, resume_parallel
from fastalex.training.trainer import train

# Fields of RunConfig that may change when a run resumes. Any other change makes it another run.
_FREE_FIELDS = ("parallel", "measure_split", "output", "hardware_decoder_load")

_DIVERGED_FILE = "diverged.txt"


@dataclass(frozen=True)
class StudyRun:
    """One run of a study: a variant with one seed."""

    variant: Variant
    config: RunConfig

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.config.output)


@dataclass(frozen=True)
class RunResult:
    """The result of a finished run.

    Args:
        seed: of the run.
        top1_error, top5_error: after the last epoch, in percent. No epoch is selected by its errors.
        seconds: of training.
        epochs_to_goal: epochs until the mean training error of one was at most :data:`TRAINING_ERROR_GOAL`; None if no
            epoch reached it.
    """

    seed: int
    top1_error: float
    top5_error: float
    seconds: float
    epochs_to_goal: int | None


def plan_runs(study: Study, options: TrainOptions, seeds: int, folder: Path) -> list[StudyRun]:
    """All runs of a study, checked, ordered by seed and then by variant.

    Args:
        options: shared by all variants; those of a variant override them.
        seeds: number of seeds, counted from the one in the options.
        folder: of the study.

    Raises:
        ConfigurationError, dataloading.DatasetError: a run is not possible, or the folder holds another study.
    """
    # The data are prepared once. Later runs name the prepared data set.
    first = new_run(_variant_options(study, study.variants[0], options))
    shared = replace(options, data=Path(first.data))
    runs: list[StudyRun] = []
    for seed in range(first.seed, first.seed + seeds):
        for variant in study.variants:
            own = _variant_options(study, variant, shared)
            output = variant.folder_in(folder) / f"seed-{seed}"
            own = replace(own, training=replace(own.training, seed=seed), output=output)
            config = _with_equal_updates(own, new_run(own))
            _check_unchanged(config)
            config = _resumed(config, own.parallel)
            check(config)
            runs.append(StudyRun(variant, config))
        _check_distinct(study, runs[-len(study.variants) :])
    return runs


def _variant_options(study: Study, variant: Variant, options: TrainOptions) -> TrainOptions:
    """The options of one variant: they override the user's, which override the study's. Widths are multiplied."""
    network, training = options.network, options.training
    for name, value in study.network.items():
        if getattr(network, name) == getattr(NetworkOptions(), name):
            network = replace(network, **{name: value})
    for name, value in study.training.items():
        if getattr(training, name) == getattr(RecipeOptions(), name):
            training = replace(training, **{name: value})
    changes = dict(variant.network)
    if "width" in changes:
        changes["width"] *= network.width
    return replace(options, network=replace(network, **changes), training=replace(training, **variant.training))


def _with_equal_updates(options: TrainOptions, config: RunConfig) -> RunConfig:
    """For a fraction of the images, more epochs: about as many updates as all images would make.

    Raises:
        ConfigurationError: the schedule was edited; the edit's epoch would mean another update in each variant.
    """
    if config.fraction == 1:
        return config
    if config.edits:
        raise ConfigurationError(
            f"a run on a fraction of {config.fraction:g} trains for more epochs of fewer images, so the edit "
            f"{config.edits[0].text} would apply at another update than with all images; leave it out"
        )
    batch = config.recipe.batch_size
    whole, part = (
        open_prepared(config.data, fraction, config.seed).count("train") // batch for fraction in (1.0, config.fraction)
    )
    factor = whole / max(1, part)
    with_all = new_run(replace(options, training=replace(options.training, fraction=None)))
    epochs = round(with_all.recipe.epochs * factor)
    config = new_run(replace(options, training=replace(options.training, epochs=epochs)))
    recipe = replace(config.recipe, warmup_epochs=config.recipe.warmup_epochs * factor)
    if recipe.plateau:
        recipe = replace(recipe, plateau=replace(recipe.plateau, patience=round(recipe.plateau.patience * factor)))
    return replace(config, recipe=recipe)


def _check_unchanged(config: RunConfig) -> None:
    """Check that an existing run in the folder has the same configuration."""
    folder = Path(config.output)
    if not (folder / "config.json").is_file():
        return
    existing, requested = _flat(RunConfig.load(folder).to_json()), _flat(config.to_json())
    for name in ("stored_size", "mean_image"):  # studies of earlier versions have not recorded them
        if existing.get(name) is None:
            requested[name] = None
    for name, value in requested.items():
        if name.split(".")[0] not in _FREE_FIELDS and existing.get(name) != value:
            raise ConfigurationError(
                f"{folder} was made with {option_of(name)} {existing.get(name)}, got {value}; give the same options, "
                f"or {OTHER_FOLDER}"
            )


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with dotted keys."""
    result: dict[str, Any] = {}
    for name, value in values.items():
        result |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return result


def _resumed(config: RunConfig, options: ParallelOptions) -> RunConfig:
    """A run with a checkpoint keeps its parallel plan unless the options ask for another one."""
    folder = Path(config.output)
    if not _has_checkpoint(folder):
        return config
    # The split was measured when the run started; it stays unless the devices change.
    options = replace(options, split=None if options.split == "auto" else options.split)
    plan, measure_split = resume_parallel(options, RunConfig.load(folder))
    return replace(config, parallel=plan, measure_split=measure_split)


def _check_distinct(study: Study, runs: Sequence[StudyRun]) -> None:
    """Check that no two variants are the same run, as with and without normalisation for a network that has none."""
    seen: dict[Any, str] = {}
    for run in runs:
        config, name = run.config, run.variant.name
        first = seen.setdefault((config.network.build_architecture(), config.recipe, config.fraction), name)
        if first != name:
            raise ConfigurationError(
                f"study {study.name}: {first!r} and {name!r} are the same run with the architecture "
                f"{config.network.architecture} and these options; choose others"
            )


def run_to_completion(run: StudyRun, restarts: int = 0) -> None:
    """Train the run from the start or from its checkpoint; return at once if it is finished.

    Args:
        restarts: how often to restart from the last checkpoint after a worker has failed.

    Raises:
        Interrupted: a signal asked to stop; a checkpoint was saved.
        ConfigurationError, WorkerError: as :func:`fastalex.training.trainer.train`.
    """
    if is_finished(run):
        return
    folder = run.folder
    is_new = not (folder / "config.json").is_file()
    with new_folder(folder, OTHER_FOLDER) if is_new else owned(folder):
        run.config.save()
        try:
            run_workers(_train, run.config, run.config.parallel.devices, restarts)
        except NonFiniteLoss as error:  # also a result: the same run would diverge again
            write_atomically(folder / _DIVERGED_FILE, f"{error}\n")


def _train(world: World, config: RunConfig) -> None:
    train(world, config, is_brief=True)


def steps_saved(run: StudyRun) -> int:
    """The step of the run's latest checkpoint; 0 if it has none."""
    return load_state(latest_checkpoint(run.folder)).step if _has_checkpoint(run.folder) else 0


def is_finished(run: StudyRun) -> bool:
    """Whether the run has completed all its epochs, or has diverged."""
    if has_diverged(run):
        return True
    return _has_checkpoint(run.folder) and load_state(latest_checkpoint(run.folder)).epoch >= run.config.recipe.epochs


def has_diverged(run: StudyRun) -> bool:
    """Whether the run ended because its loss became infinite or NaN."""
    return (run.folder / _DIVERGED_FILE).exists()


def _has_checkpoint(folder: Path) -> bool:
    return (folder / "config.json").is_file() and bool(checkpoints_of(folder))


def read_result(run: StudyRun) -> RunResult:
    """Read the result of a finished run.

    Raises:
        ConfigurationError: the end of its log is missing.
    """
    lines, epochs = read_metrics(run.folder), run.config.recipe.epochs
    last = next((line for line in reversed(lines) if line["kind"] == "val"), None)
    if last is None or last["epoch"] != epochs:
        raise ConfigurationError(
            f"{run.folder / 'metrics.jsonl'} ends before the errors of epoch {epochs}, which the run has completed; "
            f"restore the file, or {OTHER_FOLDER}"
        )
    errors: dict[int, list[tuple[float, int]]] = {}
    for line in lines:
        if line["kind"] == "train":
            errors.setdefault(line["epoch"], []).append((line["top1_error"], line["images"]))
    reached = (
        epoch
        for epoch, parts in sorted(errors.items())
        if sum(error * images for error, images in parts) / sum(images for _, images in parts) <= TRAINING_ERROR_GOAL
    )
    seconds = load_state(latest_checkpoint(run.folder)).seconds
    return RunResult(run.config.seed, last["top1_error"], last["top5_error"], seconds, next(reached, None))

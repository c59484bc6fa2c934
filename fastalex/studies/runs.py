"""The runs of a study: what they are, which are done, and how they are made one after the other.

A study's folder holds one folder for each variant and in it one ordinary run for each seed, as ``fastalex.train`` with
the same options makes it. Nothing else is remembered: a run that is finished is read, one that has a checkpoint goes on
from there, all others begin.
"""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fastalex.datasets import open_prepared
from fastalex.errors import ConfigurationError, NonFiniteLoss
from fastalex.parallel.devices import parse_devices
from fastalex.parallel.launch import run_workers
from fastalex.studies.claims import TRAINING_ERROR_GOAL, Study, Variant
from fastalex.training.checkpoint import latest_checkpoint, load_state
from fastalex.training.config import RunConfig
from fastalex.training.metrics_log import read_metrics
from fastalex.training.options import NetworkOptions, ParallelOptions, RecipeOptions, TrainOptions
from fastalex.training.resolve import MACHINE_FIELDS, check, machine_again, make_folder, new_run
from fastalex.training.trainer import train

# What may differ when a run goes on; everything else makes another run.
_FREE = (*MACHINE_FIELDS, "output", "hardware_decoder_load")


_DIVERGED = "diverged.txt"


@dataclass(frozen=True)
class StudyRun:
    """One run of a study."""

    variant: Variant
    config: RunConfig

    @property
    def folder(self) -> Path:
        """Its run folder."""
        return Path(self.config.output)


@dataclass(frozen=True)
class RunResult:
    """What a finished run came to.

    ``top1_error`` and ``top5_error`` are those after the last epoch, in percent; nobody chose among epochs by looking
    at them. ``seconds`` are those of training. ``epochs_to_goal`` counts the epochs until one's mean training error was
    within :data:`TRAINING_ERROR_GOAL`; None if none was.
    """

    seed: int
    top1_error: float
    top5_error: float
    seconds: float
    epochs_to_goal: int | None


def plan(study: Study, options: TrainOptions, seeds: int, folder: Path) -> list[StudyRun]:
    """All runs of a study, those of the first seed first, checked.

    Args:
        options: what all variants share; a variant's own come on top.
        seeds: how many, from the one in the options on.

    Raises:
        ConfigurationError, dataloading.DatasetError: one of the runs could not be made, or the folder holds another.
    """
    if seeds < 1:
        raise ConfigurationError(f"--seeds is {seeds}; at least 1 is wanted")
    _check_free(study, options)
    # Prepared once, and then named by where it lies.
    shared = replace(options, data=Path(new_run(_with(study, study.variants[0], options)).data))
    members: list[StudyRun] = []
    for seed in range(options.training.seed or 0, (options.training.seed or 0) + seeds):
        for variant in study.variants:
            output = folder / variant.folder / f"seed-{seed}"
            own = _with(study, variant, shared)
            own = replace(own, training=replace(own.training, seed=seed), output=output)
            config = _same_updates(own, new_run(own))
            _check_same(config)
            config = _going_on(config, own.machine)
            check(config)
            members.append(StudyRun(variant, config))
        _check_different(study, members[-len(study.variants) :])
    return members


def _check_free(study: Study, options: TrainOptions) -> None:
    """Refuse an option that the study itself sets."""
    for given, plain, which in (
        (options.network, NetworkOptions(), "network"),
        (options.training, RecipeOptions(), "training"),
    ):
        compared = {name for variant in study.variants for name in getattr(variant, which)} - {"width"}
        for name in sorted(compared):
            if getattr(given, name) != getattr(plain, name):
                raise ConfigurationError(
                    f"study {study.name} compares values of --{name.replace('_', '-')} itself; leave it out"
                )


def _check_different(study: Study, members: Sequence[StudyRun]) -> None:
    """Refuse to compare a network with itself, such as one without any normalisation with and without it."""
    seen: dict[Any, str] = {}
    for member in members:
        config, name = member.config, member.variant.name
        first = seen.setdefault((config.network.build_architecture(), config.recipe, config.fraction), name)
        if first != name:
            raise ConfigurationError(
                f"study {study.name}: {first!r} and {name!r} are the same run with --arch "
                f"{config.network.architecture} and these options; choose others"
            )


def _with(study: Study, variant: Variant, options: TrainOptions) -> TrainOptions:
    """The options of one variant: the user's over the study's, the variant's over both, widths multiplied."""
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


def _same_updates(options: TrainOptions, config: RunConfig) -> RunConfig:
    """On a part of the images, as many more epochs as it takes to make the updates of all images.

    Raises:
        ConfigurationError: an edit of the schedule, whose epoch would come at another time in each variant.
    """
    if config.fraction == 1:
        return config
    if config.edits:
        raise ConfigurationError(
            f"runs on a fraction of {config.fraction:g} make more epochs of fewer images, so --set "
            f"{config.edits[0].text} would come at another time than with all images; leave it out"
        )
    batch = config.recipe.batch_size
    whole, part = (
        open_prepared(config.data, fraction, config.seed).count("train") // batch for fraction in (1.0, config.fraction)
    )
    longer = whole / max(1, part)
    epochs = round(config.recipe.epochs * longer)
    config = new_run(replace(options, training=replace(options.training, epochs=epochs)))
    recipe = replace(config.recipe, warmup_epochs=config.recipe.warmup_epochs * longer)
    if recipe.plateau:
        recipe = replace(recipe, plateau=replace(recipe.plateau, patience=round(recipe.plateau.patience * longer)))
    return replace(config, recipe=recipe)


def _check_same(config: RunConfig) -> None:
    """Refuse to go on with a run of other options."""
    folder = Path(config.output)
    if not (folder / "config.json").is_file():
        return
    there, asked = dict(_flat(asdict(RunConfig.load(folder)))), dict(_flat(asdict(config)))
    for name, value in asked.items():
        if name.split(".")[0] not in _FREE and there.get(name) != value:
            raise ConfigurationError(
                f"{folder} was made with {name} {there.get(name)}, asked for {value}; give the same options, or "
                "another --output"
            )


def _going_on(config: RunConfig, machine: ParallelOptions) -> RunConfig:
    """A run that has a checkpoint keeps what it found out at its start, such as where its network is cut."""
    folder = Path(config.output)
    if not _has_checkpoint(folder):
        return config
    asked = replace(machine, devices=config.devices, split=None if machine.split == "auto" else machine.split)
    return replace(config, **machine_again(asked, RunConfig.load(folder)))


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Make the study's folder if need be, and keep other commands out of it.

    Raises:
        ConfigurationError: another command is at work in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as file:  # the kernel lets go of it however the command ends
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigurationError(
                f"another command is carrying out the study in {folder}; wait for it, or give another --output"
            ) from None
        yield


def run_to_completion(member: StudyRun, restarts: int = 0) -> None:
    """Make the run, or the rest of it; return at once where it is finished.

    Args:
        restarts: how often to go on from the last checkpoint after a worker has failed.

    Raises:
        Interrupted: told to stop; a checkpoint was written first.
        ConfigurationError, WorkerError: as :func:`fastalex.training.trainer.train`.
    """
    if is_finished(member):
        return
    folder = member.folder
    if not _has_checkpoint(folder):
        if (folder / "config.json").is_file():
            shutil.rmtree(folder)  # ended before its first checkpoint
        make_folder(folder)
    member.config.save()
    try:
        run_workers(train, member.config, parse_devices(member.config.devices), restarts)
    except NonFiniteLoss as error:  # a result like any other: it would come again
        (folder / _DIVERGED).write_text(f"{error}\n")


def is_finished(member: StudyRun) -> bool:
    """Whether the run has made all its epochs, or cannot."""
    if has_diverged(member):
        return True
    return _has_checkpoint(member.folder) and (
        load_state(latest_checkpoint(member.folder)).epoch >= member.config.recipe.epochs
    )


def has_diverged(member: StudyRun) -> bool:
    """Whether the loss went beyond all bounds."""
    return (member.folder / _DIVERGED).exists()


def _has_checkpoint(folder: Path) -> bool:
    return (folder / "config.json").is_file() and any((folder / "checkpoints").glob("[0-9]*-[0-9]*"))


def outcome(member: StudyRun) -> RunResult:
    """Read a finished run.

    Raises:
        ConfigurationError: its log lacks the end.
    """
    lines = read_metrics(member.folder)
    last, epochs = next((line for line in reversed(lines) if line["kind"] == "val"), None), member.config.recipe.epochs
    if last is None or last["epoch"] != epochs - 1:
        raise ConfigurationError(
            f"{member.folder / 'metrics.jsonl'} ends before the errors of epoch {epochs}, which the run has made; "
            f"remove the run (rm -r {member.folder}) and give the same command again"
        )
    errors: dict[int, list[tuple[float, int]]] = {}
    for line in lines:
        if line["kind"] == "train":
            errors.setdefault(line["epoch"], []).append((line["top1_error"], line["images"]))
    reached = (
        epoch + 1
        for epoch, parts in sorted(errors.items())
        if sum(error * images for error, images in parts) / sum(images for _, images in parts) <= TRAINING_ERROR_GOAL
    )
    seconds = load_state(latest_checkpoint(member.folder)).seconds
    return RunResult(member.config.seed, last["top1_error"], last["top5_error"], seconds, next(reached, None))

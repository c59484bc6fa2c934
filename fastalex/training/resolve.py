"""From the options of training to a run: each option is read, checked and decided here, once.

What the user leaves out comes from the recipe, or from the run that is resumed.
"""

from __future__ import annotations

import contextlib
import os
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from dataloading.loading.dali_check import check_dali
from dataloading.process import command
from fastalex.datasets import (
    default_recipe,
    mean_image_hash,
    open_data,
    open_prepared,
    other_data,
    recorded_place,
    reopen_data,
)
from fastalex.errors import ConfigurationError
from fastalex.files import RUNS, check_place, default_folder, new_folder, owned
from fastalex.network.architecture import Architecture
from fastalex.network.precision import check_precision, default_precision
from fastalex.network.variation import build_architecture, narrow_init_warning
from fastalex.network.weights import NetworkSpec, load_spec
from fastalex.options.training import NetworkOptions, ParallelOptions, TrainOptions
from fastalex.parallel.devices import Devices, check_devices, default_devices, parse_devices
from fastalex.parallel.layout import Layout, ParallelPlan, ScheduleName, Split, resolve_layout
from fastalex.parallel.partition import check_stages, parse_split, partition
from fastalex.parallel.schedules import check_batch, default_micro_batches
from fastalex.parallel.torchrun import is_worker, machines
from fastalex.recipes.edits import Edit, edited, overridden
from fastalex.recipes.published import build_recipe, drops_to_add
from fastalex.recipes.schedule import epochs_in_words
from fastalex.training.checkpoint import checkpoints_of, finished_epochs, load_state, publish
from fastalex.training.config import RunConfig
from fastalex.training.memory import check_memory
from fastalex.training.metrics_log import read_metrics
from fastalex.training.state import TrainingState

_SECONDS_TO_DIE = 30.0  # in which the workers that torchrun has killed release their run folder


def resolve(options: TrainOptions, devices: Devices | None = None, owner: ExitStack | None = None) -> RunConfig:
    """Check the options against each other and against what exists, and make the run folder.

    Args:
        devices: of this machine, where torchrun has assigned them; None reads them from the options.
        owner: owns the run folder until it is closed, so that no other process may train there. None gives the
            ownership up before returning.

    Raises:
        ConfigurationError, dataloading.DatasetError: the run cannot be made, or its folder is in use.
    """
    if options.parallel.max_restarts < 0:
        raise ConfigurationError(f"--max-restarts must be at least 0, got {options.parallel.max_restarts}")
    with ExitStack() as ownership:
        # The folder first: what comes next may take hours.
        if options.resume:
            before = RunConfig.load(options.resume)  # refuses what is no run
            ownership.enter_context(owned(options.resume, remedy="wait for it, or stop it first"))
        elif options.output:
            ownership.enter_context(new_folder(options.output, _remedy_for(options.output)))
        else:
            check_place(RUNS, "choose an --output")
        config = _resumed_run(options, devices) if options.resume else new_run(options, devices)
        check(config)
        if not options.resume and not options.output:
            folder = ownership.enter_context(new_folder(config.folder, "choose an --output", numbered=True))
            config = replace(config, output=str(folder))
        config.save()
        if options.resume:
            _advise_resumed(options, before, config)
        else:
            advise(config)
        if owner is not None:
            owner.push(ownership.pop_all())
    return config


def _remedy_for(folder: Path) -> str:
    resume = f", or resume its run with --resume {folder}" if (folder / "config.json").is_file() else ""
    return f"choose another --output{resume}"


def resolve_for_torchrun(options: TrainOptions, devices: Devices, owner: ExitStack | None = None) -> RunConfig:
    """As :func:`resolve`, for a worker of torchrun; after a restart, the configuration of the run under way.

    Raises:
        ConfigurationError, dataloading.DatasetError: the run cannot be made.
    """
    if options.parallel.max_restarts:
        raise ConfigurationError("under torchrun, give --max-restarts to torchrun, before -m fastalex.train")
    folder = options.resume or options.output
    if folder is None and os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0":
        raise ConfigurationError("torchrun --max-restarts needs --output, so that a restarted worker finds its run")
    restarted = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    if folder is not None and restarted and (folder / "config.json").exists():
        if owner is not None:
            owner.enter_context(owned(folder, remedy="wait for it, or stop it first", patience=_SECONDS_TO_DIE))
        return RunConfig.load(folder)
    return resolve(options, devices, owner)


def new_run(options: TrainOptions, devices: Devices | None = None) -> RunConfig:
    """The run that the options ask for, not checked yet and without a folder.

    Raises:
        ConfigurationError, dataloading.DatasetError: an option makes no sense, or the data cannot be used.
    """
    # Everything that needs no data is checked first: preparing data may take hours.
    architecture = build_architecture(options.network.arch, variation=options.network.variation)
    stages = _resolve_stages(options.parallel, architecture, devices)
    check_dali(options.data)
    dataset = open_data(options.data, architecture.prepared_size, may_prepare=not is_worker())
    # The recipe, and what the options change in it.
    training = options.training
    fraction, seed = 1.0 if training.fraction is None else training.fraction, training.seed or 0
    part = dataset if fraction == 1 else open_prepared(recorded_place(dataset), fraction, seed)
    recipe = training.applied_to(build_recipe(training.recipe or default_recipe(dataset, options.network.arch)))
    recipe = recipe.for_data(part.count("train"), training.epochs)
    recipe = edited(recipe, training.edits, layers=architecture.block_names, finished=0)
    classes = tuple(dataset.classes)
    network = NetworkSpec(
        options.network.arch, len(classes), options.network.variation, classes, channel_means=recipe.channel_means
    )
    plan = _plan(stages, options.parallel.micro_batches, recipe.batch_size)
    return RunConfig(
        data=recorded_place(dataset),
        network=network,
        recipe=recipe,
        parallel=plan,
        precision=options.parallel.precision or default_precision(plan.devices),
        seed=seed,
        output=str(options.output or default_folder(f"{dataset.name}-{options.network.arch}")),
        measure_split=_measures_split(options.parallel, plan),
        fraction=fraction,
        stored_size=dataset.size,
        mean_image=mean_image_hash(dataset.mean_image),
        init_from=_initial_weights(training.init_from, network),
        edits=tuple(Edit(0, text) for text in training.edits),
        **options.parallel.of_steps(),
        **options.reading.given(),
        **options.of_saving(),
    )


def _resumed_run(options: TrainOptions, devices: Devices | None) -> RunConfig:
    assert options.resume is not None
    config = RunConfig.load(options.resume)
    checkpoint = next(reversed(checkpoints_of(options.resume)), None)  # None if the run ended before the first one
    if checkpoint and load_spec(checkpoint / "model.safetensors") != config.network:
        raise ConfigurationError(
            f"{checkpoint} holds another network than {options.resume / 'config.json'} describes; restore one of the "
            "two"
        )
    _check_unchanged(options, config)
    read_metrics(options.resume)  # refuses a damaged log
    architecture = config.network.build_architecture()
    check_dali(options.data or config.data)
    dataset = reopen_data(
        options.data,
        config.data,
        config.stored_size or architecture.prepared_size,
        config.mean_image,
        remedy=command("fastalex.train", "DATA", "--resume", options.resume),
        may_prepare=not is_worker(),
    )
    if tuple(dataset.classes) != config.network.classes:
        raise ConfigurationError(
            f"{dataset.root} has {len(dataset.classes)} classes that differ from the run's "
            f"{config.network.num_classes}; give data with the same class names"
        )
    # Longer runs keep their past: changes of the schedule stay at their epochs.
    recipe, state = config.recipe, load_state(checkpoint) if checkpoint else TrainingState()
    if options.training.epochs is not None:
        recipe = replace(recipe, epochs=options.training.epochs, drops_left_out=0)
    if state.epoch >= recipe.epochs:
        if checkpoint:
            publish(options.resume, checkpoint, config.keep)  # the run may have been killed just before this
        found = f"is finished: {state.epoch} of {recipe.epochs} epochs"
        if options.training.epochs is not None:
            found = f"has finished {epochs_in_words(state.epoch)}, got --epochs {recipe.epochs}"
        raise ConfigurationError(f"{options.resume} {found}; continue with --epochs {state.epoch + 1} or more")
    recipe = options.training.applied_to(recipe)
    edits = (*overridden(config.edits, config.recipe, recipe), *options.training.edits)
    recipe = edited(recipe, options.training.edits, layers=architecture.block_names, finished=state.epoch)
    plan, measure_split = resume_parallel(options.parallel, config, devices, recipe.batch_size)
    return replace(
        config,
        data=recorded_place(dataset),
        stored_size=dataset.size,
        mean_image=mean_image_hash(dataset.mean_image),
        recipe=recipe,
        parallel=plan,
        measure_split=measure_split,
        precision=options.parallel.precision or config.precision,
        edits=(*config.edits, *(Edit(state.step, text) for text in edits)),
        **options.parallel.of_steps(),
        **options.reading.given(),
        **options.of_saving(),
    )


def _check_unchanged(options: TrainOptions, config: RunConfig) -> None:
    """Refuse options that would make a resumed run another run."""
    if options.network != NetworkOptions():
        asked = replace(config.network, architecture=options.network.arch, variation=options.network.variation)
        if asked != config.network:
            raise ConfigurationError(
                f"{options.resume} trains {config.network.summary()}, got options for {asked.summary()}; leave the "
                "network's options out, or start a new run"
            )
    for name in ("recipe", "seed", "fraction", "init_from", "scale_lr", "order"):
        if getattr(options.training, name) not in (None, False):
            option = name.replace("_", "-")
            raise ConfigurationError(f"--{option} cannot change in a resumed run; leave it out, or start a new run")
    if options.output is not None:
        raise ConfigurationError("--output cannot change in a resumed run: it stays in its folder; leave it out")


def _initial_weights(run: Path | None, network: NetworkSpec) -> str | None:
    """The file of weights that a run or a path stands for, if the network can start from it."""
    if run is None:
        return None
    path = run if run.is_file() else run / "last.safetensors"
    if not path.is_file():
        raise ConfigurationError(f"--init-from {run}: neither a file of weights nor a run with a finished epoch")
    there = load_spec(path)
    if not network.can_start_from(there):
        raise ConfigurationError(
            f"--init-from {run}: its network is {there.summary()}, this run's is {network.summary()}; give the same "
            "network options, or start from another run"
        )
    return str(path.resolve())


# --- devices, stages, micro-batches -----------------------------------------------------------------------------------


class _Stages(NamedTuple):
    """A plan without its micro-batches, which depend on the recipe's batch size."""

    devices: Devices
    machines: int
    layout: Layout
    schedule: ScheduleName
    split: Split


def resolve_parallel(
    options: ParallelOptions, architecture: Architecture, batch_size: int, devices: Devices | None = None
) -> ParallelPlan:
    """What the user typed becomes what is decided.

    Args:
        batch_size: images per update.
        devices: of this machine, where torchrun has assigned them; None reads them from the options.

    Raises:
        ConfigurationError: devices, stages, replicas, schedule, split and micro-batches do not fit each other.
    """
    return _plan(_resolve_stages(options, architecture, devices), options.micro_batches, batch_size)


def resume_parallel(
    options: ParallelOptions, config: RunConfig, devices: Devices | None = None, batch_size: int | None = None
) -> tuple[ParallelPlan, bool]:
    """The plan of a resumed run, and whether its split is to be measured.

    The run keeps its plan unless the options change devices or layout; then everything left out is decided anew.

    Args:
        devices: of this machine, where torchrun has assigned them.
        batch_size: images per update, if it has changed.
    """
    plan, architecture = config.parallel, config.network.build_architecture()
    batch_size = config.recipe.batch_size if batch_size is None else batch_size
    given = devices or (parse_devices(options.devices) if options.devices is not None else None)
    moved = given is not None and (len(given), given[0].type) != (len(plan.devices), plan.device_type)
    # Asking for what the run has already changes nothing.
    current = {"stages": plan.layout.stages, "replicas": plan.layout.replicas, "schedule": plan.schedule}
    changed = any(getattr(options, name) not in (None, value) for name, value in current.items())
    if moved or changed or machines() != plan.machines:
        kept = given or check_devices(plan.devices)
        plan = resolve_parallel(options, architecture, batch_size, kept)
        return plan, _measures_split(options, plan)
    if options.split is not None:
        plan = replace(plan, split=_resolve_split(options.split, architecture, plan.layout.stages))
    plan = replace(
        plan, devices=given or check_devices(plan.devices), micro_batches=options.micro_batches or plan.micro_batches
    )
    return plan, _measures_split(options, plan) or (options.split is None and config.measure_split)


def _resolve_stages(options: ParallelOptions, architecture: Architecture, devices: Devices | None) -> _Stages:
    devices = devices or parse_devices(options.devices or default_devices())
    workers, names = len(devices) * machines(), architecture.block_names
    check_stages(names, options.stages or 1, lambda stages: workers % stages == 0 or stages % workers == 0)
    layout, schedule = resolve_layout(len(devices), machines(), options.stages, options.replicas, options.schedule)
    check_stages(names, layout.stages, lambda stages: workers % stages == 0 or stages % workers == 0)
    if layout.stages == 1 and options.schedule is not None:
        raise ConfigurationError(
            f"--schedule {options.schedule} needs several stages, but --devices and --stages make 1; leave it out, or "
            "choose --stages 2 or more"
        )
    split = _resolve_split(options.split or "analytic", architecture, layout.stages)
    return _Stages(devices, machines(), layout, schedule, split)


def _resolve_split(text: str, architecture: Architecture, stages: int) -> Split:
    """The split itself; for ``auto`` the one to start from."""
    if text in ("auto", "analytic"):
        return partition(architecture, stages)
    return parse_split(text, architecture.block_names, stages)


def _plan(stages: _Stages, micro_batches: int | None, batch_size: int) -> ParallelPlan:
    if micro_batches is None:
        kind = stages.devices[0].type
        micro_batches = default_micro_batches(stages.layout, stages.schedule, batch_size, kind)
    return ParallelPlan(stages.devices, stages.machines, stages.layout, stages.split, stages.schedule, micro_batches)


def _measures_split(options: ParallelOptions, plan: ParallelPlan) -> bool:
    return options.split == "auto" and plan.layout.stages > 1


# --- checks -----------------------------------------------------------------------------------------------------------


def check(config: RunConfig) -> None:
    """Refuse a run that could not make one step.

    Raises:
        ConfigurationError: devices, precision, micro-batches, batch size, memory, seed or fraction do not fit.
    """
    if not 0 <= config.seed < 2**63:
        raise ConfigurationError(f"--seed must be from 0 to 2**63 - 1, got {config.seed}")
    if not 0 <= config.hardware_decoder_load <= 1:
        raise ConfigurationError(f"--hardware-decoder-load must be from 0 to 1, got {config.hardware_decoder_load:g}")
    for name, count in (("save-every", config.save_every), ("keep", config.keep)):
        if count is not None and count < 1:
            raise ConfigurationError(f"--{name} must be at least 1, got {count}")
    plan = config.parallel
    check_precision(config.precision, plan.devices)
    check_batch(plan.layout, plan.schedule, config.recipe.batch_size, plan.micro_batches)
    architecture, dataset = (
        config.network.build_architecture(),
        open_prepared(config.data, config.fraction, config.seed),
    )
    if dataset.size < architecture.image_size:
        raise ConfigurationError(
            f"{config.data} has images of {dataset.size} pixels, but {architecture.name} takes crops of "
            f"{architecture.image_size}; name the original images, or another --arch"
        )
    images = dataset.count("train")
    if images < config.recipe.batch_size:
        part = ""
        if config.fraction != 1:
            part = f" ({config.fraction:g} of {open_prepared(config.data).count('train')})"
        raise ConfigurationError(
            f"{config.data} has {images} training images{part}, fewer than one batch of {config.recipe.batch_size}; "
            "lower --batch-size"
        )
    check_memory(config)


def advise(config: RunConfig) -> None:
    """Print what a user should know before a new run takes its time."""
    warning = narrow_init_warning(config.network.build_architecture(), config.network.variation)
    if warning and not config.init_from:
        with contextlib.suppress(OSError):
            print(f"note: {warning}; add --init scaled", flush=True)


def _advise_resumed(options: TrainOptions, before: RunConfig, config: RunConfig) -> None:
    """Print what a user should know of a run that is resumed otherwise than it was."""
    notes = []
    if options.data and (told := other_data(before.data, before.mean_image, open_prepared(config.data))):
        notes.append(f"the run goes on with other data: {told}")
        if (weights := config.folder / "last.safetensors").is_file():
            notes[0] += f"; for a new run from the weights instead, leave --resume out and give --init-from {weights}"
    if before.recipe.epochs < config.recipe.epochs:
        images = open_prepared(config.data, config.fraction, config.seed).count("train")
        if drops := drops_to_add(config.recipe, images, finished_epochs(config.folder)):
            notes.append(
                "the learning rate will not drop again, because a resumed run keeps its schedule; to drop it as a new "
                f"run of {config.recipe.epochs} epochs would, add --set {' '.join(drops)}"
            )
    with contextlib.suppress(OSError):
        for note in notes:
            print(f"note: {note}", flush=True)

"""The command lines' options, and how they become a run.

What is left out comes from the recipe, or from the run that is resumed; what is given wins over both.
"""

from __future__ import annotations

import os
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from fastalex.datasets import AnyDataset, default_recipe, open_data, open_prepared
from fastalex.errors import ConfigurationError
from fastalex.network.architecture import Architecture
from fastalex.network.precision import check_precision
from fastalex.network.variation import build_architecture
from fastalex.network.weights import NetworkSpec, load_spec
from fastalex.parallel.devices import default_devices, parse_devices
from fastalex.parallel.layout import resolve_layout
from fastalex.parallel.partition import check_stages, parse_split
from fastalex.parallel.schedules import check_batch, possible_micro_batches
from fastalex.parallel.torchrun import machines
from fastalex.parallel.world import World
from fastalex.recipes.edits import Edit, edited, overridden
from fastalex.recipes.published import build_recipe
from fastalex.recipes.schedule import Recipe
from fastalex.training.checkpoint import latest_checkpoint, load_state
from fastalex.training.config import RunConfig
from fastalex.training.memory import check_memory
from fastalex.training.options import NetworkOptions, ParallelOptions, ReadingOptions, RecipeOptions, TrainOptions
from fastalex.training.trainer import train

MACHINE_FIELDS = ("devices", "machines", "stages", "replicas", "schedule", "split", "micro_batches")
"""The fields of a run that say what computes which part of it; they may change when it goes on."""


def resolve(options: TrainOptions) -> RunConfig:
    """Check the options against each other and against what is there, and make the run folder.

    Raises:
        ConfigurationError, dataloading.DatasetError: what is asked for cannot be done.
    """
    if options.machine.max_restarts < 0:
        raise ConfigurationError(f"--max-restarts is {options.machine.max_restarts}; 0 or more is wanted")
    config = _resumed(options) if options.resume else new_run(options)
    check(config)
    if not options.resume:
        make_folder(Path(config.output))
    config.save()
    return config


def new_run(options: TrainOptions) -> RunConfig:
    """The run that the options ask for, which is not checked yet and has no folder.

    Raises:
        ConfigurationError, dataloading.DatasetError: an option that makes no sense, or data that cannot be used.
    """
    # Before preparing takes its time.
    architecture = build_architecture(options.network.arch, variation=options.network.variation)
    machine = _machine(options.machine, options.machine.devices or default_devices(), architecture)
    dataset = open_data(options.data, architecture.prepared_size)
    training = options.training
    recipe = build_recipe(training.recipe or default_recipe(dataset))
    if training.epochs is not None:
        recipe = recipe.with_epochs(training.epochs)
    recipe = edited(_override(recipe, training), training.edits, layers=architecture.block_names, epoch=0)
    network = NetworkSpec(options.network.arch, len(dataset.classes), options.network.variation, tuple(dataset.classes))
    return RunConfig(
        data=_absolute(dataset),
        network=network,
        recipe=recipe,
        precision=options.machine.precision or "fp32",
        **_step_options(options.machine),
        seed=training.seed or 0,
        output=str(options.output or new_folder(f"{dataset.name}-{options.network.arch}")),
        **machine,
        **_given(options.reading),
        fraction=1.0 if training.fraction is None else training.fraction,
        init_from=_initial_weights(training.init_from, network),
        edits=tuple(Edit(0, text) for text in training.edits),
    )


def _initial_weights(run: Path | None, network: NetworkSpec) -> str | None:
    """The file of weights that a run or path stands for, once it is clear that the network can start from them."""
    if run is None:
        return None
    path = run if run.is_file() else run / "last.safetensors"
    if not path.is_file():
        raise ConfigurationError(f"--init-from {run}: no file of weights, and no run folder with a finished epoch")
    there = load_spec(path)
    if not network.can_start_from(there):
        raise ConfigurationError(
            f"--init-from {run}: its architecture is {there.summary()}, not {network.summary()}; give the same "
            "options, or start from another run"
        )
    return str(path.resolve())


def _resumed(options: TrainOptions) -> RunConfig:
    assert options.resume is not None
    config = RunConfig.load(options.resume)
    checkpoint = latest_checkpoint(options.resume)
    if load_spec(checkpoint / "model.safetensors") != config.network:
        raise ConfigurationError(f"{checkpoint} is of another architecture than {options.resume / 'config.json'} says")
    if options.network != NetworkOptions():
        asked = replace(config.network, architecture=options.network.arch, variation=options.network.variation)
        if asked != config.network:
            raise ConfigurationError(
                f"{options.resume} holds a checkpoint of another architecture: {config.network.summary()}, asked "
                f"for {asked.summary()}; leave the network's options out, or start a new run"
            )
    for name in ("recipe", "seed", "fraction", "init_from", "scale_lr"):
        value = getattr(options.training, name)
        if value is not None and value is not False:
            option = name.replace("_", "-")
            raise ConfigurationError(f"--{option} cannot change in a resumed run; leave it out, or start a new run")
    if options.output is not None:
        raise ConfigurationError("--output cannot be given with --resume: a resumed run stays in its folder")
    dataset = open_data(options.data) if options.data else open_data(Path(config.data))
    if tuple(dataset.classes) != config.network.classes:
        raise ConfigurationError(
            f"{dataset.root} has {len(dataset.classes)} classes that are not the run's "
            f"{config.network.num_classes}; give data with the same class names"
        )
    recipe = config.recipe
    if options.training.epochs is not None:
        recipe = replace(recipe, epochs=options.training.epochs)  # more of the same: past changes stay where they were
    progress = load_state(checkpoint)
    done = progress.epoch
    if done >= recipe.epochs:
        raise ConfigurationError(
            f"{options.resume} is finished: {done} of {recipe.epochs} epochs; go on with --epochs {done + 1} or more"
        )
    recipe = _override(recipe, options.training)
    edits = (*overridden(config.edits, config.recipe, recipe), *options.training.edits)
    layers = config.network.build_architecture().block_names
    recipe = edited(recipe, options.training.edits, layers=layers, epoch=done)
    machine = machine_again(options.machine, config)
    return replace(
        config,
        data=_absolute(dataset),
        recipe=recipe,
        precision=options.machine.precision or config.precision,
        **_step_options(options.machine),
        **machine,
        **_given(options.reading),
        edits=(*config.edits, *(Edit(progress.step, text) for text in edits)),
    )


def _machine(options: ParallelOptions, devices: str, architecture: Architecture) -> dict[str, Any]:
    """The fields of a run that say what computes which part of it."""
    names = len(parse_devices(devices))
    check_stages(architecture.block_names, options.stages or 1, names * machines())
    split, stages = options.split or "auto", options.stages
    by_hand = split not in ("auto", "analytic")
    if by_hand and stages is None and options.schedule == "zero-bubble":
        stages = split.count(",") + 2  # any number goes
    layout, schedule = resolve_layout(names, machines(), stages, options.replicas, options.schedule)
    check_stages(architecture.block_names, layout.stages, layout.workers)
    if layout.stages == 1 and options.schedule is not None:
        raise ConfigurationError(
            f"--schedule {options.schedule} orders the passes of several stages, --devices and --stages make 1; leave "
            "it out, or choose --stages 2 or more"
        )
    if by_hand:
        parse_split(architecture, split, layout.stages)
    # The schedule is found out with the number of stages, and zero-bubble's number is found out.
    is_open = split == "auto" and layout.ranks > 1 and stages is None
    return {
        "devices": devices,
        "machines": machines(),
        "stages": None if is_open and options.schedule in (None, "zero-bubble") else layout.stages,
        "replicas": layout.replicas,
        "schedule": None if is_open and options.schedule is None else schedule,
        "split": split,
        "micro_batches": options.micro_batches,
    }


def machine_again(options: ParallelOptions, config: RunConfig) -> dict[str, Any]:
    """The fields that say so of a run that goes on; what it found out stays as long as its devices share it alike."""
    asked = {name: getattr(options, name) for name in ("devices", "stages", "replicas", "schedule")}
    changed = any(value is not None and value != getattr(config, name) for name, value in asked.items())
    if changed or machines() != config.machines:
        return _machine(options, options.devices or config.devices, config.network.build_architecture())
    kept = {name: getattr(config, name) for name in MACHINE_FIELDS}
    if options.split not in (None, config.split):
        return kept | {"split": options.split, "micro_batches": options.micro_batches}
    return kept | {"micro_batches": options.micro_batches or config.micro_batches}


def _given(options: ReadingOptions) -> dict[str, Any]:
    return {name: value for name, value in asdict(options).items() if value is not None}


def _step_options(options: ParallelOptions) -> dict[str, Any]:
    given = {"cuda_graphs": options.cuda_graphs, "on_non_finite": options.on_non_finite}
    return {name: value for name, value in given.items() if value is not None}


def _override(recipe: Recipe, options: RecipeOptions) -> Recipe:
    given: dict[str, Any] = {
        "batch_size": options.batch_size,
        "lr": options.lr,
        "momentum": options.momentum,
        "weight_decay": options.wd,
        "crops": options.random_crops,
        "flip": options.flip,
        "crops_shared_by": options.crops_shared_by,
        "color_noise": options.color_noise,
        "warmup_epochs": 5.0 if options.scale_lr and options.warmup_epochs is None else options.warmup_epochs,
        "lars": options.lars,
    }
    if options.scale_lr:
        base = recipe if options.lr is None else replace(recipe, lr=options.lr)
        recipe = base.with_scaled_lr(options.batch_size or recipe.batch_size)
        given["lr"] = None
    return replace(recipe, **{name: value for name, value in given.items() if value is not None})


def check(config: RunConfig) -> None:
    """Refuse a run that could not make one step.

    Raises:
        ConfigurationError: devices, precision, micro-batches, batch size, memory, seed or share do not fit.
    """
    if not 0 <= config.seed < 2**63:
        raise ConfigurationError(f"--seed is {config.seed}; 0 to 2**63 - 1 is wanted")
    if not 0 <= config.hardware_decoder_load <= 1:
        raise ConfigurationError(f"--hardware-decoder-load is {config.hardware_decoder_load:g}; 0 to 1 is wanted")
    (layout, schedule), architecture = config.arranged, config.network.build_architecture()
    check_precision(config.precision, parse_devices(config.devices))
    if config.split not in ("auto", "analytic"):
        parse_split(architecture, config.split, layout.stages)
    check_batch(layout, schedule, config.recipe.batch_size, config.micro_batches)
    possible_micro_batches(layout, schedule, config.recipe.batch_size)
    images = open_prepared(config.data, config.fraction, config.seed).count("train")
    if images < config.recipe.batch_size:
        part = ""
        if config.fraction != 1:
            whole = open_prepared(config.data).count("train")
            part = f" in a fraction of {config.fraction:g} of its {whole}"
        raise ConfigurationError(
            f"{config.data} has {images} training images{part}, fewer than one batch of {config.recipe.batch_size}; "
            "lower --batch-size"
        )
    check_memory(config)


def _absolute(dataset: AnyDataset) -> str:
    """Where a run finds its data again, from whatever folder it is resumed."""
    return str(dataset.root) if dataset.name == "synthetic" else str(Path(dataset.root).resolve())


def new_folder(name: str) -> Path:
    """Where a run goes if nothing else is said: ``runs/``, date, time and name."""
    return Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}-{name}"


def make_folder(folder: Path) -> None:
    """Make a new run's folder.

    Raises:
        ConfigurationError: there is something already.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        remedy = ""
        if (folder / "config.json").is_file():
            remedy = f", or go on with it by --resume {folder}"
            if not (folder / "last.safetensors").exists():
                remedy = f", or remove it: its run was stopped before it saved anything (rm -r {folder})"
        raise ConfigurationError(f"{folder} exists already; choose another --output{remedy}")
    folder.mkdir(parents=True, exist_ok=True)


def resolve_and_train(world: World, options: TrainOptions) -> None:
    """As one of torchrun's workers: the first one resolves, all train the same run, each on its machine's devices."""
    config = world.from_first(lambda: _resolve_or_restart(options))
    train(world, replace(config, devices=options.machine.devices or config.devices))


def _resolve_or_restart(options: TrainOptions) -> RunConfig:
    """The run; after torchrun has replaced a failed worker, the one that was under way."""
    if options.machine.max_restarts:
        raise ConfigurationError("--max-restarts is torchrun's option here; give it before -m fastalex.train")
    folder = options.resume or options.output
    if folder is None and os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0":
        raise ConfigurationError("torchrun --max-restarts needs --output, so that a restarted worker finds its run")
    if (
        folder is not None
        and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
        and (folder / "config.json").exists()
    ):
        return RunConfig.load(folder)
    return resolve(options)

"""The command lines' options, and how they become a run.

What is left out comes from the recipe, or from the run that is resumed; what is given wins over both.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from tyro.conf import OmitArgPrefixes, Positional, arg

from fastalex.architecture import ActivationName, Architecture, InitName, Variation, build_architecture
from fastalex.checkpoint import Description, latest_checkpoint, load_description, load_progress
from fastalex.cli import optional as _optional
from fastalex.config import BadSamplePolicy, RunConfig
from fastalex.data import AnyDataset, default_recipe, open_data, open_prepared
from fastalex.edits import Edit, edited, overridden
from fastalex.errors import ConfigurationError
from fastalex.launch import World, default_devices, machines, parse_devices
from fastalex.layout import ScheduleName, arrange, check_batch, possible_micro_batches
from fastalex.memory import check_memory
from fastalex.model import Precision
from fastalex.partition import check_stages, cut_before
from fastalex.precision import check_precision
from fastalex.recipe import Recipe, build_recipe
from fastalex.step import NonFinitePolicy
from fastalex.trainer import train

MACHINE_FIELDS = ("devices", "machines", "stages", "replicas", "schedule", "split", "micro_batches")
"""The fields of a run that say what computes which part of it; they may change when it goes on."""


@dataclass(frozen=True)
class NetworkOptions:
    """Which network, and how it differs from the named one."""

    arch: Annotated[
        Literal["krizhevsky", "paper", "caffe", "owt", "ungrouped", "half", "separate", "four-layer"],
        arg(aliases=("-a",)),
    ] = "krizhevsky"
    """krizhevsky: the 2012 run behind the paper's numbers; paper: its text; caffe: bvlc_alexnet; owt: torchvision's;
    ungrouped, half, separate: krizhevsky as one tower, as one of half the width, as two that never exchange anything;
    four-layer: a small network for 32-pixel images."""
    width: float = 1.0
    """Multiplies the channels of conv layers and the features of hidden layers. Initial weights stay as they are, so
    below 0.5 a network hardly starts to learn without --init scaled."""
    lrn: bool = True
    """Local response normalisation."""
    overlapping: bool = True
    """Overlapping 3x3 pooling with stride 2; otherwise 2x2."""
    activation: Annotated[ActivationName | None, _optional("{relu,tanh}")] = None
    """Nonlinearity; the architecture's own if left out."""
    dropout: Annotated[float | None, _optional("P")] = None
    """Probability that a feature is dropped; the architecture's own if left out."""
    without: Annotated[tuple[str, ...], _optional("LAYER [LAYER ...]")] = ()
    """Conv layers to remove, such as conv3 conv4."""
    conv6: bool = False
    """Add a sixth conv layer over the last pooling."""
    bottleneck: Annotated[int | None, _optional("N")] = None
    """Add a linear layer of N features before the last one, which then has fewer weights: for many thousands of classes
    (2012: 2048 for 21,843)."""
    init: Annotated[InitName | None, _optional("{text,scaled}")] = None
    """text: standard deviation 0.01 everywhere, as the paper says; scaled: the architecture's own, made larger for
    --width below 1, so that signals keep their size. The architecture's own if left out."""

    @property
    def variation(self) -> Variation:
        """The options as the architecture takes them."""
        values = asdict(self)
        del values["arch"]
        return Variation(**values)


@dataclass(frozen=True)
class RecipeOptions:
    """How it is trained."""

    recipe: Annotated[
        Literal[
            "krizhevsky", "source-145", "source-145-2010", "source-170", "paper", "small", "digits", "four-layer"
        ] | None,
        _optional("RECIPE"),
    ] = None  # fmt: skip
    """krizhevsky (or source-145): as the run of 2012; source-145-2010: as the one on ILSVRC-2010; source-170: without
    anybody's hand, 2013; paper: its text; small: for fewer than 100,000 images; digits: for the bundled digits;
    four-layer: for the network of that name. Default: by the data."""
    epochs: Annotated[int | None, _optional("N")] = None
    """Passes over the training images; changes of the learning rate move in proportion. Default: the recipe's."""
    batch_size: Annotated[int | None, _optional("N", "-b")] = None
    """Images per update. Default: the recipe's."""
    lr: Annotated[float | None, _optional("LR")] = None
    """Learning rate of the weights at the start. Default: the recipe's."""
    momentum: Annotated[float | None, _optional("M")] = None
    """How much of the last update the next one repeats. Default: 0.9."""
    wd: Annotated[float | None, _optional("WD", "--weight-decay")] = None
    """Weight decay, on weights and not on biases. Default: 0.0005."""
    scale_lr: bool = False
    """Multiply the learning rate by --batch-size over the recipe's batch size; --warmup-epochs then starts from the
    rate as it was."""
    warmup_epochs: Annotated[float | None, _optional("N")] = None
    """Let the learning rate rise on a straight line during the first epochs. Default: not at all, 5 with --scale-lr."""
    lars: Annotated[float | None, _optional("TRUST")] = None
    """Layer-wise adaptive learning rates with this trust coefficient, for very large batches; 0.001 is usual."""
    seed: Annotated[int | None, _optional("N")] = None
    """Of initial weights, order, augmentation and dropout (default 0); a seed gives the same run on any devices."""
    random_crops: Annotated[bool | None, _optional("")] = None
    """Crop training images at random places; otherwise at the centre. Default: the recipe's."""
    flip: Annotated[bool | None, _optional("")] = None
    """Mirror half of the training images. Default: the recipe's."""
    crops_shared_by: Annotated[int | None, _optional("N")] = None
    """Let so many images in a row share one crop place and one flip. Default: the recipe's; 32 as in the source of
    2012 for krizhevsky and source-..., else 1."""
    color_noise: Annotated[float | None, _optional("S")] = None
    """Colour noise in standard deviations; 0 for none. Default: the recipe's."""
    fraction: Annotated[float | None, _optional("F")] = None
    """Train on this part of the training images of each class, chosen by the seed. Default: 1, all."""
    init_from: Annotated[Path | None, _optional("RUN")] = None
    """Start from the weights of another run (or of a .safetensors file); the last layer starts anew where the classes
    are others."""
    edits: Annotated[tuple[str, ...], arg(name="set", metavar="EDIT [EDIT ...]", help_behavior_hint="")] = ()
    """Change the schedule by hand: epoch=67:conv1.lr=1e-5 epoch=67:color_noise=0. Epochs count from 0."""


@dataclass(frozen=True)
class MachineOptions:
    """Where and how it is computed."""

    devices: Annotated[str | None, _optional("DEVICES")] = None
    """One per worker: "0,1" for two GPUs, "0" for one, "cpu", "cpu,cpu"; under torchrun those of each machine.
    Default: two GPUs, else one, else cpu,cpu."""
    stages: Annotated[int | None, _optional("N")] = None
    """Into how many stages the network is cut. Default: one a device. Fewer make replicas that share the batch (four
    devices and 2 stages: two replicas); more give each device several (--devices 0 --stages 2)."""
    replicas: Annotated[int | None, _optional("N")] = None
    """How many replicas share a batch. Default: as many as --devices and --stages make with one stage a device."""
    split: Annotated[str | None, _optional("{auto,analytic,BLOCK[,BLOCK...]}")] = None
    """Where to cut: auto (default) measures every block on the devices, analytic counts arithmetic; or the first block
    of each later stage, such as conv3 or conv3,fc6."""
    micro_batches: Annotated[int | None, _optional("N")] = None
    """In how many parts a replica's part of a batch passes through. Default: as measured; with --split analytic as many
    as devices on CPUs and 4 on GPUs; 1 without stages."""
    schedule: Annotated[ScheduleName | None, _optional("{1f1b,eager-1f1b,gpipe,interleaved,zero-bubble}")] = None
    """Order of the micro-batches' forward and backward passes. Default: 1f1b, or interleaved where a device has several
    stages; with neither --stages nor --split given, the fastest of these, eager-1f1b and zero-bubble as measured."""
    max_restarts: int = 0
    """How often to start again from the last checkpoint after a worker has failed (under torchrun: its option)."""
    precision: Annotated[Precision | None, _optional("{fp32,tf32,bf16}")] = None
    """fp32 (default), tf32 products on a GPU, or bf16 computation with fp32 weights."""
    cuda_graphs: Annotated[bool | None, _optional("")] = None
    """Capture steps in CUDA graphs. Default: where one GPU has the whole network. Stages have to be asked for; replicas
    cannot be captured."""
    on_non_finite: Annotated[NonFinitePolicy | None, _optional("{stop,skip}")] = None
    """A loss that is not finite stops the run (default); or such steps update nothing, and are counted."""


@dataclass(frozen=True)
class ReadingOptions:
    """How images are read."""

    on_bad_sample: Annotated[BadSamplePolicy | None, _optional("{stop,skip}")] = None
    """A damaged image stops the run (default); or another of its class takes its place, and it is counted."""
    hardware_decoder_load: Annotated[float | None, _optional("SHARE")] = None
    """Share of a batch that a GPU's JPEG hardware decodes, 0 to 1 (default 0.65); 0 for runs whose bits repeat."""


@dataclass(frozen=True)
class TrainOptions:
    """Train the 2012 AlexNet: on the bundled digits, on your own folders of images, or on ImageNet."""

    data: Annotated[Positional[Path | None], _optional("[DATA]")] = None
    """A prepared data set, class folders (train/CLASS/*.jpg and val/CLASS/*.jpg), or the word synthetic (random images
    from memory, to time the rest). Default: the bundled digits."""
    network: OmitArgPrefixes[NetworkOptions] = field(default_factory=NetworkOptions)
    training: OmitArgPrefixes[RecipeOptions] = field(default_factory=RecipeOptions)
    machine: OmitArgPrefixes[MachineOptions] = field(default_factory=MachineOptions)
    reading: OmitArgPrefixes[ReadingOptions] = field(default_factory=ReadingOptions)
    resume: Annotated[Path | None, _optional("RUN")] = None
    """Go on with the run in this folder, from its latest checkpoint."""
    output: Annotated[Path | None, _optional("DIR")] = None
    """Folder of the new run. Default: a new one in runs/."""

    def on(self, devices: Sequence[torch.device]) -> TrainOptions:
        """The same options with these devices."""
        names = ",".join(str(device) for device in devices)
        return replace(self, machine=replace(self.machine, devices=names))


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
    network = Description(options.network.arch, len(dataset.classes), options.network.variation, tuple(dataset.classes))
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


def _initial_weights(run: Path | None, network: Description) -> str | None:
    """The file of weights that a run or path stands for, once it is clear that the network can start from them."""
    if run is None:
        return None
    path = run if run.is_file() else run / "last.safetensors"
    if not path.is_file():
        raise ConfigurationError(f"--init-from {run}: no file of weights, and no run folder with a finished epoch")
    there = load_description(path)
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
    if load_description(checkpoint / "model.safetensors") != config.network:
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
    progress = load_progress(checkpoint)
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


def _machine(options: MachineOptions, devices: str, architecture: Architecture) -> dict[str, Any]:
    """The fields of a run that say what computes which part of it."""
    names = len(parse_devices(devices))
    check_stages(architecture.block_names, options.stages or 1, names * machines())
    split, stages = options.split or "auto", options.stages
    by_hand = split not in ("auto", "analytic")
    if by_hand and stages is None and options.schedule == "zero-bubble":
        stages = split.count(",") + 2  # any number goes
    layout, schedule = arrange(names, machines(), stages, options.replicas, options.schedule)
    check_stages(architecture.block_names, layout.stages, layout.workers)
    if layout.stages == 1 and options.schedule is not None:
        raise ConfigurationError(
            f"--schedule {options.schedule} orders the passes of several stages, --devices and --stages make 1; leave "
            "it out, or choose --stages 2 or more"
        )
    if by_hand:
        cut_before(architecture, split, layout.stages)
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


def machine_again(options: MachineOptions, config: RunConfig) -> dict[str, Any]:
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


def _step_options(options: MachineOptions) -> dict[str, Any]:
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
        cut_before(architecture, config.split, layout.stages)
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

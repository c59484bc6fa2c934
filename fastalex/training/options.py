"""TODO."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import torch
from tyro.conf import OmitArgPrefixes, Positional, arg

from fastalex.cli import optional as _optional
from fastalex.network.architecture import ActivationName
from fastalex.network.precision import Precision
from fastalex.network.variation import InitName, Variation
from fastalex.parallel.layout import ScheduleName
from fastalex.training.config import BadSamplePolicy, NonFinitePolicy


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
class ParallelOptions:
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
    machine: OmitArgPrefixes[ParallelOptions] = field(default_factory=ParallelOptions)
    reading: OmitArgPrefixes[ReadingOptions] = field(default_factory=ReadingOptions)
    resume: Annotated[Path | None, _optional("RUN")] = None
    """Go on with the run in this folder, from its latest checkpoint."""
    output: Annotated[Path | None, _optional("DIR")] = None
    """Folder of the new run. Default: a new one in runs/."""

    def on(self, devices: Sequence[torch.device]) -> TrainOptions:
        """The same options with these devices."""
        names = ",".join(str(device) for device in devices)
        return replace(self, machine=replace(self.machine, devices=names))

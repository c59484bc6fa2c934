"""Command-line options of training. :mod:`fastalex.training.resolve` turns them into a run."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import OmitArgPrefixes, Positional, arg

from dataloading.command_line import optional
from dataloading.process import command
from fastalex.network.architecture import ActivationName, Precision
from fastalex.network.variation import InitName, Variation
from fastalex.options.choices import BadSamplePolicy, NonFinitePolicy, ScheduleName
from fastalex.recipes.schedule import Order, Recipe

COMMON = (
    "arch",
    "width",
    "recipe",
    "epochs",
    "batch_size",
    "lr",
    "seed",
    "init_from",
    "devices",
    "precision",
    "resume",
    "output",
)
"""What ``--help`` shows of the options; ``--help-all`` shows all."""


@dataclass(frozen=True)
class NetworkOptions:
    """The network, and its variations."""

    arch: Annotated[
        Literal["krizhevsky", "paper", "caffe", "owt", "ungrouped", "half", "separate", "four-layer"],
        arg(aliases=("-a",)),
    ] = "krizhevsky"
    """krizhevsky: the 2012 run behind the paper's numbers; paper: the paper's text; caffe: bvlc_alexnet; owt:
    torchvision's; ungrouped, half, separate: krizhevsky as one tower, as one tower of half the width, as two towers
    without connections; four-layer: a small network for 32-pixel images."""
    width: float = 1.0
    """Multiplies the channels of conv layers and the features of hidden layers. Below 0.5, add --init scaled: the
    original initial weights are too small for narrow networks."""
    lrn: bool = True
    """Local response normalisation."""
    overlapping: bool = True
    """Overlapping 3x3 pooling with stride 2; otherwise 2x2."""
    activation: Annotated[ActivationName | None, optional("{relu,tanh}")] = None
    """Activation function. Default: the architecture's."""
    dropout: Annotated[float | None, optional("P")] = None
    """Dropout probability. Default: the architecture's."""
    without: Annotated[tuple[str, ...], optional("LAYER [LAYER ...]")] = ()
    """Conv layers to remove, such as conv3 conv4."""
    conv6: bool = False
    """Add a sixth conv layer after the last pooling."""
    bottleneck: Annotated[int | None, optional("N")] = None
    """Add a linear layer of N features before the last one, which then needs fewer weights: for many thousands of
    classes (2012: 2048 for 21,843)."""
    init: Annotated[InitName | None, optional("{text,scaled}")] = None
    """Initial weights. text: standard deviation 0.01 everywhere, as the paper says; scaled: the architecture's,
    enlarged for --width below 1 so that signals keep their size. Default: the architecture's."""

    @property
    def variation(self) -> Variation:
        """The options in the form that architectures take."""
        values = asdict(self)
        del values["arch"]
        return Variation(**values)


@dataclass(frozen=True)
class RecipeOptions:
    """The training recipe, and what differs from it."""

    recipe: Annotated[
        Literal[
            "krizhevsky", "source-145", "source-145-2010", "source-170", "paper", "caffe", "owt", "small", "digits",
            "four-layer",
        ] | None,
        optional("RECIPE"),
    ] = None  # fmt: skip
    """krizhevsky (or source-145): the run of 2012; source-145-2010: the run on ILSVRC-2010; source-170: the automatic
    schedule of 2013; paper: the paper's text, with the source's colour noise (0.1 standard deviations; the text's
    eigenvalues are their squares); caffe: bvlc_alexnet's; owt: torchvision's; small: for fewer than 100,000 images;
    digits: for the bundled digits; four-layer: for the network of that name. Default: small or digits by the data; for
    100,000 images and more caffe and owt for the networks of that name, else krizhevsky."""
    epochs: Annotated[int | None, optional("N")] = None
    """Passes over the training images; the schedule is stretched or shrunk to fit, except in a resumed run, where
    its changes stay at their epochs. Epochs count from 1 everywhere. Default: the recipe's; small makes 14, or more
    where these are fewer than 1,300 updates."""
    batch_size: Annotated[int | None, optional("N", "-b")] = None
    """Images per update. Default: the recipe's."""
    lr: Annotated[float | None, optional("LR")] = None
    """Initial learning rate of the weights. Default: the recipe's."""
    momentum: Annotated[float | None, optional("M")] = None
    """Momentum. Default: 0.9."""
    wd: Annotated[float | None, optional("WD", "--weight-decay")] = None
    """Weight decay; on weights only, not on biases, except in owt. Default: 0.0005, for owt 0.0001."""
    scale_lr: bool = False
    """Multiply the learning rate by --batch-size / (the recipe's batch size), and warm up from the recipe's rate."""
    warmup_epochs: Annotated[float | None, optional("N")] = None
    """Increase the learning rate linearly during the first N epochs. Default: 0, or 5 with --scale-lr."""
    lars: Annotated[float | None, optional("TRUST")] = None
    """Layer-wise adaptive learning rates (LARS) with this trust coefficient, for very large batches; 0.001 is usual."""
    seed: Annotated[int | None, optional("N")] = None
    """Seed of initial weights, order, augmentation and dropout (default 0). A seed gives the same run on any
    devices."""
    order: Annotated[Order | None, optional("{fixed,shuffled}")] = None
    """Order of the training images. fixed: shuffled once, and the same in every epoch, as in 2012; shuffled: a new
    order every epoch. Default: fixed for krizhevsky, source-... and caffe, else shuffled."""
    random_crops: Annotated[bool | None, optional("")] = None
    """Crop training images at random positions; otherwise at the centre. Default: the recipe's."""
    resized_crops: Annotated[bool | None, optional("")] = None
    """Crop random parts of random size and aspect ratio, and resize them. Default: for owt only."""
    flip: Annotated[bool | None, optional("")] = None
    """Mirror half of the training images. Default: the recipe's."""
    crops_shared_by: Annotated[int | None, optional("N")] = None
    """Number of consecutive images that share one crop and one flip, drawn anew in every epoch. Default: the recipe's
    (32 for krizhevsky and source-..., as in the 2012 source; else 1)."""
    color_noise: Annotated[float | None, optional("S")] = None
    """Standard deviation of the PCA colour noise; 0 switches it off. Default: the recipe's."""
    fraction: Annotated[float | None, optional("F")] = None
    """Train on this fraction of each class's training images, chosen by the seed. Default: 1."""
    init_from: Annotated[Path | None, optional("RUN")] = None
    """Start from the weights of another run or .safetensors file; if the classes differ, the last layer starts anew."""
    edits: Annotated[tuple[str, ...], arg(name="set", metavar="EDIT [EDIT ...]", help_behavior_hint="")] = ()
    """Change the schedule by hand: epoch=67:conv1.weight.lr=1e-5 epoch=67:color_noise=0. Epochs count from 1: this
    applies from the 67th on."""

    def applied_to(self, recipe: Recipe) -> Recipe:
        """The recipe with what these options replace, except its length and edits."""
        given: dict[str, Any] = {
            "batch_size": self.batch_size,
            "lr": self.lr,
            "momentum": self.momentum,
            "weight_decay": self.wd,
            "order": self.order,
            "crops": self.random_crops,
            "resized_crops": False if self.resized_crops is None and self.random_crops is False else self.resized_crops,
            "flip": self.flip,
            "crops_shared_by": self.crops_shared_by,
            "color_noise": self.color_noise,
            "warmup_epochs": 5.0 if self.scale_lr and self.warmup_epochs is None else self.warmup_epochs,
            "lars": self.lars,
        }
        if self.scale_lr:
            base = recipe if self.lr is None else replace(recipe, lr=self.lr)
            recipe = base.with_scaled_lr(self.batch_size or recipe.batch_size)
            given["lr"] = None
        return replace(recipe, **_given(given))


@dataclass(frozen=True)
class ParallelOptions:
    """Devices, and how they share the work."""

    devices: Annotated[str | None, optional("DEVICES")] = None
    """One device per worker: "0,1" for two GPUs, "0" for one, "cpu", "cpu,cpu"; under torchrun those of each machine.
    Default: two GPUs if there are two, else one, else the CPU."""
    stages: Annotated[int | None, optional("N")] = None
    """Pipeline stages. Default: one per device. Fewer stages than devices make replicas that share each batch (4
    devices, 2 stages: 2 replicas); more give each device several stages (--devices 0 --stages 2)."""
    replicas: Annotated[int | None, optional("N")] = None
    """Replicas of the network that share each batch. Default: devices divided by stages."""
    split: Annotated[str | None, optional("{analytic,auto,BLOCK[,BLOCK...]}")] = None
    """Where to cut the network into stages. analytic (default): balance counted arithmetic. auto: time every block on
    the devices first. Or the first block of each later stage, such as conv3 or conv3,fc6."""
    micro_batches: Annotated[int | None, optional("N")] = None
    """Micro-batches per step and replica. Default: 2 per device on CPUs, 4 per device on GPUs, 1 without stages."""
    schedule: Annotated[ScheduleName | None, optional("{1f1b,eager-1f1b,gpipe,interleaved}")] = None
    """Pipeline schedule. Default: eager-1f1b, or interleaved with several stages per device."""
    max_restarts: int = 0
    """Restart all workers from the last checkpoint after a worker has failed, at most N times (with torchrun, use its
    own option)."""
    precision: Annotated[Precision | None, optional("{fp32,tf32,bf16}")] = None
    """fp32, tf32 (TF32 products on a GPU), or bf16 (bf16 computation with fp32 weights). Default: bf16 on CPUs that
    multiply it, else fp32."""
    cuda_graphs: Annotated[bool | None, optional("")] = None
    """Run training steps from CUDA graphs. Default: if one GPU holds the whole network. Experimental for pipeline
    stages; not available for replicas."""
    overlap_update: Annotated[bool | None, optional("")] = None
    """Update the fully connected weights while the convolutions' backward pass runs. Needs one GPU that holds the whole
    network. Experimental: it has never run on a GPU. Default: off."""
    on_non_finite: Annotated[NonFinitePolicy | None, optional("{stop,skip}")] = None
    """If the loss or a gradient is not finite: stop the run (default), or skip the update and count it."""

    def of_steps(self) -> dict[str, Any]:
        """The given options that are fields of a run's configuration."""
        names = ("cuda_graphs", "overlap_update", "on_non_finite")
        return _given({name: getattr(self, name) for name in names})


@dataclass(frozen=True)
class ReadingOptions:
    """Reading images."""

    on_bad_sample: Annotated[BadSamplePolicy | None, optional("{stop,skip}")] = None
    """If a stored image is damaged: stop the run (default), or use another image of its class and count it."""
    hardware_decoder_load: Annotated[float | None, optional("SHARE")] = None
    """Fraction of each batch that a GPU's JPEG hardware decodes, 0 to 1 (default 0.65); 0 makes runs repeat bit for
    bit."""

    def given(self) -> dict[str, Any]:
        """The given options, all of which are fields of a run's configuration."""
        return _given(asdict(self))


@dataclass(frozen=True)
class TrainOptions:
    """Train the 2012 AlexNet: on the bundled digits, on your own folders of images, or on ImageNet."""

    data: Annotated[Positional[Path | None], optional("[DATA]")] = None
    """A prepared data set, class folders (train/CLASS/*.jpg and val/CLASS/*.jpg), or the word synthetic (random images
    in memory, for timing). Default: the bundled digits."""
    network: OmitArgPrefixes[NetworkOptions] = field(default_factory=NetworkOptions)
    training: OmitArgPrefixes[RecipeOptions] = field(default_factory=RecipeOptions)
    parallel: OmitArgPrefixes[ParallelOptions] = field(default_factory=ParallelOptions)
    reading: OmitArgPrefixes[ReadingOptions] = field(default_factory=ReadingOptions)
    resume: Annotated[Path | None, optional("RUN")] = None
    """Resume the run in this folder from its latest checkpoint, or from the beginning if it has none. With DATA, it
    goes on with these images, which must have the same classes."""
    output: Annotated[Path | None, optional("DIR")] = None
    """Folder of the new run. Default: a new folder in runs/."""
    save_every: Annotated[int | None, optional("STEPS")] = None
    """Save a checkpoint every so many steps, and at the end of every epoch. Default: every 15 minutes and every
    epoch."""
    keep: Annotated[int | None, optional("N")] = None
    """Keep the N latest checkpoints (default 1). The best weights are always kept."""

    def of_saving(self) -> dict[str, Any]:
        """The given options on saving, which are fields of a run's configuration."""
        return _given({"save_every": self.save_every, "keep": self.keep})


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """The options that are not left out."""
    return {name: value for name, value in options.items() if value is not None}


def resume_command(run: Path, **options: object) -> str:
    """The shell command that resumes a run, to show to users: ``resume_command(run, epochs=20)``."""
    words = [str(word) for name, value in options.items() for word in (f"--{name.replace('_', '-')}", value)]
    return command("fastalex.train", "--resume", run, *words)

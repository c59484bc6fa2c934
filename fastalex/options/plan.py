"""The options of ``python -m fastalex.plan``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes, arg

from dataloading.command_line import optional
from fastalex.network.architecture import Precision
from fastalex.options.choices import ScheduleName
from fastalex.options.training import NetworkOptions
from fastalex.recipes.published import build_recipe

PAPER_IMAGES = 1_281_167
"""Training images of ILSVRC-2012."""


COMMON = (
    "arch",
    "width",
    "classes",
    "devices",
    "device_memory",
    "batch_size",
    "split",
    "precision",
    "images",
    "epochs",
    "measure",
    "draw",
)
"""What ``--help`` shows of the options; ``--help-all`` shows all."""


@dataclass(frozen=True)
class PlanOptions:
    """Parameters, memory and time that training would need. Nothing is trained."""

    network: OmitArgPrefixes[NetworkOptions] = field(default_factory=NetworkOptions)
    classes: int = 1000
    """Outputs of the last layer."""
    devices: Annotated[str | None, optional("DEVICES")] = None
    """One device per stage, as for training. With --device-memory they need not exist."""
    device_memory: Annotated[float | None, optional("GIB")] = None
    """Memory of each device in GiB. Default: that of the devices of this machine (CPU workers share its memory)."""
    batch_size: Annotated[int, arg(aliases=("-b",))] = 128
    """Images per update. Training on fewer than 100,000 images has 32 by default."""
    micro_batches: Annotated[int | None, optional("N")] = None
    """Micro-batches per batch. Default: 1 on a single device, else 2 per device on CPUs and 4 per device on GPUs, or
    fewer if they do not divide the batch."""
    split: Annotated[str | None, optional("BLOCK[,BLOCK...]")] = None
    """Where to cut the network into stages: the first block of each later stage, such as conv3 or conv3,fc6. Default:
    balance counted arithmetic."""
    schedule: Annotated[ScheduleName | None, optional("{1f1b,eager-1f1b,gpipe}")] = None
    """Pipeline schedule. Default: eager-1f1b."""
    precision: Annotated[Precision | None, optional("{fp32,tf32,bf16}")] = None
    """fp32, tf32 or bf16. Default: bf16 on CPUs that multiply it, else fp32."""
    images: int = PAPER_IMAGES
    """Training images, as many as in ILSVRC-2012 by default."""
    epochs: int = build_recipe("krizhevsky").epochs
    """Passes over the training images; those of the recipe krizhevsky by default."""
    measure: bool = False
    """Time some training steps on the devices, with random images."""
    draw: Annotated[Path | None, optional("FILE.svg")] = None
    """Draw the network over the stages, with the sizes of every block and, if measured, its time."""
    json: Annotated[Path | None, optional("FILE.json")] = None
    """Write parameters, arithmetic, the memory of each stage and, if measured, the speed to this file."""
    force: bool = False
    """Replace the files of --draw and --json if they exist."""

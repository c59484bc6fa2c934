"""The options of ``python -m fastalex.export``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from dataloading.command_line import optional
from fastalex.options.choices import ExportFormat


@dataclass(frozen=True)
class ExportOptions:
    """Write a trained network in another format.

    FILE.json beside the file says how images are prepared and names the classes. If a mean image is subtracted from
    the images, it is in FILE.mean.npy.
    """

    run: Annotated[Positional[Path], arg(metavar="RUN")]
    """A run folder, or a .safetensors file of weights."""
    to: ExportFormat
    """onnx; pt2 (torch.export, for PyTorch alone); torchvision (weights of owt for torchvision's alexnet);
    timm-safetensors (the same weights as a folder with model.safetensors and config.json)."""
    output: Annotated[Path | None, optional("FILE", "-o")] = None
    """The file to write, for timm-safetensors the folder. Default: beside the weights, with the ending of the
    format."""
    with_preprocessing: bool = False
    """Include the centre crop, the mean and the softmax, for onnx and pt2: uint8 images of the stored size in,
    probabilities out."""
    weights: Literal["best", "last"] = "best"
    """Which weights of the run to use."""
    force: bool = False
    """Replace existing files."""

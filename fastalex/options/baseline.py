"""The options of ``python -m fastalex.baseline``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from dataloading.command_line import optional


@dataclass(frozen=True)
class BaselineOptions:
    """Error rates of hand-crafted features with linear classifiers, the state of the art before 2012."""

    data: Annotated[Positional[Path | None], optional("[DATA]")] = None
    """A prepared data set or class folders. Default: the bundled digits."""
    features: Annotated[str, arg(metavar="{sift,hog}")] = "sift"
    """sift: dense SIFT encoded as Fisher vectors; hog: histograms of oriented gradients, faster."""
    gaussians: int = 64
    """Number of Gaussians of the Fisher vectors. More are slower and more accurate."""
    stripes: bool = True
    """Encode the whole image and its three horizontal stripes; otherwise the whole image alone."""
    split: str = "val"
    """Split of the data set to measure errors on."""
    run: Annotated[Path | None, optional("RUN")] = None
    """A training run on the same data: adds its validation errors after the last epoch to the table."""
    fraction: float = 1.0
    """Train on this fraction of each class's training images: those that a run with this fraction and seed has."""
    seed: int = 0
    """Determines the images of a fraction, those that the Gaussians are fitted to, and the order of training."""
    threads: Annotated[int | None, optional("N")] = None
    """Images processed at a time; the result does not depend on it. Default: one per processor."""
    output: Annotated[Path | None, optional("DIR")] = None
    """Folder for baseline.json. Default: a new one in runs/."""

"""The options of ``python -m fastalex.report``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from dataloading.command_line import optional
from fastalex.network.architecture import Precision


@dataclass(frozen=True)
class ReportOptions:
    """One HTML file that shows what trained networks have learned: curves, errors, kernels, and the images behind them.

    The page holds everything itself and needs no network. Several runs have to be of the same data set.
    """

    paths: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN [RUN ...] [DATA]", help_behavior_hint="")]
    """Run folders. The last path may be a prepared data set or class folders to evaluate on. Default: the training data
    of the first run."""
    output: Annotated[Path, arg(aliases=("-o",), metavar="FILE.html")] = Path("report.html")
    """The page to write."""
    figure4: Annotated[Path | None, optional("FILE.png")] = None
    """Also draw the first run's images, predictions and neighbours as in Figure 4 of the paper; .svg and .json files go
    beside it."""
    force: bool = False
    """Replace existing files."""
    neighbours: int = 2000
    """Search at most this many training images for those nearest to a few others. 0 leaves this part out."""
    split: str = "val"
    """Split of the data set to evaluate on: val, test or train."""
    weights: Literal["best", "last"] = "best"
    """Which weights of the runs to use."""
    training_data: Annotated[Path | None, optional("DATA")] = None
    """The training data of networks of earlier versions that no longer find theirs, prepared or as class folders: their
    mean image is subtracted from the images."""
    device: Annotated[str | None, optional("DEVICE")] = None
    """"0" for the first GPU, or "cpu". Default: the first GPU if there is one, else the CPU."""
    batch_size: Annotated[int, arg(aliases=("-b",))] = 64
    """Images per batch."""
    precision: Precision = "fp32"
    """What the network computes in. tf32 needs a GPU."""

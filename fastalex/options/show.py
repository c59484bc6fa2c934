"""The options of ``python -m fastalex.show``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from dataloading.command_line import optional


@dataclass(frozen=True)
class ShowOptions:
    """Draw the kernels of a network's first convolution, as in Figure 3 of the paper.

    The kernels are in order, 16 to a row, and a wider gap separates the two towers of the networks that have them. Each
    kernel has a scale of its own, on which a weight of 0 is mid-grey.
    """

    run: Annotated[Positional[Path], arg(metavar="RUN")]
    """A run folder, or a .safetensors file of weights."""
    output: Annotated[Path | None, optional("FILE.png", "-o")] = None
    """The picture to write. Default: beside the weights, such as conv1-best.png."""
    weights: Literal["best", "last"] = "best"
    """Which weights of a run to use."""
    force: bool = False
    """Replace an existing file."""

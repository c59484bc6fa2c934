"""The options of ``python -m fastalex.reproduce``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from dataloading.command_line import optional
from fastalex.network.architecture import Precision


@dataclass(frozen=True)
class ReproduceOptions:
    """Reproduce tables, figures and claims of the paper, with the paper's figures beside those measured.

    Trains, evaluates and draws whatever is still missing, and ends with a page. First it says how long that will take.
    A reproduction that was stopped goes on when the same command is given again.
    """

    words: Annotated[
        Positional[tuple[str, ...]], arg(name="what", metavar="WHAT [WHAT ...] DATA [DATA ...]", help_behavior_hint="")
    ]
    """What to reproduce: table1, table2, figure1, figure2, figure3, figure4, claims, or all. Then the data: prepared
    ILSVRC-2010 and ILSVRC-2012, and a larger set to pre-train on. Other images stand in for them: the first set for
    both, the second to pre-train on."""
    devices: Annotated[str | None, optional("DEVICES")] = None
    """As for fastalex.train."""
    epochs: Annotated[int | None, optional("N")] = None
    """Passes over the training images, in every training. Default: the recipes'."""
    width: float = 1.0
    """Multiplies the network's width; below 1 the initial weights are scaled to fit. Figure 1 has a network of its
    own."""
    seeds: Annotated[int | None, optional("N")] = None
    """Networks per row and per variant. Default: those of the paper, 5 in table 2 and 1 in table 1, and 3 for
    claims."""
    batch_size: Annotated[int | None, optional("N", "-b")] = None
    """Images per update. Default: the recipes'."""
    lr: Annotated[float | None, optional("LR")] = None
    """Initial learning rate, but not in figure 1. Default: the recipes'."""
    precision: Annotated[Precision | None, optional("{fp32,tf32,bf16}")] = None
    """As for fastalex.train."""
    output: Annotated[Path | None, optional("DIR", "-o")] = None
    """Folder of all results. Default: reproduction/DATA."""
    plan_only: bool = False
    """Measure the speed, print the plan, and stop."""

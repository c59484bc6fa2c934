"""The options of ``python -m fastalex.evaluate``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from dataloading.command_line import optional
from fastalex.network.architecture import Precision

COMMON = (
    "crops",
    "split",
    "weights",
    "coefficients",
    "mean",
    "worst",
    "class_errors",
    "confusion",
    "predictions",
    "force",
    "devices",
    "batch_size",
)
"""What ``--help`` shows of the options; ``--help-all`` shows all."""


@dataclass(frozen=True)
class EvaluateOptions:
    """Error rates of a trained network, or of an ensemble, on labelled images."""

    paths: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN [RUN ...] [DATA]", help_behavior_hint="")]
    """Run folders or .safetensors files; several form an ensemble, which averages softmax outputs. The last path may be
    a prepared data set or class folders. Default: the training data of the first run."""
    crops: Literal[1, 10] = 1
    """1: the centre crop. 10: four corners and the centre, each also mirrored; softmax outputs are averaged."""
    split: Annotated[str | None, optional("SPLIT")] = None
    """Split of the data set: val, test or train. Default: val, or the only split of DATA with images."""
    weights: Literal["best", "last"] = "best"
    """Which weights of a run to use."""
    coefficients: Annotated[tuple[float, ...], optional("C [C ...]")] = ()
    """Weight of each run in the ensemble. Default: equal weights."""
    fit_coefficients: Annotated[str | None, optional("SPLIT")] = None
    """Fit the coefficients to this split by maximum likelihood. Use another split than --split, or the errors are too
    low."""
    training_data: Annotated[Path | None, optional("DATA")] = None
    """The training data of networks that no longer find theirs, prepared or as class folders: their mean image is
    subtracted from the images."""
    mean: Annotated[str | None, optional("FILE|R,G,B")] = None
    """The mean of networks that do not know theirs, in place of their training data: a .npy file (S x S x 3 is red,
    green, blue; 3 x S x S is Caffe's blue, green, red), Caffe's mean.binaryproto, weights that record it, or a colour
    from 0 to 255."""
    worst: int = 5
    """Number of classes to list, those with the highest errors first."""
    class_errors: Annotated[Path | None, optional("FILE.csv")] = None
    """Write the errors of every class to this file."""
    confusion: Annotated[Path | None, optional("FILE.csv|FILE.png")] = None
    """Write the confusion matrix to this file, as a table or as a picture: how many images of each class (rows) get
    each class as their most probable one (columns)."""
    predictions: Annotated[Path | None, optional("FILE.csv|FILE.npz")] = None
    """Write the name, class and five most probable classes of each image to this file."""
    json: Annotated[Path | None, optional("FILE.json")] = None
    """Write loss and error rates to this file, of the ensemble and of each network alone."""
    force: bool = False
    """Replace existing files."""
    devices: Annotated[str | None, optional("DEVICES", "--device")] = None
    """One device per stage: "0", "0,1", "cpu", "cpu,cpu". Default: the first GPU if there is one, else the CPU."""
    batch_size: Annotated[int, arg(aliases=("-b",))] = 64
    """Images per batch."""
    precision: Precision = "fp32"
    """What the network computes in. tf32 needs a GPU."""

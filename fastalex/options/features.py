"""The options of ``python -m fastalex.features``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from dataloading.command_line import optional
from fastalex.network.architecture import Precision
from fastalex.options.choices import FeatureDType, FeatureFormat

COMMON = (
    "output",
    "split",
    "resize",
    "crop",
    "exif",
    "background",
    "weights",
    "mean",
    "dtype",
    "format",
    "devices",
    "batch_size",
)
"""What ``--help`` shows of the options; ``--help-all`` shows all."""


@dataclass(frozen=True)
class FeaturesOptions:
    """Write the activations of a trained network on a set of images to files.

    A folder of images is read exactly: any size, no JPEG compression in between, files in natural order with those of
    subfolders. The output gets one NAME.npy per activation (images x channels x height x width, or images x features;
    open with numpy.load(path, mmap_mode="r")), samples.csv with the image of each row, and features.json.
    """

    run: Annotated[Positional[Path], arg(metavar="RUN")]
    """A run folder, or a .safetensors file of weights."""
    data: Annotated[Positional[Path], arg(metavar="DATA")]
    """A folder of images, an image, a text file (.txt) that lists images, one per line, or a prepared data set."""
    names: Annotated[Positional[tuple[str, ...]], arg(metavar="ACTIVATION [ACTIVATION ...]", help_behavior_hint="")]
    """Such as conv1 (the output of a block), conv1.conv, conv1.norm, conv5.activation, fc6.linear, fc7. An unknown name
    lists all names."""
    output: Annotated[Path, arg(aliases=("-o",), metavar="DIR")]
    """The folder to create."""
    split: Annotated[str | None, optional("SPLIT")] = None
    """Split of a prepared data set, such as train. Default: val, or the only split with images."""
    resize: Annotated[Literal["shorter", "squash", "none"] | None, optional("{shorter,squash,none}")] = None
    """For files. shorter: resize the shorter side and take the centre square; squash: resize both sides; none: keep the
    pixels as they are. Default: as the training images."""
    crop: bool = True
    """For files. Cut the input out of the resized image, as in training; otherwise resize to the input's size."""
    exif: bool = False
    """For files. Turn images by their EXIF orientation."""
    background: Annotated[str | None, optional("R,G,B")] = None
    """For files. The colour, 0 to 255, that transparent images are laid on. Default: the colours under the
    transparency."""
    weights: Literal["best", "last"] = "best"
    """Which weights of the run to use."""
    training_data: Annotated[Path | None, optional("DATA")] = None
    """The training data of a network that no longer finds its own, prepared or as class folders: their mean image is
    subtracted from the images."""
    mean: Annotated[str | None, optional("FILE|R,G,B")] = None
    """The mean of a network that does not know its own, in place of its training data: a .npy file (S x S x 3 is red,
    green, blue; 3 x S x S is Caffe's blue, green, red), Caffe's mean.binaryproto, weights that record it, or a colour
    from 0 to 255."""
    dtype: FeatureDType = "float32"
    """Data type of the files."""
    format: FeatureFormat = "npy"
    """npy: NumPy; h5: HDF5, for which MATLAB has h5read; mat: MATLAB. The last two call the array activations."""
    devices: Annotated[str | None, optional("DEVICES", "--device")] = None
    """One device per stage: "0", "0,1", "cpu", "cpu,cpu". Default: the first GPU if there is one, else the CPU."""
    batch_size: Annotated[int, arg(aliases=("-b",))] = 64
    """Images per batch."""
    precision: Precision = "fp32"
    """What the network computes in. tf32 needs a GPU."""

"""The options of ``python -m fastalex.convert``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from dataloading.command_line import optional
from fastalex.options.choices import Channels


@dataclass(frozen=True)
class ConvertOptions:
    """Turn a trained AlexNet of another program into weights of fastalex.

    torchvision's alexnet (.pth, .safetensors) becomes owt. Caffe's bvlc_alexnet.caffemodel and the ONNX model zoo's
    bvlcalexnet (.onnx) become caffe.
    """

    file: Annotated[Positional[Path], arg(metavar="FILE")]
    """The other program's weights: .pth, .pt, .safetensors, .caffemodel or .onnx."""
    output: Annotated[Positional[Path], arg(metavar="OUT.safetensors")]
    """The file to write."""
    mean: Annotated[str | None, optional("FILE|R,G,B")] = None
    """What is subtracted from the images: Caffe's mean.binaryproto, a .npy file (S x S x 3 is red, green, blue, and
    3 x S x S is Caffe's blue, green, red), other weights that record it, or a colour from 0 to 255. Caffe's network
    needs it; torchvision's has 123.675,116.28,103.53 by default."""
    classes: Annotated[Path | None, optional("FILE")] = None
    """The names of the classes, one a line. Of "n01440764 tench, Tinca tinca" the words after the id are taken."""
    channels: Annotated[Channels | None, optional("{rgb,bgr}")] = None
    """Order of the colours in the images that FILE's network takes. Default: bgr for Caffe's, rgb for torchvision's."""
    force: bool = False
    """Replace an existing file."""

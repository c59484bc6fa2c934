"""Another program's network becomes a file of weights: with its mean, its classes, and how its images are prepared."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fastalex.errors import ConfigurationError
from fastalex.interchange import from_caffe, from_onnx, from_torchvision
from fastalex.interchange.foreign_network import FULL_SIZE, Channels, ForeignNetwork
from fastalex.network.foreign_files import check_file, is_text
from fastalex.network.means import read_mean
from fastalex.network.variation import Variation
from fastalex.network.weights import NetworkSpec
from fastalex.network.weights_record import WeightsRecord, save_weights

_STORED_SIZE = 256  # of Caffe's and torchvision's images
_SYNSET = re.compile(r"(n\d{8})\s+(.+)")


class MissingMean(ConfigurationError):
    """The format does not hold the mean of the network's images, and none was given."""


@dataclass(frozen=True, eq=False)
class Conversion:
    """What a conversion has made.

    Args:
        network: with its classes.
        record: how its images are prepared.
        source: what the file was.
        channels: the order of the colours in it; the weights written take red, green and blue.
        note: anything the user should know; empty if nothing.
    """

    network: NetworkSpec
    record: WeightsRecord
    source: str
    channels: Channels
    note: str


def convert(
    path: Path,
    output: Path,
    *,
    mean: str | None = None,
    classes: Path | None = None,
    channels: Channels | None = None,
    overwrite: bool = False,
    variation: Variation = FULL_SIZE,
) -> Conversion:
    """Write another program's network as a file of weights.

    Args:
        path: of the other program: ``.pth``, ``.pt``, ``.safetensors``, ``.caffemodel`` or ``.onnx``.
        output: the ``.safetensors`` file to write.
        mean: what is subtracted from its images; see :func:`fastalex.network.means.read_mean`. None takes torchvision's
            for its network.
        classes: a text file of names; see :func:`read_classes`.
        channels: order of the colours that the network takes. None takes blue, green and red for ``caffe``, as Caffe
            does, and red, green and blue for ``owt``.
        overwrite: replace an existing file.
        variation: of a network that was made narrower.

    Raises:
        MissingMean: the network needs a mean.
        ConfigurationError: a file is missing, damaged or of another network, or ``output`` exists or cannot be written.
    """
    given_mean = None if mean is None else read_mean(mean)  # small files first
    names = () if classes is None else read_classes(classes)
    foreign = read_network(path, variation)
    record = _record(foreign, given_mean, path)
    if names and len(names) != foreign.network.num_classes:
        raise ConfigurationError(
            f"{classes} names {len(names)} classes, {path} has {foreign.network.num_classes}; give one name a line"
        )
    network = replace(foreign.network, classes=names, channel_means=record.mean.ndim == 1)
    channels = channels or foreign.channels
    weights = dict(foreign.weights)
    if channels == "bgr":
        weights["conv1.weight"] = weights["conv1.weight"].flip(1)
    save_weights(output, _contiguous(weights), network, record, overwrite=overwrite)
    return Conversion(network, record, foreign.source, channels, foreign.note)


def read_network(path: Path, variation: Variation = FULL_SIZE) -> ForeignNetwork:
    """The network in another program's file; the suffix tells the format.

    Raises:
        ConfigurationError: the format is unknown, or the file is missing, damaged or of another network.
    """
    for module, read in (
        (from_torchvision, from_torchvision.read_torchvision),
        (from_caffe, from_caffe.read_caffemodel),
        (from_onnx, from_onnx.read_onnx),
    ):
        if path.suffix.lower() in module.SUFFIXES:
            check_file(path)
            if is_text(path):
                raise ConfigurationError(f"{path} is a text file, not weights: name the file that holds them")
            return read(path, variation)
    check_file(path)
    known = ".pth, .pt or .safetensors (torchvision), .caffemodel (Caffe) or .onnx"
    raise ConfigurationError(f"{path} ends with {path.suffix!r}; the networks that can be converted end with {known}")


def read_classes(path: Path) -> tuple[str, ...]:
    """The names of the classes in a text file, one a line, in the order of the network's outputs.

    Where all lines begin with a WordNet id, as in "n01440764 tench, Tinca tinca", the words after it are the name, and
    the id follows it in parentheses if several classes have the same words ("crane" is a bird and a machine).

    Raises:
        ConfigurationError: no such file, or it is no text, has an empty line, or names a class twice.
    """
    check_file(path)
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").rstrip().splitlines()]
    except UnicodeDecodeError:
        raise ConfigurationError(f"{path} is no text in UTF-8; give the names of the classes, one a line") from None
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}") from None
    if "" in lines:
        raise ConfigurationError(f"{path}: line {lines.index('') + 1} is empty; give one name a line")
    synsets = [found for line in lines if (found := _SYNSET.fullmatch(line))]
    if len(synsets) == len(lines):
        words = Counter(found[2] for found in synsets)
        lines = [found[2] if words[found[2]] == 1 else f"{found[2]} ({found[1]})" for found in synsets]
    name, count = Counter(lines).most_common(1)[0]
    if count > 1:
        raise ConfigurationError(f"{path} has {name!r} {count} times; give each class a name of its own")
    return tuple(lines)


def _record(foreign: ForeignNetwork, mean: NDArray[np.float32] | None, path: Path) -> WeightsRecord:
    """How images are prepared: torchvision resizes the shorter side, Caffe both sides, to 256 pixels."""
    is_caffe = foreign.network.architecture == "caffe"
    if mean is None and is_caffe:
        raise MissingMean(f"{path} does not hold the mean of its training images, which the network needs")
    mean = from_torchvision.MEAN if mean is None else mean
    size = _STORED_SIZE if mean.ndim == 1 else len(mean)
    crop = foreign.network.build_architecture().image_size
    if size < crop:
        raise ConfigurationError(
            f"the mean image has {size} x {size} pixels, the network takes {crop} x {crop} of them"
        )
    resize: Literal["shorter", "squash"] = "squash" if is_caffe else "shorter"
    return WeightsRecord(mean, size, crop, resize)


def _contiguous(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies in one memory format, which tensors of other programs need not have."""
    return {name: tensor.contiguous() for name, tensor in weights.items()}

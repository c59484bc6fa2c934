"""What is read from another program's file, and the check of it that all formats share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastalex.errors import ConfigurationError
from fastalex.network.architecture import Architecture
from fastalex.network.variation import Variation
from fastalex.network.weights import NetworkSpec
from fastalex.network.weights_record import check_shapes
from fastalex.options.choices import Channels

FULL_SIZE = Variation()


@dataclass(frozen=True, eq=False)
class ForeignNetwork:
    """A network of another program.

    Args:
        weights: float32, by our names.
        network: which the weights belong to.
        source: what the file is, for messages.
        channels: order of the colours in the images that it takes.
        note: anything the user should know; empty if nothing.
    """

    weights: Mapping[str, Tensor]
    network: NetworkSpec
    source: str
    channels: Channels
    note: str = ""


def checked(
    path: Path, weights: Mapping[str, Tensor], architecture: str, variation: Variation
) -> tuple[dict[str, Tensor], NetworkSpec]:
    """The weights in fp32, and the network that they belong to, which has as many classes as the last layer outputs.

    Raises:
        ConfigurationError: a weight is missing, unknown or of another shape (the first five are named), or
            not of finite numbers.
    """
    last = weights.get("fc8.weight")
    classes = len(last) if last is not None and last.dim() == 2 and len(last) else 1000
    network = NetworkSpec(architecture, classes, variation)
    try:
        check_shapes(weights, network)
    except ConfigurationError as error:
        raise ConfigurationError(f"{path}: {error}") from None
    for name, tensor in weights.items():
        if not tensor.is_floating_point() or tensor.layout != torch.strided or tensor.is_meta:
            raise ConfigurationError(f"{path}: {name} is {tensor.dtype}, {tensor.layout}; dense floats are wanted")
    converted = {name: tensor.float() for name, tensor in weights.items()}
    for name, tensor in converted.items():
        if not torch.isfinite(tensor).all():
            raise ConfigurationError(f"{path}: {name} has values that are not finite; copy or download the file again")
    return converted, network


def by_position(
    layers: Iterable[tuple[str, NDArray[np.float32], NDArray[np.float32] | None]], architecture: Architecture
) -> dict[str, Tensor]:
    """Weights and biases by our names, from the layers with weights in order, of which each has a name of its own.

    Layers beyond the architecture's keep their own names.
    """
    ours = list(architecture.block_names)
    found: dict[str, Tensor] = {}
    for index, (name, weight, bias) in enumerate(layers):
        block = ours[index] if index < len(ours) else name
        found[f"{block}.weight"] = torch.from_numpy(np.ascontiguousarray(weight))
        if bias is not None:
            found[f"{block}.bias"] = torch.from_numpy(np.ascontiguousarray(bias))
    return found

"""torchvision's ``alexnet``: a state dict in a PyTorch file (``.pth``, ``.pt``) or in a ``.safetensors`` file.

It is our ``owt``. The names of its weights are those of ``torchvision/models/alexnet.py``: ``features`` is a sequence
of convolutions, ReLU and pooling, ``classifier`` one of dropout, fully connected layers and ReLU. fc6 reads the last
feature maps channel by channel, row by row, as ours does, so no weight changes.
"""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fastalex.errors import ConfigurationError
from fastalex.interchange.foreign_network import FULL_SIZE, ForeignNetwork, checked
from fastalex.network.foreign_files import check_file
from fastalex.network.variation import Variation
from fastalex.network.weights import find_header

SUFFIXES = (".pth", ".pt", ".safetensors")

MEAN = np.array([0.485, 0.456, 0.406], np.float32) * 255
"""The mean colour that torchvision subtracts, here for images from 0 to 255."""

_LAYERS = {
    "features.0": "conv1",
    "features.3": "conv2",
    "features.6": "conv3",
    "features.8": "conv4",
    "features.10": "conv5",
    "classifier.1": "fc6",
    "classifier.4": "fc7",
    "classifier.6": "fc8",
}


def read_torchvision(path: Path, variation: Variation = FULL_SIZE) -> ForeignNetwork:
    """torchvision's ``alexnet``, also from a checkpoint of PyTorch's ImageNet example.

    Args:
        variation: of a network that was made narrower.

    Raises:
        ConfigurationError: the file is missing, damaged, contains code, or holds another network.
    """
    check_file(path)
    stored = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pytorch(path)
    weights = {}
    for name, tensor in stored.items():
        layer, _, kind = name.replace("module.", "").rpartition(".")  # of DataParallel
        weights[f"{_LAYERS[layer]}.{kind}" if layer in _LAYERS else name] = tensor
    return ForeignNetwork(*checked(path, weights, "owt", variation), "torchvision's alexnet", "rgb")


def _read_safetensors(path: Path) -> Mapping[str, Tensor]:
    if find_header(path, "fastalex") is not None:  # raises if it is no .safetensors file
        raise ConfigurationError(f"{path} was written by fastalex; use it as it is")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ConfigurationError(f"{path} is damaged: {error}; copy or download it again") from None


def _read_pytorch(path: Path) -> Mapping[str, Tensor]:
    try:
        with warnings.catch_warnings(action="ignore"):  # of old ways to write files
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"holds {named[1]}, and may run code when it is loaded" if named else "is damaged, or no PyTorch file"
        raise ConfigurationError(f"{path} {reason}; save model.state_dict() and convert that") from None
    except Exception as error:  # what damage raises, torch does not say
        if "TorchScript" in str(error):
            raise ConfigurationError(
                f"{path} holds a TorchScript program; save model.state_dict() and convert that"
            ) from None
        reason = (str(error) or type(error).__name__).partition("\n")[0].partition(". ")[0]
        raise ConfigurationError(f"{path} is damaged: {reason}; copy or download it again") from None
    if isinstance(loaded, Mapping) and isinstance(loaded.get("state_dict"), Mapping):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, Mapping) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise ConfigurationError(
            f"{path} holds {type(loaded).__name__}, not the weights by name; save model.state_dict() and convert that"
        )
    return {str(name): tensor.detach() for name, tensor in loaded.items()}

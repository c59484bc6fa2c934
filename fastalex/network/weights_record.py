"""What a file of weights holds besides its network: how its images are prepared, and which run made it.

So the file suffices to use the network, wherever it lies and whatever became of its training data. The record is JSON
in the header under ``record``; the mean that is subtracted from its images is the tensor ``preprocessing.mean``. Files
of earlier versions have neither.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastalex.errors import ConfigurationError
from fastalex.files import sync
from fastalex.json_types import check_json
from fastalex.network.weights import NetworkSpec, find_header, load_tensors, save_tensors

_RECORD = "record"  # key of the header's entry
_MEAN = "preprocessing.mean"  # name of the tensor


@dataclass(frozen=True)
class Origin:
    """The run that made the weights.

    Args:
        data, fingerprint: name and fingerprint of the training data.
        recipe: name of the recipe.
        epoch: finished epochs.
        top1_error: top-1 validation error after them, in percent; None before the first.
        version: of fastalex.
    """

    data: str
    fingerprint: str
    recipe: str
    epoch: int
    top1_error: float | None
    version: str


@dataclass(frozen=True)
class _Record:
    """The JSON of a record."""

    stored_size: int
    crop_size: int
    resize: Literal["shorter", "squash"]
    origin: Origin | None = None
    words: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class WeightsRecord:
    """How images are prepared for a network, and which run made its weights.

    Args:
        mean: what is subtracted from the stored image, as red, green and blue from 0 to 255: S x S x 3 for a mean
            image, 3 for a mean colour; float32.
        stored_size: S, the side of the stored image, which the crop is cut out of.
        crop_size: side of the network's input.
        resize: ``shorter`` resizes the shorter side to S and takes the centre square, ``squash`` resizes both sides.
        origin: the run, if one made the weights.
        words: describe the classes, such as "tench, Tinca tinca"; empty if there are none.
    """

    mean: NDArray[np.float32]
    stored_size: int
    crop_size: int
    resize: Literal["shorter", "squash"] = "shorter"
    origin: Origin | None = field(default=None)
    words: tuple[str, ...] = ()

    def header(self) -> dict[str, str]:
        """The entries of a file's header."""
        record = _Record(self.stored_size, self.crop_size, self.resize, self.origin, self.words)
        return {_RECORD: json.dumps(asdict(record))}

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of a file."""
        return {_MEAN: torch.from_numpy(np.ascontiguousarray(self.mean))}

    def mean_image(self) -> NDArray[np.float32]:
        """The mean as an image, S x S x 3."""
        return np.ascontiguousarray(np.broadcast_to(self.mean, (self.stored_size, self.stored_size, 3)))


def load_record(path: Path) -> WeightsRecord | None:
    """The record in a file of weights; None in a file of an earlier version.

    Raises:
        ConfigurationError: the file is missing, damaged, or not written by fastalex.
    """
    text = find_header(path, _RECORD)
    if text is None:
        return None
    mean = load_tensors(path, [_MEAN])[_MEAN]
    try:
        values = json.loads(text)
        check_json(_Record, values, _RECORD, required=("stored_size", "crop_size", "resize"))
        origin = Origin(**values["origin"]) if values.get("origin") else None
        size = values["stored_size"]
        if mean.dtype != torch.float32 or tuple(mean.shape) not in ((3,), (size, size, 3)):
            raise ValueError(f"its mean is {mean.dtype} of shape {tuple(mean.shape)}")
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigurationError(
            f"{path} is damaged: its header does not say how images are prepared ({error}); restore the file from a "
            "copy"
        ) from None
    words = tuple(values.get("words", ()))
    return WeightsRecord(mean.numpy(), size, values["crop_size"], values["resize"], origin, words)


def save_weights(
    path: Path, weights: Mapping[str, Tensor], network: NetworkSpec, record: WeightsRecord, *, overwrite: bool = False
) -> None:
    """Write a file of weights. It appears complete or not at all.

    Args:
        path: ends with ``.safetensors``; its folder exists.
        weights: of the whole network by parameter name, float32.
        network: which the weights belong to.
        record: how its images are prepared.
        overwrite: replace an existing file.

    Raises:
        ConfigurationError: the file exists or cannot be written, or a weight is missing or has another shape.
    """
    if path.suffix != ".safetensors":
        raise ConfigurationError(f"{path} must end with .safetensors, got {path.suffix!r}")
    if path.exists() and not overwrite:
        raise ConfigurationError(f"{path} exists already; choose another file, or overwrite it")
    check_shapes(weights, network)
    tensors = {name: tensor.detach().float().cpu().contiguous() for name, tensor in weights.items()}
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_tensors(tensors | record.tensors(), temporary, {"fastalex": network.to_json(), **record.header()})
        os.replace(temporary, path)
        sync(path.absolute().parent)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error.strerror}; choose another file") from None
    finally:
        temporary.unlink(missing_ok=True)


def check_shapes(weights: Mapping[str, Tensor], network: NetworkSpec) -> None:
    """Check that these are all the parameters of the network, and name the first five that are not.

    Raises:
        ConfigurationError: a parameter is missing, unknown or of another shape.
    """
    with torch.device("meta"):
        expected = {name: tuple(value.shape) for name, value in network.build(seed=0).named_parameters()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    wrong = [name for name in (expected | found) if expected.get(name) != found.get(name)]
    if wrong:
        texts = [
            f"{name}: {found.get(name, 'missing')}, wanted {expected.get(name, 'no such weight')}" for name in wrong[:5]
        ]
        more = f", and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise ConfigurationError(f"these are not the weights of {network.summary()}: {'; '.join(texts)}{more}")

"""Weight files (``.safetensors``): which network the weights belong to, and how to load them.

The header of every file that fastalex writes holds a :class:`NetworkSpec` as JSON under the key ``fastalex``, and
SHA-256 sums under ``sha256``: of the other entries of the header, and of each tensor. What is read is compared with
them. Files of earlier versions have no sums.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dataloading.process import command
from fastalex.errors import ConfigurationError
from fastalex.files import runs_near, sync
from fastalex.json_types import check_json
from fastalex.network.architecture import Architecture, ConvBlock
from fastalex.network.foreign_files import what_it_is
from fastalex.network.model import AlexNet
from fastalex.network.variation import Variation, build_architecture

HUB_FILE = "model.safetensors"
"""Name of the file of weights in a folder as on the Hugging Face hub."""

_SUMS = "sha256"  # key of the header's entry with the sums
_HEADER = ""  # and the header's own name among the tensors' names there


@dataclass(frozen=True)
class NetworkSpec:
    """The network that weights belong to; stored with them.

    Args:
        architecture: name of the architecture.
        num_classes: number of outputs.
        variation: changes to the architecture.
        classes: names of the classes in the order of the outputs; empty if unknown.
        channel_means: whether the mean of each colour channel was subtracted from the training images, instead of their
            mean image.
    """

    architecture: str
    num_classes: int
    variation: Variation = field(default_factory=Variation)
    classes: tuple[str, ...] = ()
    channel_means: bool = False

    def build_architecture(self) -> Architecture:
        """The architecture with its variation; computed once."""
        return _build_architecture(self.architecture, self.num_classes, self.variation)

    def build(self, seed: int | None = None) -> AlexNet:
        """The network with initial weights."""
        return AlexNet(self.build_architecture(), seed=seed)

    def summary(self) -> str:
        """The architecture's name and its variation: ``krizhevsky width=0.5 without=conv3``."""
        default = Variation()
        varied = {name: value for name, value in asdict(self.variation).items() if value != getattr(default, name)}
        texts = (f"{name}={'+'.join(value) if isinstance(value, tuple) else value}" for name, value in varied.items())
        return " ".join([self.architecture, *texts])

    def can_start_from(self, other: NetworkSpec) -> bool:
        """Whether the other network's weights fit this network, apart from the head (last layer and bottleneck)."""
        return self.architecture == other.architecture and _without_head(self.variation) == _without_head(
            other.variation
        )

    def to_json(self) -> str:
        """JSON for a file's header."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> NetworkSpec:
        """The inverse of :meth:`to_json`.

        Raises:
            TypeError, ValueError: not what :meth:`to_json` writes.
        """
        values = json.loads(text)
        check_json(cls, values, "network", required=("architecture", "num_classes", "variation", "classes"))
        spec = cls(
            values["architecture"],
            values["num_classes"],
            Variation(**values["variation"]),
            tuple(values["classes"]),
            values.get("channel_means", False),
        )
        if len(spec.classes) not in (0, spec.num_classes):
            raise ValueError(f"network.num_classes is {spec.num_classes}, but {len(spec.classes)} classes are named")
        return spec


@functools.cache
def _build_architecture(name: str, num_classes: int, variation: Variation) -> Architecture:
    return build_architecture(name, num_classes, variation)


def _without_head(variation: Variation) -> Variation:
    """The variation with default values for all fields that do not change the shapes below the head."""
    return replace(variation, dropout=None, init=None, bottleneck=None)


def find_weights(path: Path, which: Literal["best", "last"] = "best") -> Path:
    """The file of weights that a path names.

    That is the file itself, ``best.safetensors`` or ``last.safetensors`` of a run folder, or ``model.safetensors`` of a
    folder as on the Hugging Face hub.

    Raises:
        ConfigurationError: there is no such file or folder, it is not a run folder, or the run has no weights yet.
    """
    if not path.exists():
        raise ConfigurationError(f"no such run folder or weights file: {path}{runs_near(path)}")
    if not path.is_dir():
        return path
    weights = path / f"{which}.safetensors"
    if weights.exists():
        return weights
    if not (path / "config.json").is_file():
        if (path / HUB_FILE).is_file():
            return path / HUB_FILE
        raise ConfigurationError(f"{path} is not a run folder: it has no config.json{runs_near(path)}")
    if which == "best" and (path / "last.safetensors").exists():
        reason = "its first epoch is not finished; use its last weights instead"
    else:
        reason = "it has not saved a checkpoint"
    raise ConfigurationError(f"{path} has no {weights.name} yet: {reason}")


def names_weights(path: Path) -> bool:
    """Whether a path on a command line names a network and not data: a run, a folder as on the hub, or a file."""
    return path.suffix == ".safetensors" or any((path / name).is_file() for name in ("config.json", HUB_FILE))


def load_spec(path: Path) -> NetworkSpec:
    """The network that the weights in a file belong to.

    Raises:
        ConfigurationError: the file is missing, damaged, or not written by fastalex.
    """
    text = load_header(path, "fastalex")
    try:
        spec = NetworkSpec.from_json(text)
        spec.build_architecture()
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigurationError(
            f"{path} is damaged: its header does not describe a network ({error}); restore the file from a copy"
        ) from None
    return spec


def load_header(path: Path, key: str) -> str:
    """One entry of a file's header.

    Raises:
        ConfigurationError: the file is missing, damaged, or has no such entry.
    """
    text = find_header(path, key)
    if text is None:
        raise ConfigurationError(
            f"{path} was not written by fastalex: its header has no {key!r}; name the weights of a run, or "
            f"convert torchvision's with: {command('fastalex.convert', 'FILE', 'OUT.safetensors')}"
        )
    return text


def find_header(path: Path, key: str) -> str | None:
    """One entry of a file's header; None if there is no such entry.

    Raises:
        ConfigurationError: the file is missing or damaged.
    """
    with _open(path) as file:
        header = file.metadata() or {}
    if key not in header:
        return None
    _read_sums(path, header)
    return header[key]


def load_tensors(path: Path, names: Collection[str]) -> dict[str, Tensor]:
    """The named tensors of a file; only these are read.

    Raises:
        ConfigurationError: the file is missing or damaged, or lacks one of the tensors.
    """
    with _open(path) as file:
        stored = set(file.keys())
        missing = [name for name in names if name not in stored]
        if missing:
            raise ConfigurationError(f"{path} has no {', '.join(missing)}: it holds weights of another architecture")
        sums = _read_sums(path, file.metadata() or {})
        tensors = {name: file.get_tensor(name) for name in names}
    for name, tensor in tensors.items():
        if sums is not None and sums.get(name) != _tensor_sha256(tensor):
            raise _damaged(path, name)
    return tensors


def save_tensors(tensors: dict[str, Tensor], path: Path, header: Mapping[str, str]) -> None:
    """Write a .safetensors file with its sums, which everybody may read, and sync it.

    Args:
        tensors: contiguous, on the CPU.

    Raises:
        OSError: it cannot be written.
    """
    try:
        save_file(tensors, path, metadata=with_sums(tensors, header))
    except SafetensorError as error:
        # Its text holds the system's error: "... (os error 28)", in earlier versions "Os { code: 28, ...".
        code = re.search(r"(?:os error|code:) (\d+)", str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from None
    with contextlib.suppress(OSError):  # some file systems have no modes
        path.chmod(0o644)  # safetensors creates files that only their owner can read
    sync(path)


def with_sums(tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> dict[str, str]:
    """The entries of a header, completed by the SHA-256 sums of these entries and of the tensors.

    Args:
        tensors: those of the file, contiguous, on the CPU.
    """
    sums = {_HEADER: _header_sha256(header), **{name: _tensor_sha256(tensor) for name, tensor in tensors.items()}}
    return {**header, _SUMS: json.dumps(sums)}


def _read_sums(path: Path, header: Mapping[str, str]) -> dict[str, str] | None:
    """The sums in a header, after comparing the header's own; None in a file of an earlier version."""
    if _SUMS not in header:
        return None
    try:
        sums: dict[str, str] = json.loads(header[_SUMS])
        is_intact = sums[_HEADER] == _header_sha256(header)
    except (ValueError, KeyError, TypeError):
        is_intact = False
    if not is_intact:
        raise _damaged(path, "its header")
    return sums


def _header_sha256(header: Mapping[str, str]) -> str:
    content = {name: value for name, value in header.items() if name != _SUMS}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _tensor_sha256(tensor: Tensor) -> str:
    """The sum over dtype, shape and bytes of a tensor."""
    found = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
    found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _damaged(path: Path, what: str) -> ConfigurationError:
    return ConfigurationError(
        f"{path} is damaged: the SHA-256 of {what} is not the one that was written; restore the file from a copy"
    )


def start_from(model: AlexNet, spec: NetworkSpec, path: Path) -> None:
    """Copy weights from a file into a new network, for fine-tuning.

    The head (the last layer, and the bottleneck before it if there is one) keeps its initial weights unless both
    networks have the same classes and the same bottleneck.

    Args:
        spec: describes ``model``.

    Raises:
        ConfigurationError: the weights belong to another architecture.
    """
    source = load_spec(path)
    same_head = (source.classes, source.variation.bottleneck) == (spec.classes, spec.variation.bottleneck)
    for block in model.blocks():
        if same_head or block.spec.name not in ("bottleneck", model.architecture.block_names[-1]):
            load_parameters(block, path, prefix=f"{block.spec.name}.")


@torch.no_grad()
def load_parameters(module: torch.nn.Module, path: Path, prefix: str = "") -> None:
    """Load the parameters of a module, such as one stage of the network, from a file.

    Args:
        prefix: precedes the module's parameter names in the file.

    Raises:
        ConfigurationError: a parameter is missing or has another shape.
    """
    parameters = {prefix + name: parameter for name, parameter in module.named_parameters()}
    for name, tensor in load_tensors(path, parameters).items():
        _check_shape(path, name, tensor, tuple(parameters[name].shape))
        parameters[name].copy_(tensor)


def _check_shape(path: Path, name: str, tensor: Tensor, expected: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != expected:
        raise ConfigurationError(
            f"{path}: {name} has shape {tuple(tensor.shape)}, the network needs {expected}: it holds weights of "
            "another architecture"
        )


@dataclass(frozen=True, eq=False)
class FirstLayer:
    """The first convolution of a trained network, whose kernels see the image.

    Args:
        name: of the block, ``conv1`` unless that layer was removed.
        weights: K kernels, K x 3 x S x S, for red, green and blue.
        towers: groups of K / towers consecutive kernels that are kept apart (:attr:`Architecture.first_layer_towers`).
    """

    name: str
    weights: Tensor
    towers: int


def load_first_layer(path: Path) -> FirstLayer:
    """The first convolution in a file of weights; only this is read.

    Raises:
        ConfigurationError: the file is missing, damaged, or not written by fastalex.
    """
    architecture = load_spec(path).build_architecture()
    block = architecture.blocks[0]
    assert isinstance(block, ConvBlock)
    name = f"{block.name}.weight"
    weights = load_tensors(path, [name])[name]
    _check_shape(path, name, weights, (block.out_channels, 3, block.kernel_size, block.kernel_size))
    return FirstLayer(block.name, weights, architecture.first_layer_towers)


def load_model(path: str | Path) -> tuple[AlexNet, NetworkSpec]:
    """The trained network of a run, on the CPU in fp32 and evaluation mode, and its spec.

    Args:
        path: a ``.safetensors`` file, or a run folder, which stands for its ``best.safetensors``.

    Raises:
        ConfigurationError: the file is missing, damaged, or not written by fastalex.
    """
    path = find_weights(Path(path))
    spec = load_spec(path)
    model = spec.build(seed=0)
    load_parameters(model, path)
    return model.eval(), spec


def _open(path: Path) -> Any:
    if path.is_dir():
        raise ConfigurationError(f"{path} is a folder; name a file of weights, such as {path / 'best.safetensors'}")
    if not path.exists():
        raise ConfigurationError(f"no such file: {path}")
    if not path.is_file():  # reading a pipe would wait for ever
        raise ConfigurationError(f"{path} is not a regular file; name a file of weights")
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        try:
            what = what_it_is(path) or f"damaged: {error}; restore the file from a copy"
        except OSError as unreadable:
            raise ConfigurationError(f"cannot read {path}: {unreadable.strerror}") from None
        raise ConfigurationError(f"{path} is {what}") from None

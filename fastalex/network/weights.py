"""TODO."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fastalex.errors import ConfigurationError
from fastalex.network.architecture import Architecture
from fastalex.network.model import AlexNet
from fastalex.network.variation import Variation, build_architecture


@dataclass(frozen=True)
class NetworkSpec:
    """Which network weights belong to; stored with them."""

    architecture: str
    num_classes: int
    variation: Variation = field(default_factory=Variation)
    classes: tuple[str, ...] = ()

    def build_architecture(self) -> Architecture:
        """What the network is."""
        return build_architecture(self.architecture, self.num_classes, self.variation)

    def build(self, seed: int | None = None) -> AlexNet:
        """The network, with initial weights."""
        return AlexNet(self.build_architecture(), seed=seed)

    def summary(self) -> str:
        """The architecture's name and what was varied: ``krizhevsky width=0.5 without=conv3``."""
        plain = Variation()
        varied = {name: value for name, value in asdict(self.variation).items() if value != getattr(plain, name)}
        texts = (f"{name}={'+'.join(value) if isinstance(value, tuple) else value}" for name, value in varied.items())
        return " ".join([self.architecture, *texts])

    def can_start_from(self, other: NetworkSpec) -> bool:
        """Whether the other network's weights fit this one, but for the layers that lead to the classes."""
        return self.architecture == other.architecture and _body(self.variation) == _body(other.variation)

    def to_json(self) -> str:
        """As text for a file's header."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> NetworkSpec:
        """The inverse of :meth:`to_json`."""
        values = json.loads(text)
        variation = values["variation"]
        variation["without"] = tuple(variation["without"])
        return cls(values["architecture"], values["num_classes"], Variation(**variation), tuple(values["classes"]))


def _body(variation: Variation) -> Variation:
    """Without what changes no shape of the layers below those that lead to the classes."""
    return replace(variation, dropout=None, init=None, bottleneck=None)


def load_spec(path: Path) -> NetworkSpec:
    """Which network the weights in a file belong to.

    Raises:
        ConfigurationError: no such file, a damaged one, or one that fastalex did not write.
    """
    with _open(path) as file:
        return NetworkSpec.from_json(_metadata(file, path, "fastalex"))


def load_tensors(path: Path, names: Collection[str]) -> dict[str, Tensor]:
    """The named tensors of a file; only these are read.

    Raises:
        ConfigurationError: the file lacks one of them.
    """
    with _open(path) as file:
        there = set(file.keys())
        missing = [name for name in names if name not in there]
        if missing:
            raise ConfigurationError(f"{path} has no {', '.join(missing)}: it is of another architecture")
        return {name: file.get_tensor(name) for name in names}


def start_from(model: AlexNet, description: NetworkSpec, path: Path) -> None:
    """Copy another network's weights into a new one, whose head stays as it is where the classes are others.

    The head is the last layer, and the bottleneck before it if there is one; with the same classes and bottleneck it is
    copied, too.

    Raises:
        ConfigurationError: the weights are of another architecture.
    """
    there = load_spec(path)
    same_head = (there.classes, there.variation.bottleneck) == (description.classes, description.variation.bottleneck)
    for block in model.blocks():
        if same_head or block.spec.name not in ("bottleneck", model.architecture.block_names[-1]):
            load_parameters(block, path, prefix=f"{block.spec.name}.")


@torch.no_grad()
def load_parameters(module: torch.nn.Module, path: Path, prefix: str = "") -> None:
    """Read the parameters of a module, which may be one stage of the network, from a file.

    Args:
        prefix: stands in the file before the module's own names.

    Raises:
        ConfigurationError: a parameter is missing or has another shape.
    """
    parameters = {prefix + name: parameter for name, parameter in module.named_parameters()}
    for name, tensor in load_tensors(path, parameters).items():
        if tensor.shape != parameters[name].shape:
            raise ConfigurationError(
                f"{path}: {name} has shape {tuple(tensor.shape)}, the network's has {tuple(parameters[name].shape)}; "
                "it is of another architecture"
            )
        parameters[name].copy_(tensor)


def load_model(path: str | Path) -> tuple[AlexNet, NetworkSpec]:
    """The trained network in a ``.safetensors`` file, on the CPU, in fp32 and evaluation mode, and what it is.

    Raises:
        ConfigurationError: no such file, a damaged one, or one that fastalex did not write.
    """
    path = Path(path)
    description = load_spec(path)
    model = description.build(seed=0)
    load_parameters(model, path)
    return model.eval(), description


def _open(path: Path) -> Any:
    if path.is_dir():
        raise ConfigurationError(f"{path} is a folder; name a file of weights, such as {path / 'best.safetensors'}")
    try:
        return safe_open(path, framework="pt")
    except FileNotFoundError:
        raise ConfigurationError(f"no such file: {path}") from None
    except (SafetensorError, OSError) as error:
        raise ConfigurationError(f"{path} is damaged: {error}") from None


def _metadata(file: Any, path: Path, key: str) -> str:
    metadata = file.metadata() or {}
    if key not in metadata:
        raise ConfigurationError(f"{path} was not written by fastalex: its header has no {key!r}")
    return metadata[key]

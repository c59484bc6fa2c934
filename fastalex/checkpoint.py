"""Checkpoints that survive being interrupted at any moment.

A run folder holds::

    last.safetensors              weights after the latest checkpoint
    best.safetensors              weights with the lowest top-1 validation error so far
    checkpoints/0006-00000264/    the latest checkpoint, whole: epoch, step
        model.safetensors         weights; the header's metadata names the architecture and classes
        trainer.safetensors       velocities; the header's metadata holds the progress

A checkpoint is a folder that appears complete: its files are written and synced under a temporary name in the same
place, then the folder is renamed, and only then is the previous one removed. ``last`` and ``best`` are replaced in one
step, and are hard links where the file system has them, so nothing is written twice.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fastalex.architecture import Architecture, Variation, build_architecture
from fastalex.errors import ConfigurationError
from fastalex.model import AlexNet


@dataclass
class Progress:
    """How far a run has come; with the seed this is all that resuming needs.

    ``samples`` counts what the unfinished epoch has consumed. ``errors`` are top-1 validation errors in percent, one
    for each finished epoch. ``replaced`` are the damaged samples of each split in whose place others were used.
    ``skipped`` counts the steps whose update was left out because loss or gradients were not finite.
    """

    epoch: int = 0
    samples: int = 0
    step: int = 0
    seconds: float = 0.0
    errors: list[float] = field(default_factory=list)
    replaced: dict[str, list[int]] = field(default_factory=dict)
    skipped: int = 0

    def add_replaced(self, split: str, samples: Iterable[int]) -> None:
        """Note damaged samples, each of them once."""
        self.replaced[split] = sorted({*self.replaced.get(split, ()), *samples})

    @property
    def is_best(self) -> bool:
        """Whether an epoch has just ended with a lower validation error than all before it."""
        return self.samples == 0 and bool(self.errors) and self.errors[-1] < min(self.errors[:-1], default=math.inf)


@dataclass(frozen=True)
class Description:
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

    def can_start_from(self, other: Description) -> bool:
        """Whether the other network's weights fit this one, but for the layers that lead to the classes."""
        return self.architecture == other.architecture and _body(self.variation) == _body(other.variation)

    def to_json(self) -> str:
        """As text for a file's header."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Description:
        """The inverse of :meth:`to_json`."""
        values = json.loads(text)
        variation = values["variation"]
        variation["without"] = tuple(variation["without"])
        return cls(values["architecture"], values["num_classes"], Variation(**variation), tuple(values["classes"]))


def _body(variation: Variation) -> Variation:
    """Without what changes no shape of the layers below those that lead to the classes."""
    return replace(variation, dropout=None, init=None, bottleneck=None)


def save_checkpoint(
    run: Path,
    weights: dict[str, Tensor],
    velocities: dict[str, Tensor],
    progress: Progress,
    description: Description,
) -> Path:
    """Write a checkpoint, point ``last`` at it, and ``best`` if it is, and remove older ones.

    Args:
        run: the run folder.
        weights, velocities: all of the network's, contiguous, on the CPU, by parameter name.

    Returns:
        The checkpoint's folder.
    """
    checkpoints = run / "checkpoints"
    checkpoints.mkdir(exist_ok=True)
    name = f"{progress.epoch:04d}-{progress.step:08d}"
    final = checkpoints / name
    if final.exists():  # stopped twice at the same place: it holds the same
        publish(run, final)
        return final
    temporary = checkpoints / f".{name}.{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    metadata = {"fastalex": description.to_json()}
    save_file(weights, temporary / "model.safetensors", metadata=metadata)
    save_file(velocities, temporary / "trainer.safetensors", metadata={"progress": json.dumps(asdict(progress))})
    for path in temporary.iterdir():
        path.chmod(0o644)  # safetensors makes files that only their owner can read
        _sync(path)
    _sync(temporary)
    temporary.rename(final)
    _sync(checkpoints)
    publish(run, final)
    return final


def publish(run: Path, checkpoint: Path) -> None:
    """Point ``last``, and ``best`` if it is, at a checkpoint, and remove all others.

    A resumed run does this again first, because it may have been interrupted between writing and pointing.
    """
    for name in ("last", "best") if load_progress(checkpoint).is_best else ("last",):
        _link(checkpoint / "model.safetensors", run / f"{name}.safetensors")
    for other in (run / "checkpoints").iterdir():
        if other != checkpoint:
            shutil.rmtree(other)


def latest_checkpoint(run: Path) -> Path:
    """The newest complete checkpoint of a run.

    Raises:
        ConfigurationError: no such run, or none has been written yet.
    """
    if not (run / "config.json").is_file():
        raise ConfigurationError(f"{run} is not a run folder: it has no config.json")
    folders = [path for path in (run / "checkpoints").glob("[0-9]*-[0-9]*") if path.is_dir()]
    if not folders:
        raise ConfigurationError(f"{run} has no checkpoint yet; remove it (rm -r {run}) and start the run anew")
    return max(folders, key=lambda path: [int(number) for number in path.name.split("-")])


def load_progress(checkpoint: Path) -> Progress:
    """The progress that a checkpoint was written at.

    Raises:
        ConfigurationError: the checkpoint is damaged.
    """
    path = checkpoint / "trainer.safetensors"
    with _open(path) as file:
        return Progress(**json.loads(_metadata(file, path, "progress")))


def load_description(path: Path) -> Description:
    """Which network the weights in a file belong to.

    Raises:
        ConfigurationError: no such file, a damaged one, or one that fastalex did not write.
    """
    with _open(path) as file:
        return Description.from_json(_metadata(file, path, "fastalex"))


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


def start_from(model: AlexNet, description: Description, path: Path) -> None:
    """Copy another network's weights into a new one, whose head stays as it is where the classes are others.

    The head is the last layer, and the bottleneck before it if there is one; with the same classes and bottleneck it is
    copied, too.

    Raises:
        ConfigurationError: the weights are of another architecture.
    """
    there = load_description(path)
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


def load_model(path: str | Path) -> tuple[AlexNet, Description]:
    """The trained network in a ``.safetensors`` file, on the CPU, in fp32 and evaluation mode, and what it is.

    Raises:
        ConfigurationError: no such file, a damaged one, or one that fastalex did not write.
    """
    path = Path(path)
    description = load_description(path)
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


def _link(source: Path, target: Path) -> None:
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, temporary)
        _sync(temporary)
    os.replace(temporary, target)
    _sync(target.parent)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace a file such that the old or the new one is there, and whole, at any moment."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    _sync(temporary)
    os.replace(temporary, path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

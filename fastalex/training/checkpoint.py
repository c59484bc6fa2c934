"""Checkpoints that survive an interruption at any moment.

A run folder holds::

    last.safetensors              weights of the latest checkpoint
    best.safetensors              weights with the lowest top-1 validation error so far
    checkpoints/0006-00000264/    the latest checkpoint, named by epoch and step
        model.safetensors         weights; the header holds the network's specification
        trainer.safetensors       velocities; the header holds the training state

A checkpoint appears complete or not at all. Its files are written and synced in a temporary folder beside it, the
folder is renamed, and only then is the previous checkpoint removed. ``last`` and ``best`` are replaced atomically. They
are hard links where the file system supports them, so nothing is written twice. Headers hold SHA-256 sums, with which
everything that is read is compared.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from fastalex.errors import ConfigurationError
from fastalex.files import sync
from fastalex.network.weights import NetworkSpec, load_header, load_tensors, with_sums
from fastalex.training.state import TrainingState


def save_checkpoint(
    run: Path,
    weights: dict[str, Tensor],
    velocities: dict[str, Tensor],
    state: TrainingState,
    network: NetworkSpec,
) -> Path:
    """Write a checkpoint, publish it (:func:`publish`) and remove older ones.

    Args:
        run: the run folder.
        weights, velocities: of the whole network by parameter name, contiguous, on the CPU.

    Returns:
        The checkpoint's folder.
    """
    checkpoints = run / "checkpoints"
    checkpoints.mkdir(exist_ok=True)
    name = f"{state.epoch:04d}-{state.step:08d}"
    final = checkpoints / name
    if final.exists():  # a run stopped twice at the same step: the content is the same
        publish(run, final)
        return final

    # Write all files under a temporary name.
    temporary = checkpoints / f".{name}.{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    described = with_sums(weights, {"fastalex": network.to_json()})
    save_file(weights, temporary / "model.safetensors", metadata=described)
    described = with_sums(velocities, {"progress": json.dumps(asdict(state))})
    save_file(velocities, temporary / "trainer.safetensors", metadata=described)
    for path in temporary.iterdir():
        path.chmod(0o644)  # safetensors creates files that only their owner can read
        sync(path)
    sync(temporary)

    # The checkpoint appears at once and complete.
    temporary.rename(final)
    sync(checkpoints)
    publish(run, final)
    return final


def publish(run: Path, checkpoint: Path) -> None:
    """Link ``last`` to a checkpoint, and ``best`` if it is the best one; remove all other checkpoints.

    A resumed run repeats this, because it may have been interrupted between writing a checkpoint and publishing it.
    """
    for name in ("last", "best") if load_state(checkpoint).is_best else ("last",):
        _link(checkpoint / "model.safetensors", run / f"{name}.safetensors")
    for other in (run / "checkpoints").iterdir():
        if other != checkpoint:
            shutil.rmtree(other)


def latest_checkpoint(run: Path) -> Path:
    """The newest complete checkpoint of a run.

    Raises:
        ConfigurationError: ``run`` is not a run folder or has no checkpoint yet.
    """
    if not (run / "config.json").is_file():
        raise ConfigurationError(f"{run} is not a run folder: it has no config.json")
    folders = [path for path in (run / "checkpoints").glob("[0-9]*-[0-9]*") if path.is_dir()]
    if not folders:
        raise ConfigurationError(f"{run} has no checkpoint yet; remove it (rm -r {run}) and start the run again")
    return max(folders, key=lambda path: [int(number) for number in path.name.split("-")])


def load_state(checkpoint: Path) -> TrainingState:
    """The training state of a checkpoint.

    Raises:
        ConfigurationError: the checkpoint is damaged.
    """
    path = checkpoint / "trainer.safetensors"
    text = load_header(path, "progress")
    try:
        return TrainingState.from_json(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigurationError(f"{path} is damaged: {error}; restore the file from a copy") from None


def load_velocities(checkpoint: Path, names: Collection[str]) -> dict[str, Tensor]:
    """The velocities of the named parameters; only these are read.

    Raises:
        ConfigurationError: the checkpoint is damaged or lacks one of them.
    """
    return load_tensors(checkpoint / "trainer.safetensors", names)


def _link(source: Path, target: Path) -> None:
    """Atomically make ``target`` a hard link to ``source``, or a copy of it."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:  # the file system has no hard links
        shutil.copyfile(source, temporary)
        sync(temporary)
    os.replace(temporary, target)
    sync(target.parent)

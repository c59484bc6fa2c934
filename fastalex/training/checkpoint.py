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
import os
import shutil
from dataclasses import asdict
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from fastalex.errors import ConfigurationError
from fastalex.files import _sync
from fastalex.network.weights import NetworkSpec, _metadata, _open
from fastalex.training.state import TrainingState


def save_checkpoint(
    run: Path,
    weights: dict[str, Tensor],
    velocities: dict[str, Tensor],
    progress: TrainingState,
    description: NetworkSpec,
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
    for name in ("last", "best") if load_state(checkpoint).is_best else ("last",):
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


def load_state(checkpoint: Path) -> TrainingState:
    """The progress that a checkpoint was written at.

    Raises:
        ConfigurationError: the checkpoint is damaged.
    """
    path = checkpoint / "trainer.safetensors"
    with _open(path) as file:
        return TrainingState(**json.loads(_metadata(file, path, "progress")))


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

"""Checkpoints that survive an interruption at any moment.

A run folder holds::

    last.safetensors              weights of the latest checkpoint
    best.safetensors              weights with the lowest top-1 validation error so far
    checkpoints/0006-00000264/    the latest checkpoint, named by finished epochs and step; older ones if asked for
        model.safetensors         weights and mean image; the header holds the network's specification and the record
        trainer.safetensors       velocities; the header holds the training state

A checkpoint appears complete or not at all. Its files are written and synced in a temporary folder beside it, the
folder is renamed, and only then is the previous checkpoint removed. ``last`` and ``best`` are replaced atomically. They
are hard links where the file system supports them, so nothing is written twice. Headers hold SHA-256 sums, with which
everything that is read is compared. Files and folders with other names are somebody else's: they are neither read nor
removed.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path

from torch import Tensor

from fastalex.datasets import AnyDataset
from fastalex.errors import ConfigurationError
from fastalex.files import runs_near, sync
from fastalex.network.weights import NetworkSpec, load_header, load_tensors, save_tensors
from fastalex.network.weights_record import Origin, WeightsRecord
from fastalex.startup import VERSION
from fastalex.training.config import RunConfig
from fastalex.training.state import TrainingState

_CHECKPOINT = re.compile(r"\d{4,}-\d{8,}")
_UNFINISHED_CHECKPOINT = re.compile(r"\.\d{4,}-\d{8,}\.\d+")
_UNFINISHED_FILE = re.compile(r"\.(config\.json|metrics\.jsonl|curve\.png|(last|best)\.safetensors)\.\d+")


def save_checkpoint(
    run: Path,
    weights: dict[str, Tensor],
    velocities: dict[str, Tensor],
    state: TrainingState,
    network: NetworkSpec,
    record: WeightsRecord | None = None,
    keep: int = 1,
) -> Path:
    """Write a checkpoint, publish it (:func:`publish`) and remove older ones.

    Args:
        run: the run folder. No other process writes to it.
        weights, velocities: of the whole network by parameter name, contiguous, on the CPU.
        record: how the network's images are prepared, and what made the weights.
        keep: number of checkpoints to keep.

    Returns:
        The checkpoint's folder.

    Raises:
        OSError: it cannot be written, as on a full disk. The previous checkpoint is still there, and nothing else.
    """
    checkpoints = run / "checkpoints"
    checkpoints.mkdir(exist_ok=True)
    name = f"{state.epoch:04d}-{state.step:08d}"
    final = checkpoints / name
    if final.exists():  # a run stopped twice at the same step: the content is the same
        publish(run, final, keep)
        return final

    # Write all files under a temporary name.
    temporary = checkpoints / f".{name}.{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        tensors, header = (record.tensors(), record.header()) if record else ({}, {})
        save_tensors(weights | tensors, temporary / "model.safetensors", {"fastalex": network.to_json(), **header})
        save_tensors(velocities, temporary / "trainer.safetensors", {"progress": json.dumps(asdict(state))})
        sync(temporary)

        # The checkpoint appears at once and complete.
        temporary.rename(final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync(checkpoints)
    publish(run, final, keep)
    return final


def record_of(config: RunConfig, dataset: AnyDataset, state: TrainingState) -> WeightsRecord:
    """What the weights of a run record of it.

    Args:
        dataset: the training data, with the mean that the run subtracts.
    """
    mean = dataset.mean_image
    return WeightsRecord(
        mean[0, 0] if config.network.channel_means else mean,
        dataset.size,
        config.network.build_architecture().image_size,
        origin=Origin(
            dataset.name,
            dataset.fingerprint,
            config.recipe.name,
            state.epoch,
            state.errors[-1] if state.errors else None,
            VERSION,
        ),
        words=tuple(getattr(dataset, "words", None) or ()),
    )


def publish(run: Path, checkpoint: Path, keep: int = 1) -> None:
    """Link ``last`` to the latest checkpoint, and ``best`` if it is the best one; remove old ones and unfinished files.

    A resumed run repeats this, because it may have been interrupted between writing a checkpoint and publishing it.

    Args:
        keep: number of checkpoints to keep, the newest ones.

    Raises:
        OSError: a link cannot be replaced; the old one is still there.
    """
    for name in ("last", "best") if load_state(checkpoint).is_best else ("last",):
        _link(checkpoint / "model.safetensors", run / f"{name}.safetensors")
    for old in checkpoints_of(run)[:-keep]:
        if old != checkpoint:
            _remove(old)
    remove_unfinished(run)


def remove_unfinished(run: Path) -> None:
    """Remove what a killed process has left half-written in its run folder."""
    for path in _entries(run / "checkpoints"):
        if _UNFINISHED_CHECKPOINT.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)
    for path in _entries(run):
        if _UNFINISHED_FILE.fullmatch(path.name):
            with contextlib.suppress(OSError):
                path.unlink()


def checkpoints_of(run: Path) -> list[Path]:
    """The complete checkpoints of a run, the newest last; none if it has saved none, or is not a run."""
    found = [path for path in _entries(run / "checkpoints") if _CHECKPOINT.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=lambda path: [int(number) for number in path.name.split("-")])


def latest_checkpoint(run: Path) -> Path:
    """The newest complete checkpoint of a run.

    Raises:
        ConfigurationError: ``run`` is not a run folder or has no checkpoint yet.
    """
    if not (run / "config.json").is_file():
        raise ConfigurationError(f"{run} is not a run folder: it has no config.json{runs_near(run)}")
    found = checkpoints_of(run)
    if not found:
        raise ConfigurationError(f"{run} has no checkpoint yet; resume the run, which then starts from the beginning")
    return found[-1]


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


def finished_epochs(run: Path) -> int:
    """The epochs that a run has finished and saved; 0 if it has saved none, or its latest checkpoint is damaged."""
    with contextlib.suppress(ConfigurationError, OSError):
        for checkpoint in checkpoints_of(run)[-1:]:
            return load_state(checkpoint).epoch
    return 0


def load_velocities(checkpoint: Path, names: Collection[str]) -> dict[str, Tensor]:
    """The velocities of the named parameters; only these are read.

    Raises:
        ConfigurationError: the checkpoint is damaged or lacks one of them.
    """
    return load_tensors(checkpoint / "trainer.safetensors", names)


def _entries(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _remove(checkpoint: Path) -> None:
    """Remove an old checkpoint, which disappears at once. What cannot be removed does not end a run."""
    unfinished = checkpoint.with_name(f".{checkpoint.name}.{os.getpid()}")
    with contextlib.suppress(OSError):
        checkpoint.rename(unfinished)
        shutil.rmtree(unfinished, ignore_errors=True)


def _link(source: Path, target: Path) -> None:
    """Atomically make ``target`` a hard link to ``source``, or a copy of it."""
    if target.exists() and target.samefile(source):  # to replace a link by a link to the same file does nothing
        return
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        temporary.unlink(missing_ok=True)
        try:
            os.link(source, temporary)
        except OSError:  # the file system has no hard links
            shutil.copyfile(source, temporary)
            sync(temporary)
        os.replace(temporary, target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            error.filename, error.filename2 = str(target), None
        raise
    sync(target.parent)

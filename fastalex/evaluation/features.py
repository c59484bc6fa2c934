"""Activations of a trained network over a set of images, written batch by batch."""

from __future__ import annotations

import csv
import errno
import json
import math
import os
import shutil
import signal
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastalex.console import batch_progress
from fastalex.errors import ConfigurationError, Interrupted
from fastalex.evaluation.feature_files import convert
from fastalex.evaluation.image_sources import ImageFiles, PreparedImages
from fastalex.evaluation.trained_network import TrainedNetwork
from fastalex.files import UNFINISHED, new_folder, owned, sync, write_atomically
from fastalex.network.precision import Precision
from fastalex.network.weights import NetworkSpec
from fastalex.options.choices import FeatureDType, FeatureFormat
from fastalex.parallel.layout import ParallelPlan
from fastalex.parallel.world import World
from fastalex.training.validation import fill_up

_INDEX = "features.json"


@dataclass(frozen=True)
class Extraction:
    """One extraction of activations, fully resolved.

    Args:
        network: the trained network.
        plan: its parallel plan.
        images: what they are computed on.
        names: of the activations, as in :meth:`fastalex.network.model.AlexNet.activations`.
        output: the folder to create.
        dtype: of the files.
        format: of the files.
        batch_size: images per batch.
        precision: ``fp32``, ``tf32`` or ``bf16``.
    """

    network: TrainedNetwork
    plan: ParallelPlan
    images: PreparedImages | ImageFiles
    names: tuple[str, ...]
    output: Path
    dtype: FeatureDType
    format: FeatureFormat
    batch_size: int
    precision: Precision


def activation_shapes(spec: NetworkSpec, names: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """The shape of each activation of one image, without computing any.

    Raises:
        ConfigurationError: the network has no activation of that name.
    """
    with torch.device("meta"):  # tensors without values
        model = spec.build(seed=0)
        size = model.architecture.image_size
        activations = model.activations(torch.empty(1, 3, size, size), names)
    return {name: tuple(value.shape[1:]) for name, value in activations.items()}


def bytes_needed(extraction: Extraction) -> int:
    """The size of all arrays together."""
    shapes = activation_shapes(extraction.network.spec, extraction.names)
    values = sum(math.prod(shape) for shape in shapes.values())
    return extraction.images.count * values * np.dtype(extraction.dtype).itemsize


def largest_array(extraction: Extraction) -> int:
    """The size of the largest array in bytes."""
    shapes = activation_shapes(extraction.network.spec, extraction.names)
    largest = max(math.prod(shape) for shape in shapes.values())
    return extraction.images.count * largest * np.dtype(extraction.dtype).itemsize


def extract(world: World, extraction: Extraction) -> None:
    """Write one ``NAME.npy`` (or ``.h5``, ``.mat``) per activation, ``samples.csv`` and ``features.json``.

    All workers call this.

    The arrays have the shape images x channels x height x width, or images x features, in the order of ``samples.csv``.
    Each worker writes the activations of its own stage after every batch, so memory holds one batch. Files are written
    to a hidden folder in the output folder, and move up when all are complete, ``features.json`` last. So the output
    folder may be a link or a mount point.

    Raises:
        ConfigurationError: the output folder has content, is in use, or cannot be written.
        Interrupted: a signal asked to stop; no file is left behind.
        dataloading.DatasetError, UnusableImage: an image is damaged.
    """
    world.arrange(extraction.plan.layout)
    unfinished = extraction.output / UNFINISHED
    with ExitStack() as ownership:  # the first worker owns the folder
        world.from_first(lambda: _open_output(extraction.output, ownership))
        try:
            _write_activations(world, extraction, unfinished)
            if world.is_first:
                _write_index(extraction, unfinished)
        except BaseException as error:
            if world.is_first:
                shutil.rmtree(unfinished, ignore_errors=True)
            if isinstance(error, OSError):
                raise ConfigurationError(
                    f"{error.filename or unfinished}: {error.strerror}; nothing was written: free space, or choose "
                    "another output folder"
                ) from None
            raise
        world.from_first(lambda: _move_up(unfinished))  # no worker returns before all files have their places


def _open_output(output: Path, ownership: ExitStack) -> None:
    """Own the output folder, and make the folder for unfinished files in it."""
    ownership.enter_context(new_folder(output, "choose another output folder"))
    unfinished = output / UNFINISHED
    shutil.rmtree(unfinished, ignore_errors=True)  # of a killed command
    unfinished.mkdir()


def discard_unfinished(output: Path, *, folder_too: bool) -> None:
    """Remove what workers that were killed have left in the output folder, and an empty folder if asked to."""
    unfinished = output / UNFINISHED
    with suppress(ConfigurationError, OSError):
        with owned(output):
            if not (unfinished / _INDEX).exists():  # complete, but not moved up
                shutil.rmtree(unfinished, ignore_errors=True)
        if folder_too:
            output.rmdir()


def _move_up(unfinished: Path) -> None:
    """Move finished files to the folder above. If that fails, they stay where they are."""
    try:
        for path in sorted(unfinished.iterdir(), key=lambda path: path.name == _INDEX):
            path.rename(unfinished.parent / path.name)
        sync(unfinished.parent)
        unfinished.rmdir()
    except OSError as error:
        raise ConfigurationError(
            f"finished files cannot be moved to {unfinished.parent}: {error.strerror}; they are in {unfinished}"
        ) from None


def _write_activations(world: World, extraction: Extraction, folder: Path) -> None:
    network, images = extraction.network, extraction.images
    engine = network.build_engine(world, extraction.plan, extraction.batch_size, extraction.precision)
    writer = _ActivationWriter(extraction, folder)
    engine.watch(writer.collect)
    loader = images.loader(world, network, extraction.batch_size, engine.stage.architecture.image_size)
    try:
        with batch_progress("images", len(loader), shown=world.is_first) as advance:
            for batch in loader.epoch(0):
                engine.logits(fill_up(batch.images, engine.batch_size))
                writer.write(len(batch.samples))
                advance()
                if world.stop_requested():
                    raise Interrupted("interrupted; nothing was written", world.signal_number or signal.SIGINT)
    finally:
        loader.close()
    writer.finish()
    world.barrier()  # the folder is complete when the files of every worker are


class _ActivationWriter:
    """Collects the activations of one batch, micro-batch by micro-batch, and writes them to this worker's files."""

    def __init__(self, extraction: Extraction, folder: Path) -> None:
        self.names, self.dtype = set(extraction.names), np.dtype(extraction.dtype)
        self.folder, self.format = folder, extraction.format
        self.source, self.images, self.first_row = extraction.images, extraction.images.count, 0
        self.micro_batches: dict[str, list[Tensor]] = {}
        self.files: dict[str, np.memmap[Any, Any]] = {}

    def collect(self, name: str, value: Tensor) -> None:
        """Keep the activation of one micro-batch."""
        if name in self.names:
            self.micro_batches.setdefault(name, []).append(value.float().cpu())

    def write(self, rows: int) -> None:
        """Write the first ``rows`` rows of the collected batch; the rest is padding."""
        for name, parts in self.micro_batches.items():
            values = torch.cat(parts)[:rows].numpy()
            if name not in self.files:
                shape = (self.images, *values.shape[1:])
                self.files[name] = _open_array(self.folder / f"{name}.npy", self.dtype, shape)
            self.files[name][self.first_row : self.first_row + rows] = values
        self.micro_batches.clear()
        self.first_row += rows

    def finish(self) -> None:
        """Write buffered pages to disk, and convert the files to the format that was asked for."""
        names: list[str] = []
        if self.format != "npy":
            header, *rows = self.source.rows()
            names = [str(row[header.index("file")]) for row in rows]
        for name, file in self.files.items():
            file.flush()
            convert(self.folder / f"{name}.npy", self.format, names)


def _open_array(path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.memmap[Any, Any]:
    """Make a .npy file and map it, with its space on the disk: writing to a mapped file on a full disk is a crash."""
    try:
        array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
        with path.open("r+b") as file:
            _reserve(file.fileno(), path.stat().st_size)
    except OSError as error:
        error.filename = str(path)
        raise
    return array


def _reserve(descriptor: int, size: int) -> None:
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP):  # the file system cannot
            raise


def _write_index(extraction: Extraction, folder: Path) -> None:
    """Write ``samples.csv``, which names the image of each row, and ``features.json``, which describes the files."""
    network, images = extraction.network, extraction.images
    with (folder / "samples.csv").open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        csv.writer(file, lineterminator="\n").writerows(images.rows())
    description = {
        "weights": str(network.weights.resolve()),
        "network": network.spec.summary(),
        **images.description(network),
        "channel_means": network.spec.channel_means,
        "images": images.count,
        "dtype": extraction.dtype,
        "activations": {name: f"{name}.{extraction.format}" for name in extraction.names},
    }
    write_atomically(folder / _INDEX, json.dumps(description, indent=1) + "\n")

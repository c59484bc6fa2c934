"""Activations of a trained network over a data set, written to files as they are made."""

from __future__ import annotations

import csv
import json
import math
import shutil
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from fastalex.console import batch_progress
from fastalex.datasets import AnyDataset, open_prepared
from fastalex.errors import Interrupted
from fastalex.evaluation.trained_network import TrainedNetwork, open_loader
from fastalex.files import write_atomically
from fastalex.network.precision import Precision
from fastalex.network.weights import NetworkSpec
from fastalex.parallel.world import World
from fastalex.training.validation import fill_up

DType = Literal["float32", "float16"]


@dataclass(frozen=True)
class Extraction:
    """Which activations of which images go where.

    Args:
        network: whose activations.
        data: the prepared data set; the centre crop of each image is shown.
        split: which part of it.
        names: of the activations, as :meth:`fastalex.network.model.AlexNet.activations` has them.
        output: the folder to make.
        dtype: of the files.
        batch_size: images at a time.
        precision: ``fp32`` or ``bf16``.
    """

    network: TrainedNetwork
    data: str
    split: str
    names: tuple[str, ...]
    output: Path
    dtype: DType
    batch_size: int
    precision: Precision


def activation_shapes(description: NetworkSpec, names: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """The shapes for one image, by name; nothing is computed for it.

    Raises:
        ConfigurationError: a name that the network does not have.
    """
    with FakeTensorMode():
        model = description.build(seed=0)
        size = model.architecture.image_size
        found = model.activations(torch.empty(1, 3, size, size), names)
    return {name: tuple(value.shape[1:]) for name, value in found.items()}


def extract(world: World, extraction: Extraction) -> None:
    """Write one ``NAME.npy`` an activation, ``samples.csv`` and ``features.json`` into the folder.

    The arrays have the shape images x channels x height x width, or images x features, in the order of ``samples.csv``.
    Rows are written batch by batch, each by the worker whose stage makes them, so memory holds one batch. The folder
    takes its name when all is done.

    Raises:
        Interrupted: told to stop; nothing is left behind.
        dataloading.DatasetError: an image is damaged.
    """
    output = extraction.output
    partial = output.with_name(output.name + ".partial")
    world.from_first(lambda: _empty(partial))
    try:
        _write_activations(world, extraction, partial)
        if world.is_first:
            _describe(extraction, partial)
            partial.rename(output)
    except BaseException:
        if world.is_first:
            shutil.rmtree(partial, ignore_errors=True)
        raise
    world.barrier()  # nobody ends before the folder has its name


def _write_activations(world: World, extraction: Extraction, folder: Path) -> None:
    network, dataset = extraction.network, open_prepared(extraction.data)
    engine = network.build_engine(world, extraction.batch_size, extraction.precision)
    recorder = _Recorder(extraction, folder, dataset.count(extraction.split))
    engine.watch(recorder.note)
    mean, size = network.mean_image_for(dataset), engine.stage.architecture.image_size
    loader = open_loader(world, extraction.data, mean, extraction.split, extraction.batch_size, size, views=1)
    try:
        with batch_progress(f"{extraction.split} images", len(loader), shown=world.is_first) as advance:
            for batch in loader.epoch(0):
                engine.logits(fill_up(batch.images, engine.batch_size))
                recorder.write(len(batch.samples))
                advance()
                told = world.sum(torch.tensor([float(world.signal_number)]))  # all workers stop at the same batch
                if told.item():
                    raise Interrupted("interrupted; nothing was written", world.signal_number or signal.SIGINT)
    finally:
        loader.close()
    recorder.flush()
    world.barrier()  # the folder is complete when every worker's files are


class _Recorder:
    """Collects what the stage tells of one batch, micro-batch by micro-batch, and writes it to this worker's files."""

    def __init__(self, extraction: Extraction, folder: Path, images: int) -> None:
        self.names, self.dtype = set(extraction.names), np.dtype(extraction.dtype)
        self.folder, self.images, self.first = folder, images, 0
        self.parts: dict[str, list[Tensor]] = {}
        self.files: dict[str, np.memmap[Any, Any]] = {}

    def note(self, name: str, value: Tensor) -> None:
        if name in self.names:
            self.parts.setdefault(name, []).append(value.float().cpu())

    def write(self, rows: int) -> None:
        for name, parts in self.parts.items():
            values = torch.cat(parts)[:rows].numpy()
            if name not in self.files:
                shape = (self.images, *values.shape[1:])
                path = self.folder / f"{name}.npy"
                self.files[name] = np.lib.format.open_memmap(path, mode="w+", dtype=self.dtype, shape=shape)
            self.files[name][self.first : self.first + rows] = values
        self.parts.clear()
        self.first += rows

    def flush(self) -> None:
        for file in self.files.values():
            file.flush()


def _empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _describe(extraction: Extraction, folder: Path) -> None:
    """Say which image each row is, and what the rows are."""
    network, dataset = extraction.network, open_prepared(extraction.data)
    labels = dataset.labels(extraction.split)
    with (folder / "samples.csv").open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("row", "sample", "file", "label", "class"))
        for row, label in enumerate(labels.tolist()):
            names = (dataset.key(extraction.split, row), dataset.source(extraction.split, row))
            table.writerow((row, *names, label, dataset.classes[label]))
    about = {
        "weights": str(network.weights.resolve()),
        "network": network.description.summary(),
        "data": str(Path(extraction.data).resolve()),
        "fingerprint": dataset.fingerprint,
        "split": extraction.split,
        "crop": "centre",
        "mean_image": str(Path(network.mean_image_for(dataset) or extraction.data).resolve()),
        "images": len(labels),
        "dtype": extraction.dtype,
        "activations": {name: f"{name}.npy" for name in extraction.names},
    }
    write_atomically(folder / "features.json", json.dumps(about, indent=1) + "\n")


def bytes_needed(extraction: Extraction, dataset: AnyDataset) -> int:
    """What the files will take on the disk."""
    shapes = activation_shapes(extraction.network.description, extraction.names)
    values = sum(math.prod(shape) for shape in shapes.values())
    return dataset.count(extraction.split) * values * np.dtype(extraction.dtype).itemsize

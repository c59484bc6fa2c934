"""A trained network as evaluation uses it: its weights file, its training data, and an engine that runs it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from dataloading import DatasetError, Loader, is_prepared
from fastalex.datasets import AnyDataset, channel_means, mean_image_hash, open_data, open_prepared
from fastalex.errors import ConfigurationError
from fastalex.network.architecture import Architecture
from fastalex.network.precision import Precision, configure_libraries
from fastalex.network.weights import NetworkSpec, find_weights, load_parameters, load_spec
from fastalex.network.weights_record import WeightsRecord, load_record
from fastalex.parallel.engine import Engine
from fastalex.parallel.layout import Layout, ParallelPlan
from fastalex.parallel.partition import partition
from fastalex.parallel.pipeline import build_engine
from fastalex.parallel.world import World
from fastalex.training.config import RunConfig


class UnknownMeanImage(ConfigurationError):
    """The mean image that a network's images need cannot be found, so its results would be wrong."""


@dataclass(frozen=True)
class TrainedNetwork:
    """A file of trained weights, and what is known about the run that wrote it.

    Args:
        weights: the ``.safetensors`` file.
        spec: the network that the weights belong to.
        data: the prepared data set of the training run; None for a weights file outside a run folder.
        mean_image: hash of its mean image; None if the run has not recorded it.
        recorded_size: shorter side of its images in pixels; None if the run has not recorded it.
        record: how images are prepared for the network, the mean included; None in a file of an earlier version, which
            needs the training data for it.
    """

    weights: Path
    spec: NetworkSpec
    data: str | None
    mean_image: str | None = None
    recorded_size: int | None = None
    record: WeightsRecord | None = None

    @classmethod
    def find(cls, path: Path, which: Literal["best", "last"] = "best") -> TrainedNetwork:
        """The network of a run folder or of a weights file.

        Raises:
            ConfigurationError: ``path`` is neither, the run has no weights yet, or a file is damaged.
        """
        if not path.exists():
            raise ConfigurationError(f"no such run folder or weights file: {path}")
        is_run = path.is_dir()
        run = path if is_run else path.parent
        config = RunConfig.load(run) if is_run or (run / "config.json").is_file() else None
        weights = find_weights(path, which)
        network = cls(weights, load_spec(weights), None, record=load_record(weights))
        if config is None:
            return network
        return replace(network, data=config.data, mean_image=config.mean_image, recorded_size=config.stored_size)

    def mean_image_for(self, dataset: AnyDataset) -> str | None:
        """Where to find the mean image that is subtracted from the images of ``dataset``: weights, or a data set.

        A network expects the mean of its own training images. None stands for ``dataset`` itself, which has that mean.

        Raises:
            UnknownMeanImage: the weights do not hold it, and the training data are gone or have changed.
            ConfigurationError: the network's images have another size than those of ``dataset``.
        """
        if self.record is not None:
            self._check_size(self.record.stored_size, dataset)
            mean = channel_means(dataset.mean_image) if self.spec.channel_means else dataset.mean_image
            return None if np.array_equal(self.record.mean_image(), mean) else str(self.weights)
        if self.mean_image == mean_image_hash(dataset.mean_image):
            return None
        training_data = self.open_training_data()
        self._check_size(training_data.size, dataset)
        return None if np.array_equal(training_data.mean_image, dataset.mean_image) else self.data

    def _check_size(self, size: int, dataset: AnyDataset) -> None:
        if size != dataset.size:
            raise ConfigurationError(
                f"{self.weights} was trained on images of {size} pixels, {dataset.root} has images of {dataset.size}; "
                f"prepare them in that size"
            )

    @property
    def stored_size(self) -> int | None:
        """The shorter side in pixels of the stored training images; None if it is not known.

        A crop of a given size shows objects at another scale if the images were stored in another size.
        """
        if self.record is not None:
            return self.record.stored_size
        size = self.recorded_size or self.spec.build_architecture().prepared_size
        if size is not None or self.data is None:
            return size
        try:
            return self.open_training_data().size
        except UnknownMeanImage:
            return None

    def open_training_data(self) -> AnyDataset:
        """The training data, whose mean image the network needs.

        Raises:
            UnknownMeanImage: they are gone, damaged, or not those that the network was trained on.
        """
        if self.data is None:
            raise UnknownMeanImage(f"{self.weights} is not in a run folder, so the mean image that it needs is unknown")
        if self.data != "synthetic" and not is_prepared(self.data):
            raise UnknownMeanImage(f"{self.weights} needs the mean image of its training data, and {self.data} is gone")
        try:
            found = open_prepared(self.data)
        except DatasetError as error:
            raise UnknownMeanImage(f"{self.weights} needs the mean image of its training data: {error}") from None
        expected = self.recorded_size or self.spec.build_architecture().prepared_size
        if self.data != "synthetic" and expected not in (None, found.size):
            raise UnknownMeanImage(
                f"{self.weights} was trained on images of {expected} pixels, {self.data} has images of {found.size}"
            )
        if self.mean_image not in (None, mean_image_hash(found.mean_image)):
            raise UnknownMeanImage(
                f"{self.weights} was trained with another mean image than that of {self.data}: the data have changed"
            )
        return found

    def build_engine(self, world: World, plan: ParallelPlan, batch_size: int, precision: Precision) -> Engine:
        """Load the weights and build the engine of this worker: the whole network, or one stage of a pipeline."""
        model = self.spec.build(seed=0)
        load_parameters(model, self.weights)
        model.set_precision(precision)
        configure_libraries(precision)
        return build_engine(model, world, plan, batch_size)


def inference_plan(
    devices: Sequence[torch.device], machines: int, architecture: Architecture, batch_size: int
) -> ParallelPlan:
    """The parallel plan of a forward pass: one stage per device, GPipe, at most one micro-batch per stage.

    Args:
        devices: the devices of this machine, one per worker.
        machines: the number of machines with that many devices.
        batch_size: images per batch; the number of micro-batches divides it.

    Raises:
        ConfigurationError: the network has fewer blocks than there are workers.
    """
    workers = len(devices) * machines
    split = partition(architecture, workers)
    if workers == 1:
        return ParallelPlan.single(devices[0], architecture.block_names)
    micro_batches = max(count for count in range(1, workers + 1) if batch_size % count == 0)
    layout = Layout(replicas=1, ranks=workers, stages=workers)
    return ParallelPlan(tuple(devices), machines, layout, split, "gpipe", micro_batches)


def open_loader(
    world: World,
    data: str,
    mean_image: str | None,
    split: str,
    batch_size: int,
    crop_size: int,
    views: int,
    *,
    by_channel: bool = False,
) -> Loader:
    """A loader of all images of a split in index order. Images are delivered to the first worker, labels to all.

    Args:
        data: the prepared data set.
        mean_image: weights or a data set with the mean image to subtract; None for that of ``data``.
        by_channel: subtract its mean colour instead.
    """
    dataset = open_prepared(data)
    if mean_image is not None:
        dataset.mean_image = _read_mean_image(mean_image)
    if by_channel:
        dataset.mean_image = channel_means(dataset.mean_image)
    on_gpu = world.device.type == "cuda"
    cores = len(os.sched_getaffinity(0))
    return Loader(
        dataset,
        split,
        batch_size,
        crop_size=crop_size,
        shuffle=False,
        augment=None,
        views=views,
        device=world.device.index if on_gpu else None,
        threads=max(1, min(8, cores // world.size)),
        images=world.is_first,
        drop_last=False,
    )


def _read_mean_image(place: str) -> NDArray[np.float32]:
    if not Path(place).is_file():
        return open_prepared(place).mean_image
    record = load_record(Path(place))
    assert record is not None  # mean_image_for has named the file
    return record.mean_image()


def with_training_data(
    networks: Sequence[TrainedNetwork], given: Path | None, *, may_prepare: bool
) -> tuple[TrainedNetwork, ...]:
    """The networks, with the given training data for those that do not find their own.

    Args:
        given: a prepared data set or class folders, or None.
        may_prepare: as for :func:`fastalex.datasets.open_data`.

    Raises:
        ConfigurationError, DatasetError: no network needs the data, or they cannot be used.
    """
    if given is None:
        return tuple(networks)
    completed = [_completed(network, given, may_prepare) for network in networks]
    if all(new is old for new, old in zip(completed, networks, strict=True)):
        raise ConfigurationError(f"all networks know the mean of their training images; leave {given} out")
    return tuple(completed)


def _completed(network: TrainedNetwork, given: Path, may_prepare: bool) -> TrainedNetwork:
    if network.record is not None:
        return network
    try:
        network.open_training_data()
    except UnknownMeanImage:
        dataset = open_data(given, network.stored_size, may_prepare=may_prepare)
        network = replace(network, data=str(dataset.root))
        network.open_training_data()  # refuses other data than those that the run has recorded
    return network


def default_split(dataset: AnyDataset) -> str:
    """``val``, or the only split that has images."""
    splits = _splits_with_images(dataset)
    return splits[0] if len(splits) == 1 else "val"


def check_split(dataset: AnyDataset, split: str) -> None:
    """Check that a split has images.

    Raises:
        ConfigurationError: it has none; the message lists the splits that do.
    """
    splits = _splits_with_images(dataset)
    if split not in splits:
        raise ConfigurationError(f"{dataset.root} has no images in split {split!r}; choose from {', '.join(splits)}")


def _splits_with_images(dataset: AnyDataset) -> list[str]:
    return [name for name in dataset.splits if dataset.count(name)]

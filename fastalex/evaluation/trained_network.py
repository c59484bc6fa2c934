"""A trained network as the commands that only read it use it: where it lies, what it was trained on, how it runs."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from dataloading import DatasetError, is_prepared
from dataloading.loader import Loader
from fastalex.datasets import AnyDataset, open_prepared
from fastalex.errors import ConfigurationError
from fastalex.network.precision import Precision, configure_libraries
from fastalex.network.weights import NetworkSpec, load_parameters, load_spec
from fastalex.parallel.engine import SingleDevice
from fastalex.parallel.partition import partition
from fastalex.parallel.pipeline import Pipeline
from fastalex.parallel.world import World
from fastalex.training.config import RunConfig


@dataclass(frozen=True)
class TrainedNetwork:
    """Weights in a file, and what their run says of them.

    Args:
        weights: the ``.safetensors`` file.
        description: which network they belong to.
        data: the prepared data set that the run was trained on; None where the weights lie outside a run folder.
    """

    weights: Path
    description: NetworkSpec
    data: str | None

    @classmethod
    def find(cls, path: Path, which: Literal["best", "last"] = "best") -> TrainedNetwork:
        """The network of a run folder, or of a file of weights.

        Raises:
            ConfigurationError: there is neither, the run has no weights yet, or its files are damaged.
        """
        if path.is_dir():
            config = RunConfig.load(path)
            weights = path / f"{which}.safetensors"
            if not weights.exists():
                raise ConfigurationError(f"{path} has no {weights.name} yet: {_remedy(path, which)}")
            return cls(weights, load_spec(weights), config.data)
        if not path.exists():
            raise ConfigurationError(f"no such run folder or file of weights: {path}")
        in_run = (path.parent / "config.json").is_file()
        return cls(path, load_spec(path), RunConfig.load(path.parent).data if in_run else None)

    def mean_image_for(self, dataset: AnyDataset) -> str | None:
        """The data set whose mean image this network wants subtracted from the images of ``dataset``.

        A network has learnt with the mean of its own training images. None: that of ``dataset`` itself, because it is
        the same, or because the training data are not there any more or were stored in another size.
        """
        trained_on = self._open_data()
        if trained_on is None or trained_on.size != dataset.size:
            return None
        return None if np.array_equal(trained_on.mean_image, dataset.mean_image) else self.data

    @property
    def stored_size(self) -> int | None:
        """The shorter side in pixels of the images that it was trained on; None if that is not known any more.

        Crops of one size show objects at another scale where images were stored in another size.
        """
        trained_on = self._open_data()
        return None if trained_on is None else trained_on.size

    def _open_data(self) -> AnyDataset | None:
        if self.data is None or not (self.data == "synthetic" or is_prepared(self.data)):
            return None
        try:
            return open_prepared(self.data)
        except DatasetError:
            return None

    def build_engine(self, world: World, batch_size: int, precision: Precision) -> SingleDevice | Pipeline:
        """The network, ready to run on this worker's device: whole, or one stage of it."""
        model = self.description.build(seed=0)
        load_parameters(model, self.weights)
        model.set_precision(precision)
        configure_libraries(precision)
        if world.size == 1:
            return SingleDevice(model, world.device, batch_size)
        stages = partition(model.architecture, world.size)
        micro_batches = max(parts for parts in range(1, world.size + 1) if batch_size % parts == 0)
        return Pipeline(model, stages, world.rank, world.device, batch_size, micro_batches, "gpipe")


def open_loader(
    world: World, data: str, mean_image: str | None, split: str, batch_size: int, crop_size: int, views: int
) -> Loader:
    """Images in the order of the index where the first stage is, labels everywhere.

    Args:
        data: the prepared data set.
        mean_image: the data set whose mean image is subtracted; None for the same.
    """
    dataset = open_prepared(data)
    if mean_image is not None:
        dataset.mean_image = open_prepared(mean_image).mean_image
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


def default_split(dataset: AnyDataset) -> str:
    """The validation set, or the only split that has images."""
    there = [name for name in dataset.splits if dataset.count(name)]
    return there[0] if len(there) == 1 else "val"


def check_split(dataset: AnyDataset, split: str) -> None:
    """Refuse a split that is not there, or has no images.

    Raises:
        ConfigurationError: naming those that there are.
    """
    if split not in dataset.splits or not dataset.count(split):
        there = ", ".join(name for name in dataset.splits if dataset.count(name))
        raise ConfigurationError(f"{dataset.root} has no images in split {split!r}; choose --split from {there}")


def _remedy(run: Path, which: str) -> str:
    if which == "best" and (run / "last.safetensors").exists():
        return "its first epoch is not finished; take --weights last"
    return "it has not saved a checkpoint"

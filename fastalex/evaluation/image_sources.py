"""Where the images of an extraction come from: a prepared data set, or files that are read exactly as they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dataloading import Batch, Loader
from fastalex.datasets import AnyDataset, open_prepared
from fastalex.evaluation.trained_network import TrainedNetwork, open_loader
from fastalex.parallel.world import World
from fastalex.prediction.images import prepared
from fastalex.prediction.preprocessing import Preprocessing, UnusableImage

Rows = Iterator[Sequence[object]]


@dataclass(frozen=True)
class PreparedImages:
    """A split of a prepared data set; the network sees the centre crop of each image.

    Args:
        data: the prepared data set.
        split: its split.
    """

    data: str
    split: str

    @property
    def dataset(self) -> AnyDataset:
        """The data set, opened."""
        return open_prepared(self.data)

    @property
    def count(self) -> int:
        """The number of images."""
        return self.dataset.count(self.split)

    def summary(self) -> str:
        """Name, split and number, for a report."""
        return f"{self.dataset.name}, {self.split}: {self.count} images"

    def loader(self, world: World, network: TrainedNetwork, batch_size: int, crop_size: int) -> Loader:
        """Batches for the first worker; the last one may be smaller."""
        mean = network.mean_image_for(self.dataset)
        by_channel = network.spec.channel_means
        return open_loader(world, self.data, mean, self.split, batch_size, crop_size, views=1, by_channel=by_channel)

    def rows(self) -> Rows:
        """The table of ``samples.csv``, with its header."""
        dataset = self.dataset
        yield "row", "sample", "file", "label", "class"
        for row, label in enumerate(dataset.labels(self.split).tolist()):
            names = (dataset.key(self.split, row), dataset.source(self.split, row))
            yield row, *names, label, dataset.classes[label]

    def description(self, network: TrainedNetwork) -> dict[str, Any]:
        """What ``features.json`` says of the images."""
        mean = network.mean_image_for(self.dataset) or self.data
        return {
            "data": str(Path(self.data).resolve()),
            "fingerprint": self.dataset.fingerprint,
            "split": self.split,
            "crop": "centre",
            "mean_image": str(Path(mean).resolve()) if Path(mean).exists() else mean,  # a colour
        }


@dataclass(frozen=True)
class ImageFiles:
    """Files of any size, read with Pillow: their pixels reach the network without a JPEG file in between.

    Args:
        place: the folder or the list that named the files.
        files: in the order of the rows.
        preprocessing: how they are prepared.
    """

    place: Path
    files: tuple[Path, ...]
    preprocessing: Preprocessing

    @property
    def count(self) -> int:
        """The number of images."""
        return len(self.files)

    def summary(self) -> str:
        """Place and number, for a report."""
        return f"{self.place}: {self.count} {'image' if self.count == 1 else 'images'}"

    def loader(self, world: World, network: TrainedNetwork, batch_size: int, crop_size: int) -> _FileLoader:
        """Batches for the first worker; the last one may be smaller.

        Raises, while it is iterated over:
            UnusableImage: a file cannot be read or used. Every row belongs to a file, so none is left out.
        """
        return _FileLoader(self, world, batch_size)

    def rows(self) -> Rows:
        """The table of ``samples.csv``, with its header."""
        yield "row", "file"
        base = self.place if self.place.is_dir() else self.place.parent
        for row, path in enumerate(self.files):
            yield row, path.relative_to(base) if path.is_relative_to(base) else path

    def description(self, network: TrainedNetwork) -> dict[str, Any]:
        """What ``features.json`` says of the images."""
        preprocessing = self.preprocessing
        return {
            "data": str(self.place.resolve()),
            "resize": preprocessing.resize or preprocessing.record.resize,
            "size": None if preprocessing.resize == "none" else preprocessing.size,
            "crop": "centre" if preprocessing.crop else "none",
            "exif": preprocessing.exif,
            "background": preprocessing.background,
            "mean_image": network.given_mean or str(network.weights.resolve()),
        }


class _FileLoader:
    """Delivers files as :class:`dataloading.Loader` delivers a split: images to the first worker only."""

    def __init__(self, images: ImageFiles, world: World, batch_size: int) -> None:
        self.images, self.world, self.batch_size = images, world, batch_size
        self._read = prepared(images.files, [images.preprocessing], 1) if world.is_first else None

    def __len__(self) -> int:
        return -(-self.images.count // self.batch_size)

    def epoch(self, number: int) -> Iterator[Batch]:
        """All batches."""
        device = self.world.device
        for first in range(0, self.images.count, self.batch_size):
            samples = np.arange(first, min(first + self.batch_size, self.images.count))
            images = None
            if self._read is not None:
                views = []
                for _, found in islice(self._read, len(samples)):
                    if isinstance(found, UnusableImage):
                        raise found
                    views.append(found[0][0])
                images = torch.stack(views).to(device, memory_format=torch.channels_last)
            yield Batch(images, None, samples)

    def close(self) -> None:
        """Stop reading ahead."""
        if self._read is not None:
            self._read.close()

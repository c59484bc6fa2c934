"""Which training images are nearest to an image in the last hidden layer, as in section 6.1 of the paper."""

from __future__ import annotations

import io
import os
import signal
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from dataloading import Dataset
from fastalex.console import batch_progress
from fastalex.datasets import channel_means
from fastalex.errors import Interrupted
from fastalex.evaluation.ensemble import Evaluation
from fastalex.evaluation.trained_network import TrainedNetwork
from fastalex.network.weights_record import WeightsRecord
from fastalex.parallel.world import World
from fastalex.prediction.preprocessing import Preprocessing
from fastalex.training.validation import fill_up


def nearest(
    queries: NDArray[np.float32], batches: Iterable[NDArray[np.float32]], count: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The nearest of many feature vectors by Euclidean distance, computed in float64.

    Args:
        queries: Q x F.
        batches: the vectors to search, N x F in pieces; of N, only the distances are kept.
        count: K, how many to return.

    Returns:
        Distances and rows, Q x min(K, N), the nearest first; of equal distances, the lower row.
    """
    found = [np.empty((len(queries), 0)), *(_distances(queries, batch) for batch in batches)]
    distances = np.concatenate(found, axis=1)
    rows = np.argsort(distances, axis=1, kind="stable")[:, :count]
    return np.take_along_axis(distances, rows, axis=1), rows


def _distances(queries: NDArray[np.float32], batch: NDArray[np.float32]) -> NDArray[np.float64]:
    """Q x N, from differences: products of the vectors would lose the digits of small distances."""
    exact = "donot_use_mm_for_euclid_dist"
    pair = torch.from_numpy(queries).double(), torch.from_numpy(batch).double()
    return torch.cdist(*pair, compute_mode=exact).numpy()


class HiddenLayer:
    """The last hidden layer of a trained network, computed for single images of prepared data sets.

    Args:
        world: this process alone.
        evaluation: the network, its plan, and the data set whose images it is evaluated on.
        dataset: that data set, opened.

    Attributes:
        name: of the layer, ``fc7`` unless that was removed.

    Raises:
        ConfigurationError: the mean image that the network needs is not known.
    """

    def __init__(self, world: World, evaluation: Evaluation, dataset: Dataset) -> None:
        (network,), (plan,) = evaluation.networks, evaluation.plans
        self.world, self.batch_size = world, evaluation.batch_size
        self.name = network.spec.build_architecture().block_names[-2]
        # What is stored has been resized already.
        self._prepare = Preprocessing(_record_for(network, dataset), resize="shorter")
        self._engine = network.build_engine(world, plan, evaluation.batch_size, evaluation.precision)
        self._found: list[Tensor] = []
        self._engine.watch(self._collect)

    def features(self, dataset: Dataset, split: str, rows: Sequence[int], title: str) -> Iterator[NDArray[np.float32]]:
        """The layer's output for some images of a split, batch by batch: N x F.

        Args:
            title: of the progress bar.

        Raises:
            Interrupted: a signal asked to stop.
            dataloading.DatasetError: an image is damaged.
        """

        def prepare(row: int) -> Tensor:
            return self._prepare(Image.open(io.BytesIO(dataset.read(split, row))))

        batches = [rows[first : first + self.batch_size] for first in range(0, len(rows), self.batch_size)]
        with (
            ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool,
            batch_progress(title, len(batches), shown=self.world.is_first) as advance,
        ):
            for batch in batches:
                images = torch.stack(list(pool.map(prepare, batch)))
                self._found.clear()
                self._engine.logits(
                    fill_up(images.to(self.world.device, memory_format=torch.channels_last), self.batch_size)
                )
                yield torch.cat(self._found)[: len(batch)].numpy()
                advance()
                if self.world.stop_requested():
                    raise Interrupted("interrupted; nothing was written", self.world.signal_number or signal.SIGINT)

    def _collect(self, name: str, value: Tensor) -> None:
        if name == self.name:
            self._found.append(value.float().cpu().flatten(1))


def _record_for(network: TrainedNetwork, dataset: Dataset) -> WeightsRecord:
    """How the network's images are prepared; its mean is that of ``dataset`` where the two agree.

    Raises:
        ConfigurationError: the mean is not known.
    """
    if network.record is None and network.mean_image_for(dataset) is None:
        mean = channel_means(dataset.mean_image) if network.spec.channel_means else dataset.mean_image
        return WeightsRecord(mean, dataset.size, network.spec.build_architecture().image_size)
    return network.images_record()

"""What the DALI graph is fed: the files of each batch and its augmentation, prepared ahead of time in a thread.

A thread, because DALI asks for its input in the middle of the training loop. The thread refers to the feeder only, not
to the stream and the graph, so these are freed as soon as they are dropped.
"""

import logging
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dataloading.dataset import Dataset
from dataloading.errors import DamagedSample, DatasetError
from dataloading.loading.augment import Augmentation, draw
from dataloading.loading.dali_graph import Arrays, Feed, pack
from dataloading.loading.order import BatchRange, EpochBatches

log = logging.getLogger(__name__)
_AHEAD = 2  # batches in preparation, or ready, when DALI asks for one


@dataclass
class Ticket:
    """A batch that was requested from the graph.

    Attributes:
        plan: number of the plan (`FeedThread.plan`) that the batch belongs to.
        epoch, start: which batch it is: epoch, and position of its first sample in the epoch's order.
        samples: its samples.
        error: why it could not be prepared, if so.
    """

    plan: int
    epoch: int
    start: int
    samples: NDArray[np.int64]
    error: Exception | None = None


class BatchFeeder:
    """Prepares batches: reads the samples' files, replaces bad ones if wanted, and draws the augmentation.

    Args:
        dataset, split: which samples.
        batches: how the samples are divided into batches.
        crop_size: side of the crop in pixels.
        augment: how images are varied; None means a centre crop.
        skip: replace bad samples instead of raising an error.

    Attributes:
        replaced: the bad samples so far, each with the sample that replaced it.
        unusable: samples that are known not to decode.
    """

    def __init__(
        self,
        dataset: Dataset,
        split: str,
        batches: EpochBatches,
        *,
        crop_size: int,
        augment: Augmentation | None,
        skip: bool,
    ) -> None:
        self._dataset, self._split, self._batches = dataset, split, batches
        self._crop_size, self._augment, self._skip = crop_size, augment, skip
        self._index = dataset.index(split)
        self.replaced: dict[int, int] = {}
        self.unusable: set[int] = set()

    def make(self, plan: int, upcoming: Iterator[tuple[int, BatchRange]]) -> tuple[Ticket, Feed | None]:
        """Prepare the next batch of `upcoming`. If that fails, the ticket has the error, and there is no batch."""
        epoch, batch = next(upcoming)
        ticket = Ticket(plan, epoch, batch.start, self._batches.samples(epoch, batch))
        try:
            return ticket, pack(self._arrays(epoch, batch, ticket.samples))
        except Exception as error:
            ticket.error = error
            return ticket, None

    def _arrays(self, epoch: int, batch: BatchRange, samples: NDArray[np.int64]) -> Arrays:
        """Read the files of a batch and draw its augmentation."""
        encoded, delivered = self._files(samples)
        rows = self._index[delivered]
        heights, widths = rows["height"].astype(np.int64), rows["width"].astype(np.int64)
        draws = draw(
            self._augment,
            seed=self._batches.seed,
            epoch=epoch,
            samples=samples,
            positions=np.arange(batch.own_start, batch.own_stop),
            heights=heights,
            widths=widths,
            crop_size=self._crop_size,
            color_deviations=self._dataset.color_deviations,
            color_vectors=self._dataset.color_vectors,
        )
        x = draws.left / np.maximum(widths - draws.width, 1)
        y = draws.top / np.maximum(heights - draws.height, 1)
        return Arrays(
            encoded,
            x=x.astype(np.float32),
            y=y.astype(np.float32),
            width=draws.width.astype(np.float32),
            height=draws.height.astype(np.float32),
            flip=draws.flip.astype(np.int32),
            minus_shift=-draws.shift,
            divisor=np.repeat(draws.divisor[:, None], 3, axis=1),
        )

    def _files(self, samples: NDArray[np.int64]) -> tuple[list[NDArray[np.uint8]], NDArray[np.int64]]:
        """Return the encoded images of `samples`, and the samples that they belong to after replacing bad ones."""
        encoded, delivered = [], samples.copy()
        for i, row in enumerate(self._index[samples].tolist()):
            sample = int(samples[i])
            try:
                if sample in self.unusable:
                    raise DamagedSample(f"{self._dataset.describe(self._split, sample)} does not decode")
                data = self._dataset.view(self._split, row, sample)
            except DamagedSample as error:
                if not self._skip:
                    raise
                delivered[i], data = self._replacement(sample, error)
            encoded.append(data)
        return encoded, delivered

    def _replacement(self, sample: int, reason: DamagedSample) -> tuple[int, NDArray[np.uint8]]:
        """Return the next good sample of the same class, and its file. The label stays right, wherever it is read."""
        same = np.flatnonzero(self._index["label"] == self._index["label"][sample])
        for other in np.roll(same, -int(np.searchsorted(same, sample)) - 1).tolist():
            if other == sample or other in self.unusable:
                continue
            try:
                data = self._dataset.view(self._split, self._index[other], other)
            except DamagedSample:
                continue
            if self.replaced.get(sample) != other:
                log.warning("replaced by sample %d: %s", other, reason)
            self.replaced[sample] = other
            return other, data
        raise DatasetError(f"{reason}; its class has no good sample left to replace it")


class FeedThread:
    """Prepares the next batches of a feeder in a thread, which ends with this object or by `close`."""

    def __init__(self, feeder: BatchFeeder) -> None:
        self._feeder = feeder
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="feed")
        self._ahead: deque[Future[tuple[Ticket, Feed | None]]] = deque()

    def plan(self, number: int, upcoming: Iterator[tuple[int, BatchRange]]) -> None:
        """From now on prepare the batches of `upcoming`, which is endless, and drop those of an earlier plan."""
        for future in self._ahead:
            future.cancel()
        self._ahead.clear()
        self._number, self._upcoming = number, upcoming
        for _ in range(_AHEAD):
            self._submit()

    def take(self) -> tuple[Ticket, Feed | None]:
        """Return the next batch as soon as it is ready."""
        self._submit()
        return self._ahead.popleft().result()

    def close(self) -> None:
        """End the thread and wait for that."""
        self._pool.shutdown(cancel_futures=True)

    def _submit(self) -> None:
        self._ahead.append(self._pool.submit(self._feeder.make, self._number, self._upcoming))

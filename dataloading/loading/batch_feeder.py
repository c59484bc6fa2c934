"""What the DALI graph is fed: the files of each batch and the draws that go with them, made ahead in a thread.

A thread, because DALI asks for its input in the middle of the training loop. It holds neither the stream nor the graph,
so that a stream which is dropped ends at once.
"""

import logging
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dataloading.augment import Augmentation, Draws, draw
from dataloading.errors import DatasetError
from dataloading.order import Run, Schedule, Window, samples_of
from dataloading.pipeline import Arrays, Feed, pack
from dataloading.shards import Dataset

log = logging.getLogger(__name__)
AHEAD = 2  # batches that are being made or ready when DALI asks for one


@dataclass
class Ticket:
    """One batch that the graph is asked for."""

    plan: int
    epoch: int
    start: int
    samples: NDArray[np.int64]
    error: Exception | None = None


class Feeder:
    """Makes batches: their samples' files, with bad ones replaced where that is wanted, and their draws."""

    def __init__(
        self,
        dataset: Dataset,
        split: str,
        schedule: Schedule,
        *,
        crop_size: int,
        augment: Augmentation | None,
        skip: bool,
    ) -> None:
        self._dataset, self._split, self._schedule = dataset, split, schedule
        self._crop_size, self._augment, self._skip = crop_size, augment, skip
        self._index = dataset.index(split)
        self.replaced: dict[int, int] = {}
        self.unusable: set[int] = set()

    def make(self, plan: int, batches: Iterator[tuple[int, Window]]) -> tuple[Ticket, Feed | None]:
        """Make the next of `batches`. Errors travel with the ticket, in place of the batch."""
        epoch, window = next(batches)
        runs = self._schedule.runs(epoch, window)
        ticket = Ticket(plan, epoch, window.start, samples_of(runs))
        try:
            return ticket, pack(self._read(runs, ticket.samples))
        except Exception as error:
            ticket.error = error
            return ticket, None

    def _read(self, runs: list[Run], samples: NDArray[np.int64]) -> Arrays:
        """Read the files of a batch and make its draws."""
        encoded, delivered = self._files(samples)
        rows = self._index[delivered]
        heights, widths = rows["height"].astype(np.int64), rows["width"].astype(np.int64)
        draws = self._draws(runs, heights, widths)
        x = draws.left / np.maximum(widths - self._crop_size, 1)
        y = draws.top / np.maximum(heights - self._crop_size, 1)
        divisor = np.repeat(draws.divisor[:, None], 3, axis=1)
        return encoded, x.astype(np.float32), y.astype(np.float32), draws.flip.astype(np.int32), -draws.shift, divisor

    def _draws(self, runs: list[Run], heights: NDArray[np.int64], widths: NDArray[np.int64]) -> Draws:
        parts, place = [], 0
        for run in runs:
            here = slice(place, place + len(run.samples))
            part = draw(
                self._augment,
                seed=self._schedule.seed,
                epoch=run.epoch,
                samples=run.samples,
                positions=np.arange(run.first, run.first + len(run.samples)),
                heights=heights[here],
                widths=widths[here],
                crop_size=self._crop_size,
                color_deviations=self._dataset.color_deviations,
                color_vectors=self._dataset.color_vectors,
            )
            parts.append(part)
            place = here.stop
        return parts[0] if len(parts) == 1 else Draws(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))

    def _files(self, samples: NDArray[np.int64]) -> tuple[list[NDArray[np.uint8]], NDArray[np.int64]]:
        """Return the encoded images of `samples`, and which samples they are of after replacing bad ones."""
        encoded, delivered = [], samples.copy()
        for place, row in enumerate(self._index[samples].tolist()):
            sample = int(samples[place])
            try:
                if sample in self.unusable:
                    raise DatasetError(f"{self._dataset.describe(self._split, sample)} does not decode")
                data = self._dataset.view(self._split, row, sample)
            except DatasetError as error:
                if not self._skip:
                    raise
                delivered[place], data = self._replacement(sample, error)
            encoded.append(data)
        return encoded, delivered

    # --- bad samples --------------------------------------------------------------------------------------------------

    def _replacement(self, sample: int, reason: DatasetError) -> tuple[int, NDArray[np.uint8]]:
        """Return the next good sample of the same class, and its file: labels stay right wherever they are read."""
        same = np.flatnonzero(self._index["label"] == self._index["label"][sample])
        for other in np.roll(same, -int(np.searchsorted(same, sample)) - 1).tolist():
            if other == sample or other in self.unusable:
                continue
            try:
                data = self._dataset.view(self._split, self._index[other], other)
            except DatasetError:
                continue
            if self.replaced.get(sample) != other:
                log.warning("replaced by sample %d: %s", other, reason)
            self.replaced[sample] = other
            return other, data
        raise DatasetError(f"{reason}; no good sample of its class is left to take its place")


class FeedThread:
    """Keeps a feeder's next batches in the making.

    The thread holds the feeder alone, and ends with this object or by `close`.
    """

    def __init__(self, feeder: Feeder) -> None:
        self._feeder = feeder
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="feed")
        self._ahead: deque[Future[tuple[Ticket, Feed | None]]] = deque()

    def plan(self, number: int, batches: Iterator[tuple[int, Window]]) -> None:
        """Make `batches`, without end, from now on, and forget those made by an earlier plan."""
        for future in self._ahead:
            future.cancel()
        self._ahead.clear()
        self._number, self._batches = number, batches
        for _ in range(AHEAD):
            self._make_another()

    def take(self) -> tuple[Ticket, Feed | None]:
        """Return the next batch, once it is made."""
        self._make_another()
        return self._ahead.popleft().result()

    def close(self) -> None:
        """Wait for the thread's end."""
        self._pool.shutdown(cancel_futures=True)

    def _make_another(self) -> None:
        self._ahead.append(self._pool.submit(self._feeder.make, self._number, self._batches))

"""The stream of image batches: out of the shards, through the DALI graph, into PyTorch.

DALI asks for batches ahead of time. What it asks for is planned as one endless stream: the rest of this epoch, the next
epoch, and so on. Each batch asked for leaves a ticket, and tickets come out in the same order as the images. When
something else is wanted than comes next, the plan is changed and what was asked for by the old plan is thrown away; the
graph itself lives on.
"""

import io
import logging
import weakref
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from dataloading.augment import Augmentation, Draws, draw
from dataloading.errors import DatasetError
from dataloading.images import Rejected, decode
from dataloading.order import Run, Schedule, Window, samples_of
from dataloading.pipeline import DataType, Feed, build
from dataloading.shards import Dataset

log = logging.getLogger(__name__)


@dataclass
class _Ticket:
    """One batch that the graph was asked for."""

    plan: int
    epoch: int
    start: int
    samples: NDArray[np.int64]
    error: Exception | None = None


class DaliStream:
    """Images of a prepared data set, decoded and augmented by DALI. The arguments are those of `Loader`."""

    def __init__(
        self,
        dataset: Dataset,
        split: str,
        schedule: Schedule,
        *,
        batch_size: int,
        crop_size: int,
        augment: Augmentation | None,
        views: int,
        device: int | None,
        dtype: DataType,
        threads: int,
        hardware_decoder_load: float,
        on_bad_sample: Literal["stop", "skip"],
    ) -> None:
        self._dataset, self._split, self._schedule = dataset, split, schedule
        self._crop_size, self._augment, self._views, self._device = crop_size, augment, views, device
        self._skip = on_bad_sample == "skip"
        self._index = dataset.index(split)
        self.replaced: dict[int, int] = {}
        self._unusable: set[int] = set()
        self._same_every_epoch = not schedule.shuffle and augment is None
        self._plan_number = 0
        self._planned: Iterator[tuple[int, Window]] = iter(())
        self._tickets: deque[_Ticket] = deque()
        feed = weakref.WeakMethod(self.feed)

        def source() -> Feed:
            """Without a cycle between stream and graph, the graph's threads end with the stream."""
            alive = feed()
            assert alive is not None
            return alive()

        self._pipeline = build(
            source,
            batch_size=batch_size,
            crop_size=crop_size,
            image_size=dataset.size,
            mean_image=dataset.mean_image,
            dtype=dtype,
            views=views,
            noise=augment is not None and (callable(augment.color_noise) or augment.color_noise > 0),
            threads=threads,
            device=device,
            hardware_decoder_load=hardware_decoder_load,
        )

    def images(self, epoch: int, window: Window) -> torch.Tensor:
        """Return the images of a batch: N x 3 x H x W, or N x 10 x 3 x H x W for ten views.

        Raises:
            DatasetError: a sample of it is damaged or does not decode, and none may take its place.
        """
        if not self._comes_next(epoch, window):
            self._plan(epoch, window.start)
        while True:
            ticket, output = self._run()
            if ticket.plan != self._plan_number:
                continue
            if ticket.error is None:
                return self._to_torch(output)
            if isinstance(ticket.error, DatasetError) or not self._set_undecodable_aside(ticket):
                raise ticket.error
            self._plan(epoch, window.start)

    # --- planning -----------------------------------------------------------------------------------------------------

    def _comes_next(self, epoch: int, window: Window) -> bool:
        for ticket in self._tickets:
            if ticket.plan == self._plan_number:
                return ticket.start == window.start and (ticket.epoch == epoch or self._same_every_epoch)
        return False

    def _plan(self, epoch: int, start: int) -> None:
        self._plan_number += 1
        self._planned = _upcoming(self._schedule, epoch, start)

    def _run(self) -> tuple[_Ticket, Any]:
        """Take the next batch out of the graph, with its ticket."""
        stream = None if self._device is None else torch.cuda.current_stream(self._device)
        try:
            (output,) = self._pipeline.run(stream)
        except RuntimeError as error:
            if not self._tickets:
                raise
            ticket = self._tickets.popleft()
            ticket.error = ticket.error or error
            return ticket, None
        return self._tickets.popleft(), output

    # --- what the graph is fed ----------------------------------------------------------------------------------------

    def feed(self) -> Feed:
        """Give the graph its next batch. Errors travel with the ticket: they come out in turn, and unwrapped."""
        epoch, window = next(self._planned)
        runs = self._schedule.runs(epoch, window)
        ticket = _Ticket(self._plan_number, epoch, window.start, samples_of(runs))
        self._tickets.append(ticket)
        try:
            return self._read(runs, ticket.samples)
        except Exception as error:
            ticket.error = error
            return self._grey()

    def _read(self, runs: list[Run], samples: NDArray[np.int64]) -> Feed:
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
                if sample in self._unusable:
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
            if other == sample or other in self._unusable:
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

    def _set_undecodable_aside(self, ticket: _Ticket) -> bool:
        """Find the samples at which the graph failed: name one and stop, or remember them and return True."""
        found = False
        for sample in ticket.samples.tolist():
            current = self.replaced.get(sample, sample)
            try:
                decode(self._dataset.read(self._split, current).tobytes())
            except Rejected as reason:
                if not self._skip:
                    raise DatasetError(
                        f"{self._dataset.describe(self._split, current)}: {reason}; "
                        f"run python -m dataloading.check {self._dataset.root}"
                    ) from None
                self._unusable.add(current)
                found = True
        return found

    def _grey(self) -> Feed:
        """A batch of one grey image, to keep the graph going where there is an error to deliver."""
        buffer = io.BytesIO()
        Image.new("RGB", (self._dataset.size, self._dataset.size)).save(buffer, "JPEG")
        encoded = [np.frombuffer(buffer.getvalue(), dtype=np.uint8)]
        zero, zeros = np.zeros(1, dtype=np.float32), np.zeros((1, 3), dtype=np.float32)
        return encoded, zero, zero, zero.astype(np.int32), zeros, zeros + 1

    def _to_torch(self, output: Any) -> torch.Tensor:
        """Hand DALI's memory over to PyTorch as it is: N x H x W x C becomes channels_last by a change of strides."""
        images = torch.from_dlpack(output.as_tensor())
        return images.permute(0, 3, 1, 2) if self._views == 1 else images.permute(0, 1, 4, 2, 3)


def _upcoming(schedule: Schedule, epoch: int, start: int) -> Iterator[tuple[int, Window]]:
    """Yield this replica's batches from `start` of `epoch` on, without end and without empty ones."""
    while True:
        following = epoch + 1, max(start - schedule.count, 0)
        for window in schedule.windows(start):
            if window.first < window.last:
                yield epoch, window
            following = schedule.after(epoch, window)
        epoch, start = following

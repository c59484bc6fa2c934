"""The stream of image batches: out of the shards, through the DALI graph, into PyTorch.

DALI asks for batches ahead of time. What it asks for is planned as one endless stream: the rest of this epoch, the next
epoch, and so on. Each batch asked for leaves a ticket, and tickets come out in the same order as the images. When
something else is wanted than comes next, the plan is changed and what was asked for by the old plan is thrown away; the
graph itself lives on.
"""

import io
import weakref
from collections import deque
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from dataloading.augment import Augmentation
from dataloading.errors import DatasetError
from dataloading.feed import Feeder, FeedThread, Ticket
from dataloading.images import Rejected, decode
from dataloading.order import Schedule, Window
from dataloading.pipeline import PREFETCH, DataType, Feed, build, pack
from dataloading.shards import Dataset


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
        self._views, self._device = views, device
        self._skip = on_bad_sample == "skip"
        self._feeder = Feeder(dataset, split, schedule, crop_size=crop_size, augment=augment, skip=self._skip)
        self._thread = FeedThread(self._feeder)
        self._same_every_epoch = not schedule.shuffle and augment is None
        self._plan_number = 0
        self._tickets: deque[Ticket] = deque()
        self._fed: deque[Feed] = deque(maxlen=2 * PREFETCH)  # DALI reads this memory and does not own it
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

    @property
    def replaced(self) -> dict[int, int]:
        """The damaged samples met so far, each with the sample that was delivered in its place."""
        return dict(self._feeder.replaced)

    def close(self) -> None:
        """End the thread that feeds the graph."""
        self._thread.close()

    # --- planning -----------------------------------------------------------------------------------------------------

    def _comes_next(self, epoch: int, window: Window) -> bool:
        for ticket in self._tickets:
            if ticket.plan == self._plan_number:
                return ticket.start == window.start and (ticket.epoch == epoch or self._same_every_epoch)
        return False

    def _plan(self, epoch: int, start: int) -> None:
        self._plan_number += 1
        self._thread.plan(self._plan_number, _upcoming(self._schedule, epoch, start))

    def _run(self) -> tuple[Ticket, Any]:
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
        """Give the graph its next batch. Errors come out in turn, and unwrapped, with the ticket."""
        ticket, feed = self._thread.take()
        self._tickets.append(ticket)
        self._fed.append(self._grey() if feed is None else feed)
        return self._fed[-1]

    # --- bad samples --------------------------------------------------------------------------------------------------

    def _set_undecodable_aside(self, ticket: Ticket) -> bool:
        """Find the samples at which the graph failed: name one and stop, or remember them and return True."""
        found = False
        for sample in ticket.samples.tolist():
            current = self._feeder.replaced.get(sample, sample)
            try:
                decode(self._dataset.read(self._split, current).tobytes())
            except Rejected as reason:
                if not self._skip:
                    raise DatasetError(
                        f"{self._dataset.describe(self._split, current)}: {reason}; "
                        f"run python -m dataloading.check {self._dataset.root}"
                    ) from None
                self._feeder.unusable.add(current)
                found = True
        return found

    def _grey(self) -> Feed:
        """A batch of one grey image, to keep the graph going where there is an error to deliver."""
        buffer = io.BytesIO()
        Image.new("RGB", (self._dataset.size, self._dataset.size)).save(buffer, "JPEG")
        encoded = [np.frombuffer(buffer.getvalue(), dtype=np.uint8)]
        zero, zeros = np.zeros(1, dtype=np.float32), np.zeros((1, 3), dtype=np.float32)
        return pack((encoded, zero, zero, zero.astype(np.int32), zeros, zeros + 1))

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

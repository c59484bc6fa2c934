"""The stream of image batches: from the shards, through the DALI graph, to PyTorch.

DALI requests batches ahead of time, as one endless sequence: the rest of this epoch, the next epoch, and so on (the
plan). Every requested batch has a ticket, and tickets come out in the same order as the images. If the caller asks for
another batch than the next one of the plan, a new plan begins and the batches of the old one are thrown away; the graph
itself is kept.
"""

import io
import weakref
from collections import deque
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from dataloading.dataset import Dataset
from dataloading.errors import DamagedSample, DatasetError
from dataloading.loading.augment import Augmentation
from dataloading.loading.batch_feeder import BatchFeeder, FeedThread, Ticket
from dataloading.loading.dali_graph import PREFETCH, Arrays, DataType, Feed, build, pack
from dataloading.loading.order import BatchRange, EpochBatches
from dataloading.preparation.images import Rejected, decode
from dataloading.process import command


class DaliStream:
    """Images of a prepared data set, decoded and augmented by DALI. The arguments are those of `Loader`."""

    def __init__(
        self,
        dataset: Dataset,
        split: str,
        batches: EpochBatches,
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
        self._dataset, self._split, self._batches = dataset, split, batches
        self._views, self._device = views, device
        self._skip = on_bad_sample == "skip"
        self._feeder = BatchFeeder(dataset, split, batches, crop_size=crop_size, augment=augment, skip=self._skip)
        self._thread = FeedThread(self._feeder)
        self._same_every_epoch = not batches.shuffle and augment is None
        self._plan_number = 0
        self._tickets: deque[Ticket] = deque()
        self._fed: deque[Feed] = deque(maxlen=2 * PREFETCH)  # keeps alive the memory that DALI reads
        feed = weakref.WeakMethod(self._feed)

        def source() -> Feed:
            """A weak reference avoids a cycle between stream and graph, so the graph's threads end with the stream."""
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
            resized=augment is not None and augment.resized_crop,
            noise=augment is not None and (callable(augment.color_noise) or augment.color_noise > 0),
            threads=threads,
            device=device,
            hardware_decoder_load=hardware_decoder_load,
        )

    def images(self, epoch: int, batch: BatchRange) -> torch.Tensor:
        """Return the images of a batch: N x 3 x H x W, or N x 10 x 3 x H x W for ten views.

        Raises:
            DatasetError: one of its samples is damaged or does not decode, and may not be replaced.
        """
        if not self._is_next(epoch, batch):
            self._plan(epoch, batch.start)
        while True:
            ticket, output = self._run()
            if ticket.plan != self._plan_number:
                continue
            if ticket.error is None:
                return self._to_torch(output)
            if isinstance(ticket.error, DatasetError) or not self._mark_undecodable(ticket):
                raise ticket.error
            self._plan(epoch, batch.start)

    @property
    def replaced(self) -> dict[int, int]:
        """The bad samples so far, each with the sample that was delivered in its place."""
        return dict(self._feeder.replaced)

    def close(self) -> None:
        """End the thread that feeds the graph."""
        self._thread.close()

    # --- planning -----------------------------------------------------------------------------------------------------

    def _is_next(self, epoch: int, batch: BatchRange) -> bool:
        """Return whether the first ticket of the current plan is for this batch."""
        for ticket in self._tickets:
            if ticket.plan == self._plan_number:
                return ticket.start == batch.start and (ticket.epoch == epoch or self._same_every_epoch)
        return False

    def _plan(self, epoch: int, start: int) -> None:
        self._plan_number += 1
        self._thread.plan(self._plan_number, _upcoming(self._batches, epoch, start))

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

    def _feed(self) -> Feed:
        """Give the graph its next batch. An error waits in the ticket until the batch's turn comes."""
        ticket, feed = self._thread.take()
        self._tickets.append(ticket)
        self._fed.append(self._placeholder() if feed is None else feed)
        return self._fed[-1]

    # --- bad samples --------------------------------------------------------------------------------------------------

    def _mark_undecodable(self, ticket: Ticket) -> bool:
        """Find the samples at which the graph failed. Raise an error that names one, or mark all and return True."""
        found = False
        for sample in ticket.samples.tolist():
            current = self._feeder.replaced.get(sample, sample)
            try:
                decode(self._dataset.read(self._split, current).tobytes())
            except Rejected as reason:
                if not self._skip:
                    raise DamagedSample(
                        f"{self._dataset.describe(self._split, current)}: {reason}; "
                        f"run {command('dataloading.check', self._dataset.root)}"
                    ) from None
                self._feeder.unusable.add(current)
                found = True
        return found

    def _placeholder(self) -> Feed:
        """A batch of one black image, which keeps the graph running where there is an error to deliver."""
        buffer = io.BytesIO()
        Image.new("RGB", (self._dataset.size, self._dataset.size)).save(buffer, "JPEG")
        encoded = [np.frombuffer(buffer.getvalue(), dtype=np.uint8)]
        zero, zeros = np.zeros(1, dtype=np.float32), np.zeros((1, 3), dtype=np.float32)
        return pack(Arrays(encoded, zero, zero, zero + 1, zero + 1, zero.astype(np.int32), zeros, zeros + 1))

    def _to_torch(self, output: Any) -> torch.Tensor:
        """Share DALI's memory with PyTorch, without a copy: N x H x W x C is channels_last with permuted strides."""
        images = torch.from_dlpack(output.as_tensor())
        return images.permute(0, 3, 1, 2) if self._views == 1 else images.permute(0, 1, 4, 2, 3)


def _upcoming(batches: EpochBatches, epoch: int, start: int) -> Iterator[tuple[int, BatchRange]]:
    """Yield this replica's batches from position `start` of `epoch` on, endlessly and without empty ones."""
    while True:
        for batch in batches.ranges(start):
            if not batch.is_empty:
                yield epoch, batch
        epoch, start = epoch + 1, 0

"""The iterator that the trainer sees: batches of images and labels, the same for any number of devices.

What epoch e delivers follows from (seed, e) alone; the state of a loader is how far it has come: (epoch, samples).
"""

import logging
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from dataloading.augment import Augmentation, draw
from dataloading.errors import DatasetError
from dataloading.order import Window, batches, check_seed, epoch_order, windows
from dataloading.shards import Dataset

log = logging.getLogger(__name__)
_TORCH_TYPES = {"float32": torch.float32, "float16": torch.float16, "uint8": torch.uint8}


class Batch(NamedTuple):
    """One batch of N samples.

    `images`: N x 3 x crop x crop (or N x 10 x 3 x crop x crop for ten views), strides of ``torch.channels_last``; None
    without images. `labels`: int64, shape (N,); None without labels. `samples`: int64 NumPy array, shape (N,): which
    samples of the split these are.
    """

    images: torch.Tensor | None
    labels: torch.Tensor | None
    samples: NDArray[np.int64]


@dataclass
class _Ticket:
    """What was asked of the pipeline, in the order in which it will deliver."""

    generation: int
    epoch: int
    start: int
    samples: NDArray[np.int64]
    error: Exception | None = None


class Loader:
    """Delivers the batches of one split, epoch by epoch.

    Args:
        dataset: the prepared data set.
        split: "train", "val", ...
        batch_size: samples per batch of this replica.
        crop_size: side of the square crop in pixels.
        seed: 0 .. 2**64 - 1; order and augmentation follow from it.
        shuffle: a new order every epoch; otherwise the order of the index.
        augment: how images are varied; None for the plain centre crop.
        views: 1, or 10: corners and centre, then the same mirrored (evaluation; no augmentation).
        device: None for the CPU, or the number of a CUDA device on which images are decoded and delivered.
        dtype: "float32" or "float16": 0-255 minus the mean image (and with colour noise); "uint8": pixels as stored.
        threads: CPU threads of the pipeline.
        images: False builds no pipeline at all: labels only, for the last stage of a pipeline-parallel run.
        labels: False leaves labels out.
        drop_last: leave out the last batch of an epoch when it is smaller than the others.
        replica, replicas: this loader delivers part `replica` of every batch of `replicas` x `batch_size` samples.
        hardware_decoder_load: share of a batch that the GPU's JPEG hardware decodes; 0 for runs whose bits repeat.
        on_bad_sample: a sample that is damaged or does not decode raises `DatasetError` ("stop"), or is replaced by the
            next good one of the same class and counted in `replaced` ("skip").

    Raises:
        DatasetError: an argument does not fit the data set.
    """

    def __init__(
        self,
        dataset: Dataset,
        split: str,
        batch_size: int,
        *,
        crop_size: int = 224,
        seed: int = 0,
        shuffle: bool,
        augment: Augmentation | None,
        views: int = 1,
        device: int | None = None,
        dtype: Literal["float32", "float16", "uint8"] = "float32",
        threads: int = 2,
        images: bool = True,
        labels: bool = True,
        drop_last: bool,
        replica: int = 0,
        replicas: int = 1,
        hardware_decoder_load: float = 0.65,
        on_bad_sample: Literal["stop", "skip"] = "stop",
    ) -> None:
        self.dataset, self.split, self.batch_size = dataset, split, batch_size
        self.crop_size, self.seed, self.shuffle, self.augment = crop_size, check_seed(seed), shuffle, augment
        self.views, self.device, self.dtype = views, device, dtype
        self.images, self.with_labels, self.drop_last = images, labels, drop_last
        self.replica, self.replicas, self.on_bad_sample = replica, replicas, on_bad_sample
        self._threads, self._hardware_decoder_load = threads, hardware_decoder_load
        self._check()
        self.replaced: dict[int, int] = {}  # damaged sample -> the one delivered in its place
        self._index = dataset.index(split)
        self._labels = dataset.labels(split).astype(np.int64)
        self._orders: dict[int, NDArray[np.int64]] = {}
        self._position = {"epoch": 0, "samples": 0}
        self._generation = 0  # counts the times that the stream was pointed elsewhere
        self._iteration = 0  # counts calls of epoch(): only the newest may go on
        self._planned: Iterator[tuple[int, Window]] = iter(())
        self._tickets: deque[_Ticket] = deque()
        self._pipeline: Any = None

    def __len__(self) -> int:
        """Return the number of batches per epoch."""
        count = self.dataset.count(self.split)
        return batches(count, batch_size=self.batch_size, replicas=self.replicas, drop_last=self.drop_last)

    def epoch(self, epoch: int | None = None, start_sample: int | None = None) -> Iterator[Batch]:
        """Yield the batches of `epoch`, from the `start_sample`-th sample (of all replicas) in its order.

        Without arguments: go on from the state. An iterator that was left half-way is ended by the next call.
        """
        if epoch is None:
            epoch, start_sample = (
                self._position["epoch"],
                self._position["samples"] if start_sample is None else start_sample,
            )
        start = start_sample or 0
        if epoch < 0 or not 0 <= start <= self.dataset.count(self.split):
            raise DatasetError(
                f"cannot start epoch {epoch} at sample {start}; {self.split} has {self.dataset.count(self.split):,} "
                f"samples"
            )
        self._iteration += 1
        return self._batches(epoch, start, self._iteration)

    def state_dict(self) -> dict[str, int]:
        """Return {"epoch", "samples"}: the epoch, and how many of its samples all replicas have consumed."""
        return dict(self._position)

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Make ``epoch()`` go on from `state`. The batch size and the number of replicas may have changed since."""
        self._position = {"epoch": int(state["epoch"]), "samples": int(state["samples"])}

    def close(self) -> None:
        """Give back the pipeline's threads and memory. The loader can be used again; it then builds a new one."""
        self._iteration += 1
        self._pipeline = None
        self._tickets.clear()
        self._generation += 1
        self._planned = iter(())

    # --- one epoch ----------------------------------------------------------------------------------------------------

    def _batches(self, epoch: int, start: int, iteration: int) -> Iterator[Batch]:
        count = self.dataset.count(self.split)
        for window in self._windows(start):
            if iteration != self._iteration:
                raise RuntimeError("this epoch was ended by a later call of epoch() or close()")
            samples = self._order(epoch)[window.first : window.last]
            images = self._images(epoch, window, samples) if self.images else None
            labels = torch.from_numpy(self._labels[samples]) if self.with_labels else None
            if labels is not None and self.device is not None:
                labels = labels.to(torch.device("cuda", self.device), non_blocking=True)
            ended = count - window.stop < (self.batch_size * self.replicas if self.drop_last else 1)
            self._position = {"epoch": epoch + ended, "samples": 0 if ended else window.stop}
            yield Batch(images, labels, samples)

    def _windows(self, start: int = 0) -> Iterator[Window]:
        return windows(
            self.dataset.count(self.split),
            batch_size=self.batch_size,
            replica=self.replica,
            replicas=self.replicas,
            start=start,
            drop_last=self.drop_last,
        )

    def _order(self, epoch: int) -> NDArray[np.int64]:
        key = epoch if self.shuffle else 0
        if key not in self._orders:
            while len(self._orders) > 1:  # this epoch's and the next one's, which is being prefetched
                self._orders.pop(min(self._orders))
            count = self.dataset.count(self.split)
            self._orders[key] = epoch_order(count, seed=self.seed, epoch=epoch, shuffle=self.shuffle)
        return self._orders[key]

    # --- the stream of batches through the pipeline -------------------------------------------------------------------

    def _images(self, epoch: int, window: Window, samples: NDArray[np.int64]) -> torch.Tensor:
        """Return the images of `window`; point the stream there first if something else comes next in it."""
        if not len(samples):
            return self._no_images()
        if self._pipeline is None:
            self._pipeline = self._build()
        if not self._comes_next(epoch, window):
            self._seek(epoch, window.start)
        while True:
            ticket, output = self._run()
            if ticket.generation != self._generation:
                continue
            if ticket.error is None:
                return self._to_torch(output)
            if isinstance(ticket.error, DatasetError) or not self._set_aside_undecodable(ticket):
                raise ticket.error
            self._seek(epoch, window.start)

    def _comes_next(self, epoch: int, window: Window) -> bool:
        for ticket in self._tickets:
            if ticket.generation == self._generation:
                same_epoch = ticket.epoch == epoch or (not self.shuffle and self.augment is None)
                return same_epoch and ticket.start == window.start
        return False

    def _seek(self, epoch: int, start: int) -> None:
        """Let the stream go on from sample `start` of `epoch`; what is in work already will be thrown away."""
        self._generation += 1
        self._planned = self._plan(epoch, start)

    def _plan(self, epoch: int, start: int) -> Iterator[tuple[int, Window]]:
        """Yield what the pipeline is to work on: the rest of this epoch, the next epoch, and so on without end."""
        while True:
            for window in self._windows(start):
                if window.first < window.last:
                    yield epoch, window
            epoch, start = epoch + 1, 0

    def _run(self) -> tuple[_Ticket, Any]:
        """Take the next batch out of the pipeline, with the ticket it was asked for with."""
        stream = None if self.device is None else torch.cuda.current_stream(self.device)
        try:
            (output,) = self._pipeline.run(stream)
        except RuntimeError as error:
            if not self._tickets:
                raise
            ticket = self._tickets.popleft()
            ticket.error = ticket.error or error
            return ticket, None
        return self._tickets.popleft(), output

    def _feed(self) -> Any:
        """Give the pipeline its next batch. Errors travel with the ticket: they come out in turn, and unwrapped."""
        epoch, window = next(self._planned)
        samples = self._order(epoch)[window.first : window.last]
        ticket = _Ticket(self._generation, epoch, window.start, samples)
        self._tickets.append(ticket)
        try:
            return self._read(epoch, window, samples)
        except Exception as error:
            ticket.error = error
            return self._blank()

    def _read(self, epoch: int, window: Window, samples: NDArray[np.int64]) -> Any:
        """Read the files of a batch and make its draws."""
        encoded, delivered = self._files(samples)
        rows = self._index[delivered]
        heights, widths = rows["height"].astype(np.int64), rows["width"].astype(np.int64)
        draws = draw(
            self.augment,
            seed=self.seed,
            epoch=epoch,
            samples=samples,
            positions=np.arange(window.first, window.last),
            heights=heights,
            widths=widths,
            crop_size=self.crop_size,
            color_deviations=self.dataset.color_deviations,
            color_vectors=self.dataset.color_vectors,
        )
        x = draws.left / np.maximum(widths - self.crop_size, 1)
        y = draws.top / np.maximum(heights - self.crop_size, 1)
        divisor = np.full((len(samples), 3), draws.divisor, dtype=np.float32)
        return encoded, x.astype(np.float32), y.astype(np.float32), draws.flip.astype(np.int32), -draws.shift, divisor

    def _files(self, samples: NDArray[np.int64]) -> tuple[list[NDArray[np.uint8]], NDArray[np.int64]]:
        """Return the encoded images of `samples`, and which samples they are of after replacing bad ones."""
        encoded, delivered = [], samples.copy()
        for place, row in enumerate(self._index[samples].tolist()):
            sample = int(samples[place])
            if sample in self.replaced:
                delivered[place], data = self._replacement(sample)
            else:
                try:
                    data = self.dataset.view(self.split, row, sample)
                except DatasetError as error:
                    if self.on_bad_sample == "stop":
                        raise
                    log.warning("replaced: %s", error)
                    delivered[place], data = self._replacement(sample)
            encoded.append(data)
        return encoded, delivered

    def _replacement(self, sample: int) -> tuple[int, NDArray[np.uint8]]:
        """Return the next good sample of the same class (labels stay right wherever they are read), and its file."""
        same = np.flatnonzero(self._labels == self._labels[sample])
        for other in np.roll(same, -int(np.searchsorted(same, sample)) - 1).tolist():
            if other == sample or other in self.replaced:
                continue
            try:
                data = self.dataset.view(self.split, self._index[other], other)
            except DatasetError:
                continue
            self.replaced[sample] = other
            return other, data
        raise DatasetError(
            f"{self.dataset.describe(self.split, sample)} cannot be used, and no other of its class can; prepare the "
            f"data anew"
        )

    def _set_aside_undecodable(self, ticket: _Ticket) -> bool:
        """Find the samples for which the pipeline failed: name them and stop, or replace them and return True."""
        from dataloading.images import Rejected, decode

        found = False
        for sample in ticket.samples.tolist():
            current = self.replaced.get(sample, sample)
            try:
                decode(self.dataset.read(self.split, current).tobytes())
            except Rejected as reason:
                message = f"{self.dataset.describe(self.split, current)} {reason}"
                if self.on_bad_sample == "stop":
                    raise DatasetError(f"{message}; run python -m dataloading.check {self.dataset.root}") from None
                log.warning("replaced: %s", message)
                self.replaced[current] = current  # so that it is no candidate for replacing itself
                self._replacement(sample)
                found = True
        return found

    def _blank(self) -> Any:
        """A batch of one grey image, to keep the pipeline going where there is an error to deliver."""
        import io

        from PIL import Image

        buffer = io.BytesIO()
        Image.new("RGB", (self.dataset.size, self.dataset.size)).save(buffer, "JPEG")
        zero, triple = np.zeros(1, dtype=np.float32), np.zeros((1, 3), dtype=np.float32)
        return [np.frombuffer(buffer.getvalue(), dtype=np.uint8)], zero, zero, zero.astype(np.int32), triple, triple + 1

    # --- to torch -----------------------------------------------------------------------------------------------------

    def _to_torch(self, output: Any) -> torch.Tensor:
        """Hand DALI's memory over to PyTorch as it is: N x H x W x C becomes channels_last by a change of strides."""
        images = torch.from_dlpack(output.as_tensor())
        return images.permute(0, 3, 1, 2) if self.views == 1 else images.permute(0, 1, 4, 2, 3)

    def _no_images(self) -> torch.Tensor:
        shape = (
            (0, 3, self.crop_size, self.crop_size) if self.views == 1 else (0, 10, 3, self.crop_size, self.crop_size)
        )
        device = None if self.device is None else torch.device("cuda", self.device)
        return torch.empty(shape, dtype=_TORCH_TYPES[self.dtype], device=device)

    def _build(self) -> Any:
        from dataloading.pipeline import build

        noise = self.augment is not None and (callable(self.augment.color_noise) or self.augment.color_noise > 0)
        return build(
            self._feed,
            batch_size=self.batch_size,
            crop_size=self.crop_size,
            image_size=self.dataset.size,
            mean_image=self.dataset.mean_image,
            dtype=self.dtype,
            views=self.views,
            noise=noise,
            threads=self._threads,
            device=self.device,
            hardware_decoder_load=self._hardware_decoder_load,
        )

    def _check(self) -> None:
        size, noise = self.dataset.size, self.augment.color_noise if self.augment else 0
        problems = {
            f"batch_size is {self.batch_size}; it must be 1 or more": self.batch_size < 1,
            f"threads is {self._threads}; it must be 1 or more": self._threads < 1,
            f"crop_size is {self.crop_size}; the images are {size} pixels: it must be 1 to {size}": not 1
            <= self.crop_size
            <= size,
            f"views is {self.views}; it must be 1 or 10": self.views not in (1, 10),
            "ten views take no augmentation; pass augment=None": self.views == 10 and self.augment is not None,
            f"dtype is {self.dtype!r}; it must be one of {', '.join(_TORCH_TYPES)}": self.dtype not in _TORCH_TYPES,
            "uint8 images carry no colour noise; pass Augmentation(color_noise=0)": self.dtype == "uint8"
            and bool(noise),
            f"replica is {self.replica}; with {self.replicas} replicas it must be 0 to {self.replicas - 1}": not 0
            <= self.replica
            < self.replicas,
            f"hardware_decoder_load is {self._hardware_decoder_load}; it must be 0 to 1": not 0
            <= self._hardware_decoder_load
            <= 1,
            f"on_bad_sample is {self.on_bad_sample!r}; it must be 'stop' or 'skip'": self.on_bad_sample
            not in ("stop", "skip"),
            f"{self.split} of {self.dataset.root} has no samples": self.dataset.count(self.split) == 0,
        }
        for message, wrong in problems.items():
            if wrong:
                raise DatasetError(message)

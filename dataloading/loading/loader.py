"""The iterator that the trainer sees: batches of images and labels, the same for any number of devices.

What epoch e delivers follows from (seed, e) alone; the state of a loader is how far it has come: (epoch, samples).
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from dataloading.augment import Augmentation
from dataloading.errors import DatasetError
from dataloading.order import Schedule, Window, samples_of
from dataloading.shards import Dataset
from dataloading.synthetic import SyntheticDataset, SyntheticStream

if TYPE_CHECKING:
    from dataloading.stream import DaliStream

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "uint8": torch.uint8}


class Batch(NamedTuple):
    """One batch of N samples.

    `images`: N x 3 x crop x crop (or N x 10 x 3 x crop x crop for ten views), strides of ``torch.channels_last``; None
    without images. `labels`: int64, shape (N,); None without labels. `samples`: int64 NumPy array, shape (N,): which
    samples of the split these are.
    """

    images: torch.Tensor | None
    labels: torch.Tensor | None
    samples: NDArray[np.int64]


class Loader:
    """Delivers the batches of one split, epoch by epoch.

    Args:
        dataset: the prepared data set, or a `SyntheticDataset`.
        split: "train", "val", ...
        batch_size: samples per batch of this replica.
        crop_size: side of the square crop in pixels.
        seed: 0 .. 2**64 - 1; order and augmentation follow from it.
        shuffle: a new order every epoch; otherwise the order of the index.
        augment: how images are varied; None for the plain centre crop.
        views: 1, or 10: corners and centre of the centre square, then the same mirrored (evaluation; no augmentation).
        device: None for the CPU, or the number of a CUDA device on which images are decoded and delivered.
        dtype: "float32" or "float16": 0-255 minus the mean image (and with colour noise); "uint8": pixels as stored.
        threads: CPU threads of the pipeline.
        images: False builds no pipeline at all: labels only, for the last stage of a pipeline-parallel run.
        labels: False leaves labels out.
        drop_last: True leaves out the last batch of an epoch when it is smaller than the others; "carry" completes it
            with the first samples of the next epoch, which begins that much later; False delivers it as it is.
        replica, replicas: this loader delivers part `replica` of every batch of `replicas` x `batch_size` samples.
        hardware_decoder_load: share of a batch that the GPU's JPEG hardware decodes; 0 for runs whose bits repeat.
        on_bad_sample: a sample that is damaged or does not decode raises `DatasetError` ("stop"), or the next good one
            of the same class takes its place and it is counted in `replaced` ("skip").

    Raises:
        DatasetError: an argument does not fit the data set.
    """

    def __init__(
        self,
        dataset: Dataset | SyntheticDataset,
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
        drop_last: bool | Literal["carry"],
        replica: int = 0,
        replicas: int = 1,
        hardware_decoder_load: float = 0.65,
        on_bad_sample: Literal["stop", "skip"] = "stop",
    ) -> None:
        self.dataset, self.split, self.batch_size = dataset, split, batch_size
        self.crop_size, self.seed, self.augment, self.views = crop_size, seed, augment, views
        self.device, self.dtype, self.threads = device, dtype, threads
        self.replica, self.replicas = replica, replicas
        self.hardware_decoder_load, self.on_bad_sample = hardware_decoder_load, on_bad_sample
        self._with_images = images
        self._check()
        self._schedule = Schedule(
            dataset.count(split),
            seed=seed,
            shuffle=shuffle,
            batch_size=batch_size,
            replica=replica,
            replicas=replicas,
            last="carry" if drop_last == "carry" else "drop" if drop_last else "deliver",
        )
        self._labels = dataset.labels(split) if labels else None
        self._position = 0, 0  # epoch and place of the next batch
        self._begin = 0, 0  # of the epoch that a batch reached last, where its own first batch begins
        self._iteration = 0  # counts calls of epoch(): only the newest may go on
        self._stream: DaliStream | SyntheticStream | None = None
        self._replaced: dict[int, int] = {}  # by streams that are closed

    def __len__(self) -> int:
        """Return the number of batches of an epoch (with "carry": of the first; later ones may have one less)."""
        return self._schedule.batches(0)

    @property
    def replaced(self) -> dict[int, int]:
        """The damaged samples met so far, each with the sample that was delivered in its place."""
        return self._replaced | (self._stream.replaced if self._stream else {})

    def epoch(self, epoch: int | None = None, start_sample: int | None = None) -> Iterator[Batch]:
        """Yield the batches of `epoch`, from the `start_sample`-th sample (of all replicas) in its order.

        Without arguments: go on from the state. The next call ends an iterator that was left half-way.

        Raises:
            DatasetError: there is no such place; or, later, a sample is damaged.
        """
        if epoch is None:
            epoch, start_sample = self._position[0], self._position[1] if start_sample is None else start_sample
        if start_sample is None:
            start_sample = self._begin[1] if self._begin[0] == epoch else self._schedule.start(epoch)
        if epoch < 0 or not 0 <= start_sample <= max(self._schedule.count, self._schedule.start(epoch)):
            raise DatasetError(
                f"cannot start epoch {epoch} at sample {start_sample}; {self.split} has {self._schedule.count:,} "
                f"samples"
            )
        self._iteration += 1
        return self._batches(epoch, start_sample, self._iteration)

    def state_dict(self) -> dict[str, int]:
        """Return {"epoch", "samples"}: the epoch, and how many of its samples all replicas have consumed."""
        return {"epoch": self._position[0], "samples": self._position[1]}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Make ``epoch()`` go on from `state`. The batch size and the number of replicas may have changed since."""
        self._position = int(state["epoch"]), int(state["samples"])

    def close(self) -> None:
        """Give back the pipeline's threads and memory. The loader can be used again; it then builds a new one."""
        self._iteration += 1
        if self._stream:
            self._replaced = self.replaced
            self._stream.close()
        self._stream = None

    def _batches(self, epoch: int, start: int, iteration: int) -> Iterator[Batch]:
        for window in self._schedule.windows(start):
            if iteration != self._iteration:
                raise RuntimeError("this epoch was ended by a later call of epoch() or close()")
            samples = samples_of(self._schedule.runs(epoch, window))
            images = self._images(epoch, window) if self._with_images else None
            labels = None if self._labels is None else self._to_device(self._labels[samples])
            self._position = self._schedule.after(epoch, window)
            if self._position[0] > epoch:
                self._begin = self._position
            yield Batch(images, labels, samples)

    def _images(self, epoch: int, window: Window) -> torch.Tensor:
        if window.first == window.last:
            return torch.empty(self._shape(0), dtype=_DTYPES[self.dtype], device=self._torch_device)
        if self._stream is None:
            self._stream = self._open_stream()
        return self._stream.images(epoch, window)

    def _open_stream(self) -> "DaliStream | SyntheticStream":
        if isinstance(self.dataset, SyntheticDataset):
            return SyntheticStream(self._shape(self.batch_size), _DTYPES[self.dtype], self._torch_device, self.seed)
        from dataloading.stream import DaliStream  # imports DALI

        return DaliStream(
            self.dataset,
            self.split,
            self._schedule,
            batch_size=self.batch_size,
            crop_size=self.crop_size,
            augment=self.augment,
            views=self.views,
            device=self.device,
            dtype=self.dtype,
            threads=self.threads,
            hardware_decoder_load=self.hardware_decoder_load,
            on_bad_sample=self.on_bad_sample,
        )

    def _shape(self, count: int) -> tuple[int, ...]:
        return (count, *((self.views,) if self.views > 1 else ()), 3, self.crop_size, self.crop_size)

    @property
    def _torch_device(self) -> torch.device | None:
        return None if self.device is None else torch.device("cuda", self.device)

    def _to_device(self, labels: NDArray[np.int32]) -> torch.Tensor:
        on_cpu = torch.from_numpy(labels.astype(np.int64))
        return on_cpu if self.device is None else on_cpu.to(self._torch_device, non_blocking=True)

    def _check(self) -> None:
        size, noise = self.dataset.size, self.augment.color_noise if self.augment else 0
        device, devices = self.device, torch.cuda.device_count()
        known_device = device is None or 0 <= device < devices
        known_replica = 0 <= self.replica < self.replicas
        for right, message in (
            (self.batch_size >= 1, f"batch_size is {self.batch_size}; it must be 1 or more"),
            (self.threads >= 1, f"threads is {self.threads}; it must be 1 or more"),
            (1 <= self.crop_size <= size, f"crop_size is {self.crop_size}; the images have {size} pixels: 1 to {size}"),
            (self.views in (1, 10), f"views is {self.views}; it must be 1 or 10"),
            (self.views == 1 or self.augment is None, "ten views are for evaluation; pass augment=None"),
            (self.dtype in _DTYPES, f"dtype is {self.dtype!r}; it must be one of {', '.join(_DTYPES)}"),
            (
                self.dtype != "uint8" or not noise,
                "uint8 images carry no colour noise; pass Augmentation(color_noise=0)",
            ),
            (known_device, f"device is {device}; this machine has {devices} CUDA devices, and None stands for the CPU"),
            (known_replica, f"replica is {self.replica} of {self.replicas}; it must be 0 to {self.replicas - 1}"),
            (0 <= self.hardware_decoder_load <= 1, f"hardware_decoder_load is {self.hardware_decoder_load}; 0 to 1"),
            (self.on_bad_sample in ("stop", "skip"), f"on_bad_sample is {self.on_bad_sample!r}; stop or skip"),
            (self.dataset.count(self.split) > 0, f"{self.split} of {self.dataset.root} has no samples"),
        ):
            if not right:
                raise DatasetError(message)

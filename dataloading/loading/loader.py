"""The iterator that the trainer sees: batches of images and labels, the same for any number of devices.

What epoch e delivers is a function of (seed, e). So the state of a run is its position, (epoch, samples seen), and a
run resumes with ``epoch(epoch, start_sample=samples)``. Here an epoch is a counter from 0: the number of finished ones.
"""

import importlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from dataloading.dataset import Dataset
from dataloading.errors import DatasetError
from dataloading.loading.augment import Augmentation
from dataloading.loading.dali_check import check_dali
from dataloading.loading.order import BatchRange, EpochBatches
from dataloading.loading.synthetic_stream import SyntheticStream
from dataloading.sources.synthetic import SyntheticDataset

if TYPE_CHECKING:
    from dataloading.loading.dali_stream import DaliStream

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "uint8": torch.uint8}


class Batch(NamedTuple):
    """One batch of N samples.

    Attributes:
        images: N x 3 x crop x crop, or N x 10 x 3 x crop x crop for ten views, with the strides of
            ``torch.channels_last``; None without images.
        labels: int64, shape (N,); None without labels.
        samples: which samples of the split these are: int64 NumPy array, shape (N,).
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
        seed: 0 to 2**64 - 1; determines order and augmentation.
        shuffle: a random order; otherwise the order of the index.
        reshuffle: a new random order every epoch; otherwise one for all epochs, as in 2012.
        augment: how images are varied; None means a centre crop.
        views: 1, or 10: corners and centre of the centre square, then the same mirrored (evaluation; no augmentation).
        device: None for the CPU, or the number of the CUDA device on which images are decoded and delivered.
        dtype: "float32" or "float16": 0-255 minus the mean image, and with colour noise; "uint8": pixels as stored.
        threads: CPU threads for decoding.
        images: False delivers labels only and needs no DALI, for the last stage of a pipeline-parallel run.
        labels: False delivers images only.
        drop_last: leave out the last batch of an epoch if it is smaller than the others.
        replica, replicas: this loader delivers part `replica` of every global batch of ``replicas * batch_size``
            samples.
        hardware_decoder_load: fraction of a batch that the GPU's JPEG hardware decodes; with 0, runs are bitwise
            reproducible.
        on_bad_sample: what to do with a sample that is damaged or does not decode: "stop" raises `DatasetError`, "skip"
            delivers the next good one of the same class in its place and records it in `replaced`. A shard that cannot
            be read always raises `DatasetError`.

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
        reshuffle: bool = True,
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
        self.crop_size, self.seed, self.augment, self.views = crop_size, seed, augment, views
        self.device, self.dtype, self.threads = device, dtype, threads
        self.replica, self.replicas = replica, replicas
        self.hardware_decoder_load, self.on_bad_sample = hardware_decoder_load, on_bad_sample
        self._with_images = images
        self._check_arguments()
        self._epoch_batches = EpochBatches(
            dataset.count(split),
            seed=seed,
            shuffle=shuffle,
            reshuffle=reshuffle,
            batch_size=batch_size,
            replica=replica,
            replicas=replicas,
            drop_last=drop_last,
        )
        self._labels = dataset.labels(split) if labels else None
        self._iteration = 0  # counts calls of epoch(): only the latest iterator is valid
        self._stream: DaliStream | SyntheticStream | None = None
        self._replaced_before: dict[int, int] = {}  # by streams that are closed

    def __len__(self) -> int:
        """Return the number of batches per epoch."""
        return self._epoch_batches.batch_count()

    @property
    def replaced(self) -> dict[int, int]:
        """The bad samples so far, each with the sample that was delivered in its place."""
        return self._replaced_before | (self._stream.replaced if self._stream else {})

    def epoch(self, epoch: int, start_sample: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch, from position `start_sample` of its order on (counted over all replicas).

        Only the iterator of the latest call is valid; an earlier one raises `RuntimeError` when it is used again.

        Raises:
            DatasetError: there is no such position; or, during iteration, a sample is damaged.
        """
        count = self._epoch_batches.count
        if epoch < 0 or not 0 <= start_sample <= count:
            raise DatasetError(
                f"cannot start epoch {epoch} at sample {start_sample}; {self.split} has {count:,} samples"
            )
        self._iteration += 1
        return self._batches(epoch, start_sample, self._iteration)

    def close(self) -> None:
        """Free the threads and memory of decoding. The next batch of images starts them again."""
        self._iteration += 1
        if self._stream:
            self._replaced_before = self.replaced
            self._stream.close()
        self._stream = None

    def _batches(self, epoch: int, start: int, iteration: int) -> Iterator[Batch]:
        for batch in self._epoch_batches.ranges(start):
            if iteration != self._iteration:
                raise RuntimeError("this epoch was ended by a later call of epoch() or close()")
            samples = self._epoch_batches.samples(epoch, batch)
            images = self._images(epoch, batch) if self._with_images else None
            labels = None if self._labels is None else self._to_device(self._labels[samples])
            yield Batch(images, labels, samples)

    def _images(self, epoch: int, batch: BatchRange) -> torch.Tensor:
        if batch.is_empty:
            return torch.empty(self._shape(0), dtype=_DTYPES[self.dtype], device=self._torch_device)
        if self._stream is None:
            self._stream = self._open_stream()
        return self._stream.images(epoch, batch)

    def _open_stream(self) -> "DaliStream | SyntheticStream":
        if isinstance(self.dataset, SyntheticDataset):
            return SyntheticStream(self._shape(self.batch_size), _DTYPES[self.dtype], self._torch_device, self.seed)
        # Imported here because it imports DALI, which is slow and not needed for synthetic data or labels alone.
        check_dali()
        dali_stream = importlib.import_module("dataloading.loading.dali_stream")
        stream: DaliStream = dali_stream.DaliStream(
            self.dataset,
            self.split,
            self._epoch_batches,
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
        return stream

    def _shape(self, count: int) -> tuple[int, ...]:
        return (count, *((self.views,) if self.views > 1 else ()), 3, self.crop_size, self.crop_size)

    @property
    def _torch_device(self) -> torch.device | None:
        return None if self.device is None else torch.device("cuda", self.device)

    def _to_device(self, labels: NDArray[np.int32]) -> torch.Tensor:
        on_cpu = torch.from_numpy(labels.astype(np.int64))
        return on_cpu if self.device is None else on_cpu.to(self._torch_device, non_blocking=True)

    def _check_arguments(self) -> None:
        size, noise = self.dataset.size, self.augment.color_noise if self.augment else 0
        device, devices, load = self.device, torch.cuda.device_count(), self.hardware_decoder_load
        is_known_device = device is None or 0 <= device < devices
        is_known_replica = 0 <= self.replica < self.replicas
        for is_right, message in (
            (self.batch_size >= 1, f"batch_size must be at least 1, got {self.batch_size}"),
            (self.threads >= 1, f"threads must be at least 1, got {self.threads}"),
            (
                1 <= self.crop_size <= size,
                f"crop_size must be 1 to {size}, the size of the images in pixels, got {self.crop_size}",
            ),
            (self.views in (1, 10), f"views must be 1 or 10, got {self.views}"),
            (self.views == 1 or self.augment is None, "ten views are for evaluation; pass augment=None"),
            (self.dtype in _DTYPES, f"dtype must be one of {', '.join(_DTYPES)}, got {self.dtype!r}"),
            (
                self.dtype != "uint8" or not noise,
                "uint8 images cannot have colour noise; pass Augmentation(color_noise=0)",
            ),
            (
                is_known_device,
                f"device must be None for the CPU or one of this machine's {devices} CUDA devices, got {device}",
            ),
            (is_known_replica, f"replica must be 0 to {self.replicas - 1}, got {self.replica}"),
            (0 <= load <= 1, f"hardware_decoder_load must be 0 to 1, got {load}"),
            (self.on_bad_sample in ("stop", "skip"), f"on_bad_sample must be stop or skip, got {self.on_bad_sample!r}"),
            (self.dataset.count(self.split) > 0, f"{self.split} of {self.dataset.root} has no samples"),
        ):
            if not is_right:
                raise DatasetError(message)

"""Random images from memory, to see how fast training is when data costs nothing (``fastalex.train synthetic``)."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dataloading.errors import DatasetError
from dataloading.order import Window


class SyntheticDataset:
    """Stands where a `Dataset` stands, with made-up samples; its `Loader` delivers the same random images in every
    batch.

    Args:
        classes: how many; sample i has label i modulo that.
        train, val: how many samples; the defaults are ILSVRC2012's.
        size: length of the images' shorter side in pixels, for the crops to fit in.
    """

    def __init__(self, classes: int = 1000, train: int = 1_281_167, val: int = 50_000, size: int = 256) -> None:
        self.name, self.root, self.size = "synthetic", "synthetic", size
        self.classes = [str(label) for label in range(classes)]
        self.words: list[str] | None = None
        self._counts = {"train": train, "val": val}
        self.splits = tuple(self._counts)
        self.mean_image: NDArray[np.float32] = np.full((size, size, 3), 127.5, dtype=np.float32)
        self.color_deviations = np.zeros(3)
        self.color_vectors = np.eye(3)
        self.fingerprint = f"synthetic-{classes}-{train}-{val}-{size}"
        self.made: dict[str, Any] = {"source": "synthetic", "rejected": 0}

    def __repr__(self) -> str:
        return f"SyntheticDataset({len(self.classes)} classes, {self._counts})"

    def count(self, split: str) -> int:
        """Return the number of samples of `split`."""
        if split not in self._counts:
            raise DatasetError(f"synthetic data have no split {split!r}; they have {', '.join(self.splits)}")
        return self._counts[split]

    def labels(self, split: str) -> NDArray[np.int32]:
        """Return the label of every sample of `split`: int32, shape (count,)."""
        return (np.arange(self.count(split)) % len(self.classes)).astype(np.int32)

    def key(self, split: str, i: int) -> str:
        """Return the name of sample `i`."""
        return str(i)

    def source(self, split: str, i: int) -> str:
        """Return nothing: no file is behind a sample."""
        return ""


class SyntheticStream:
    """One batch of uniform noise, made once and handed out again and again (a part of it for smaller batches)."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | None, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed % 2**63)
        pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        flat = pixels.flatten(0, -4).contiguous(memory_format=torch.channels_last)
        images = flat if dtype == torch.uint8 else flat.to(dtype) - 127.5
        self._images = images.to(device).unflatten(0, shape[:-3])
        self.replaced: dict[int, int] = {}

    def images(self, epoch: int, window: Window) -> torch.Tensor:
        """Return as many images as the batch has samples."""
        return self._images[: window.last - window.first]

    def close(self) -> None:
        """There is nothing to end."""

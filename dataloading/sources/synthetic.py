"""A data set without images, to measure training speed without the cost of loading (``fastalex.train synthetic``)."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataloading.errors import DatasetError


class SyntheticDataset:
    """A data set with the interface of `Dataset`. Its `Loader` delivers the same random images in every batch.

    Args:
        classes: number of classes; sample i has label ``i % classes``.
        train, val: number of samples in each split; the defaults are ILSVRC2012's.
        size: length of the images' shorter side in pixels; crops must fit in it.
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
            raise DatasetError(f"the synthetic data set has no split {split!r}; it has {', '.join(self.splits)}")
        return self._counts[split]

    def labels(self, split: str) -> NDArray[np.int32]:
        """Return the label of every sample of `split`: int32, shape (count,)."""
        return (np.arange(self.count(split)) % len(self.classes)).astype(np.int32)

    def key(self, split: str, i: int) -> str:
        """Return the key of sample `i`."""
        return str(i)

    def source(self, split: str, i: int) -> str:
        """Return an empty string: a sample has no source file."""
        return ""

"""Small loaders, and how their batches are compared."""

import io

import numpy as np
import torch
from PIL import Image

from dataloading import Augmentation, Batch, Dataset, Loader, SyntheticDataset


def loader(
    dataset: Dataset | SyntheticDataset, split: str = "train", batch_size: int = 10, **options: object
) -> Loader:
    defaults = {
        "crop_size": 24,
        "seed": 7,
        "shuffle": True,
        "augment": Augmentation(),
        "drop_last": False,
        "threads": 1,
    }
    return Loader(dataset, split, batch_size, **(defaults | options))


def evaluating(
    dataset: Dataset | SyntheticDataset, split: str = "val", batch_size: int = 5, **options: object
) -> Loader:
    return loader(dataset, split, batch_size, **({"shuffle": False, "augment": None} | options))


def samples(batches) -> list[int]:
    return [sample for batch in batches for sample in batch.samples.tolist()]


def same(one: Batch, other: Batch) -> bool:
    return (
        np.array_equal(one.samples, other.samples)
        and torch.equal(one.images, other.images)
        and torch.equal(one.labels, other.labels)
    )


def stored(dataset: Dataset, split: str, sample: int) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(dataset.read(split, sample)))).astype(np.float32)

"""Small loaders, and how their batches are compared."""

import io

import numpy as np
import torch
from PIL import Image

from dataloading import Augmentation, Batch, Dataset, Loader, SyntheticDataset
from dataloading.loading.augment import draw


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


def by_hand(
    dataset: Dataset,
    samples: np.ndarray,
    augmentation: Augmentation,
    *,
    epoch: int,
    crop: int,
    start: int = 0,
    delivered: np.ndarray | None = None,
) -> np.ndarray:
    """The images of training samples in plain NumPy, N x H x W x C, drawn with the seed of `loader`.

    Args:
        start: position of the first sample in the epoch.
        delivered: the samples whose images are delivered, where bad ones are replaced.
    """
    delivered = samples if delivered is None else delivered
    rows = dataset.index("train")[delivered]
    found = draw(
        augmentation,
        seed=7,
        epoch=epoch,
        samples=samples,
        positions=np.arange(start, start + len(rows)),
        heights=rows["height"].astype(np.int64),
        widths=rows["width"].astype(np.int64),
        crop_size=crop,
        color_deviations=dataset.color_deviations,
        color_vectors=dataset.color_vectors,
    )
    border = (dataset.size - crop) // 2
    mean = dataset.mean_image[border : border + crop, border : border + crop]
    images = []
    for i, sample in enumerate(delivered):
        image = stored(dataset, "train", sample)[found.top[i] :, found.left[i] :][: found.height[i], : found.width[i]]
        if augmentation.resized_crop:
            part = Image.fromarray(image.astype(np.uint8))
            image = np.asarray(part.resize((crop, crop), Image.Resampling.BILINEAR)).astype(np.float32)
        if found.flip[i]:
            image = image[:, ::-1]
        images.append((image - mean + found.shift[i]) / found.divisor[i])
    return np.stack(images)

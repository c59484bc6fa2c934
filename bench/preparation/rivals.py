"""Other readers of the same shards, which are tar files: DALI's own WebDataset reader, and the package WebDataset.

Both do the work of `dataloading.Loader`: shuffle, decode, random crop and flip, mean image, colour noise, batches. They
shuffle within a buffer, and nothing makes their order, crops and colours repeatable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from nvidia.dali import fn, pipeline_def, types

from dataloading import Dataset
from dataloading.loading.dali_graph import PREFETCH

SHUFFLED = 2048
"""Images in the buffer that a batch is drawn from."""


def shard_paths(dataset: Dataset) -> list[str]:
    """The tar files of the training images."""
    return [str(dataset.root / shard.file) for shard in dataset.shards("train")]


def dali_batches(dataset: Dataset, batch_size: int, threads: int, crop: int, noise: float) -> Iterator[torch.Tensor]:
    """Batches of DALI alone: its reader of tar files, and its random numbers. N x 3 x H x W, float32."""
    border = (dataset.size - crop) // 2
    mean = np.ascontiguousarray(dataset.mean_image[border : border + crop, border : border + crop])
    axes = dataset.color_vectors * dataset.color_deviations * noise  # columns are the axes, as long as their noise

    @pipeline_def(batch_size=batch_size, num_threads=threads, prefetch_queue_depth=PREFETCH)
    def graph() -> Any:
        encoded, _ = fn.readers.webdataset(  # type: ignore[misc]  # DALI's stub does not count the outputs
            paths=shard_paths(dataset), ext=["jpg", "cls"], random_shuffle=True, initial_fill=SHUFFLED, name="reader"
        )
        images = fn.decoders.image_crop(
            encoded,
            crop=(crop, crop),
            crop_pos_x=fn.random.uniform(range=(0, 1)),
            crop_pos_y=fn.random.uniform(range=(0, 1)),
            output_type=types.DALIImageType.RGB,
            adjust_orientation=False,
        )
        images = fn.flip(images, horizontal=fn.random.coin_flip()) - types.Constant(mean, device="cpu")
        draws = fn.random.normal(shape=(3,))
        shift = fn.stack(*(fn.reductions.sum(draws * types.Constant(row.astype(np.float32))) for row in axes))
        divisor = types.Constant(np.full(3, 1 + noise, np.float32), device="cpu")
        return fn.crop_mirror_normalize(
            images, mean=-shift, std=divisor, dtype=types.DALIDataType.FLOAT, output_layout="HWC"
        )

    pipeline = graph()
    pipeline.build()
    while True:
        (output,) = pipeline.run()
        yield torch.from_dlpack(output.as_tensor()).permute(0, 3, 1, 2)


def webdataset_batches(
    dataset: Dataset, prepare: Callable[[bytes], torch.Tensor], batch_size: int, workers: int
) -> Iterator[torch.Tensor]:
    """Batches of the package WebDataset in torch's DataLoader: N x 3 x H x W, float32.

    Args:
        prepare: from an encoded image to H x W x 3.

    Raises:
        ImportError: the package is not installed.
    """
    import webdataset  # an alternative that need not be there

    paths = shard_paths(dataset)
    images = webdataset.WebDataset(paths, resampled=True, shardshuffle=False, nodesplitter=webdataset.split_by_worker)
    images = images.shuffle(SHUFFLED).to_tuple("jpg").map_tuple(prepare).batched(batch_size, partial=False)
    loader = torch.utils.data.DataLoader(
        images, batch_size=None, num_workers=workers, prefetch_factor=2 if workers else None
    )
    for (batch,) in loader:
        yield torch.as_tensor(batch).permute(0, 3, 1, 2)

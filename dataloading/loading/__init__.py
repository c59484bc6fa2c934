"""From a prepared data set to the batches that the training loop sees.

`order` and `augment` are pure functions of counters: the order of an epoch and the augmentation of each image depend on
the seed, the epoch and the sample alone. `batch_feeder` reads the files of the next batches in a thread, `dali_graph`
decodes and augments them, `dali_stream` delivers the result as PyTorch tensors, and `loader` is the iterator over
epochs and batches.

`Loader` and `Batch` are exported by `dataloading`, not here, so that importing this package does not import PyTorch.
"""

from dataloading.loading.augment import Augmentation

__all__ = ["Augmentation"]

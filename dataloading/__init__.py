"""Images to batches: prepare a data set once, then load shuffled, augmented batches from it.

`sources` lists the images of a folder or an archive, `preparation` decodes them once and writes shards, and `loading`
delivers batches to the training loop. The modules beside them hold what these three packages share.

Importing this package imports neither PyTorch nor DALI. `Loader` and `Batch` import PyTorch on first access, and a
loader imports DALI when it delivers its first batch of real images.
"""

import importlib
from typing import TYPE_CHECKING, Any

from dataloading.dataset import Dataset, is_prepared
from dataloading.errors import DatasetError
from dataloading.loading.augment import Augmentation
from dataloading.preparation.preparation import prepare_dataset
from dataloading.sources.synthetic import SyntheticDataset

if TYPE_CHECKING:
    from dataloading.loading.loader import Batch, Loader

__all__ = [
    "Augmentation",
    "Batch",
    "Dataset",
    "DatasetError",
    "Loader",
    "SyntheticDataset",
    "is_prepared",
    "prepare_dataset",
]

_LAZY_MODULES = {"Batch": "dataloading.loading.loader", "Loader": "dataloading.loading.loader"}


def __getattr__(name: str) -> Any:
    if name in _LAZY_MODULES:
        return getattr(importlib.import_module(_LAZY_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

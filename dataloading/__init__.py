"""Images to batches: prepared data sets and the loader that feeds training.

Importing this package imports neither DALI nor PyTorch; `Loader`, `Batch` and `SyntheticDataset` bring them when they
are first asked for.
"""

from typing import TYPE_CHECKING, Any

from dataloading.augment import Augmentation
from dataloading.errors import DatasetError
from dataloading.preparation import prepare_dataset
from dataloading.shards import Dataset, is_prepared

if TYPE_CHECKING:
    from dataloading.loader import Batch, Loader
    from dataloading.synthetic import SyntheticDataset

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


def __getattr__(name: str) -> Any:
    if name in ("Batch", "Loader"):
        from dataloading import loader

        return getattr(loader, name)
    if name == "SyntheticDataset":
        from dataloading.synthetic import SyntheticDataset

        return SyntheticDataset
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""Data sets that several tests share; tests must not change them."""

from pathlib import Path

import pytest
from hypothesis import settings

from dataloading import Dataset, prepare_dataset
from tests.dataloading.small_sources import class_folders, contents, jpeg, tar_of

settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders: 3 classes with 8 training and 4 validation photographs each."""
    return class_folders(tmp_path_factory.mktemp("source") / "photographs")


@pytest.fixture(scope="session")
def small(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The class folders, prepared at 32 pixels in shards of 10."""
    dest = tmp_path_factory.mktemp("prepared") / "small"
    return prepare_dataset(folders, dest, size=32, shard_images=10, workers=0, progress=False)


@pytest.fixture(scope="session")
def full_size(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Photographs prepared at the real size: 256 pixels."""
    root = tmp_path_factory.mktemp("full")
    class_folders(root / "photographs", classes=2, train=12, val=4, width=400, height=300)
    return prepare_dataset(root / "photographs", root / "prepared", workers=0, progress=False)


@pytest.fixture(scope="session")
def awkward(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """1005 training samples in 5 classes; few batch sizes divide this number. The source is a WebDataset shard."""
    root = tmp_path_factory.mktemp("awkward")
    (root / "shards").mkdir()
    images = [jpeg(i, 24, 24) for i in range(15)]
    for split, count in (("train", 1005), ("val", 15)):
        members = []
        for i in range(count):
            members += [(f"{i:05d}.jpg", images[i % 15]), (f"{i:05d}.cls", str(i % 5).encode())]
        (root / "shards" / f"{split}-0000.tar").write_bytes(tar_of(members))
    return prepare_dataset(root / "shards", root / "prepared", size=24, shard_images=300, workers=0, progress=False)


@pytest.fixture(scope="session")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """400 photographs, prepared to 30 shards: enough to interrupt the preparation."""
    return class_folders(tmp_path_factory.mktemp("many") / "in", classes=4, train=90, val=10, width=640, height=480)


@pytest.fixture(scope="session")
def many_prepared(many: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of their preparation without interruption."""
    dest = tmp_path_factory.mktemp("many") / "whole"
    return contents(prepare_dataset(many, dest, size=128, shard_images=14, workers=0, progress=False).root)

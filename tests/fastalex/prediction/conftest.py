"""Runs of untrained networks, and the images of the prepared data set as files."""

from pathlib import Path

import pytest

import dataloading
from tests.fastalex.conftest import save_run


@pytest.fixture(scope="session")
def runs(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two runs with different weights, written as training writes them."""
    folder = tmp_path_factory.mktemp("runs")
    one, two = (save_run(folder / str(seed), prepared, seed=seed, with_record=True) for seed in (1, 2))
    return one, two


@pytest.fixture(scope="session")
def stored(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the stored validation images, named by their numbers: 0.jpg to 6.jpg."""
    folder, dataset = tmp_path_factory.mktemp("stored"), dataloading.Dataset(prepared)
    for number in range(dataset.count("val")):
        (folder / f"{number}.jpg").write_bytes(dataset.read("val", number))
    return folder

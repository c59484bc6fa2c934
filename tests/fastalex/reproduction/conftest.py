"""Jobs on small data sets."""

from pathlib import Path

import pytest

import dataloading
from fastalex.reproduction import steps
from fastalex.reproduction.job import Job, Settings, Source
from tests.fastalex.conftest import write_images

CLASSES = ("ant", "bee", "cat", "dog", "eel", "fox")
"""Enough for a top-5 error."""


@pytest.fixture(scope="session")
def animals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared data set of 60 training and 12 validation images in six classes."""
    folder = tmp_path_factory.mktemp("animals")
    write_images(folder / "images", train=10, val=2, classes=CLASSES)
    dataloading.prepare_dataset(folder / "images", folder / "animals", progress=False, workers=0)
    return folder / "animals"


@pytest.fixture
def job(animals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    """Everything, on these images, with two networks a row."""
    monkeypatch.setattr(steps, "FEWEST_IMAGES", 2)
    monkeypatch.chdir(tmp_path)  # figure 1 prepares smaller images in the current folder
    return job_on(animals, tmp_path / "out", seeds=2)


def job_on(
    data: Path, output: Path, *targets: str, seeds: int | None = None, pretraining: Path | None = None, **settings
) -> Job:
    """A job on one data set, in the place of ILSVRC-2010 and of ILSVRC-2012."""
    values = {"devices": "cpu", "epochs": 2, "batch_size": 8, "lr": None, "precision": None, "width": 0.0625}
    names = targets or ("table1", "table2", "figure1", "figure2", "figure3", "figure4", "claims")
    first, main = (Source(place, dataloading.Dataset(data), False) for place in ("ILSVRC-2010", "ILSVRC-2012"))
    third = Source("ImageNet's Fall 2011 release", dataloading.Dataset(pretraining), False) if pretraining else None
    return Job(names, first, main, third, Settings(**(values | settings), seeds=seeds), output)

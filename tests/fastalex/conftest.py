"""A small data set of real JPEG files, prepared once per test run, and a quick network."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import dataloading
from fastalex.datasets import open_prepared
from fastalex.network.variation import Variation
from fastalex.network.weights import NetworkSpec
from fastalex.parallel.layout import ParallelPlan
from fastalex.recipes.schedule import Change, Recipe
from fastalex.training.checkpoint import record_of, save_checkpoint
from fastalex.training.config import RunConfig
from fastalex.training.state import TrainingState

CLASSES = ("blue", "green", "red")
CPU = torch.device("cpu")


def write_images(folder: Path, *, train: int, val: int, classes: tuple[str, ...] = CLASSES) -> Path:
    """Class folders of noisy JPEG images, each class with a colour of its own."""
    generator = np.random.default_rng(1)
    for split, count in (("train", train), ("val", val)):
        for label, name in enumerate(classes):
            target = folder / split / name
            target.mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 120, (48, 60, 3), dtype=np.uint8)
                pixels[..., 2 - label % 3] += 110
                Image.fromarray(pixels).save(target / f"{number:03}.jpg", quality=90)
    return folder


@pytest.fixture(scope="session")
def class_folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """32 training and 7 validation images in 3 classes; 7 is no multiple of any batch size used here."""
    folder = tmp_path_factory.mktemp("images")
    write_images(folder, train=10, val=3)
    for index in range(2):  # 32 and 7: the class sizes differ, too
        source = folder / "train" / "red" / f"{index:03}.jpg"
        (folder / "train" / "red" / f"more{index}.jpg").write_bytes(source.read_bytes())
        (folder / "val" / "red" / f"{index:03}.jpg").unlink()
    return folder


@pytest.fixture(scope="session")
def prepared(class_folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, prepared."""
    folder = tmp_path_factory.mktemp("prepared") / "colors"
    dataloading.prepare_dataset(class_folders, folder, progress=False, workers=0)
    return folder


@pytest.fixture
def config(prepared: Path, tmp_path: Path) -> RunConfig:
    """A run that `small_run` describes."""
    return small_run(prepared, tmp_path / "run")


def small_run(prepared: Path, output: Path) -> RunConfig:
    """Two epochs of four steps of a narrow network with dropout, flips, colour noise and a drop of the rate."""
    output.mkdir()
    network = NetworkSpec("krizhevsky", len(CLASSES), Variation(width=1 / 16, lrn=False), CLASSES)
    recipe = Recipe("test", epochs=2, batch_size=8, lr=0.002, changes=(Change(2, 0.1, color_noise=0.0),))
    config = RunConfig(
        data=str(prepared),
        network=network,
        recipe=recipe,
        parallel=replace(ParallelPlan.single(CPU, network.build_architecture().block_names), micro_batches=2),
        precision="fp32",
        seed=3,
        output=str(output),
    )
    config.save()
    return config


def save_run(
    folder: Path, data: Path, *, seed: int = 0, scale: float = 4.0, with_record: bool = False, **changes: Any
) -> Path:
    """A run folder with the weights of a narrow network that nobody trained, but whose answers differ between images.

    Args:
        data: the prepared data set that the run names.
        with_record: write the weights as training does; otherwise as earlier versions did, without the mean image.
        changes: fields of its :class:`NetworkSpec`.
    """
    folder.mkdir()
    classes = tuple(dataloading.Dataset(data).classes)
    network = replace(NetworkSpec("krizhevsky", len(classes), Variation(width=1 / 16, lrn=False), classes), **changes)
    model = network.build(seed=seed)
    with torch.no_grad():
        for block in model.blocks():
            block.weight.mul_(scale)
    weights = {name: parameter.detach().contiguous() for name, parameter in model.named_parameters()}
    recipe = Recipe("test", epochs=1, batch_size=8, lr=0.002)
    plan = ParallelPlan.single(CPU, model.architecture.block_names)
    config = RunConfig(str(data), network, recipe, plan, "fp32", seed, str(folder))
    config.save()
    velocities = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    state = TrainingState(epoch=1, step=4, errors=[50.0])
    dataset = open_prepared(str(data), by_channel=network.channel_means)
    save_checkpoint(
        folder, weights, velocities, state, network, record_of(config, dataset, state) if with_record else None
    )
    return folder

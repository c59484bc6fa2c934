"""Runs that start from another run's weights: what is taken over, what starts anew, and what is refused."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import dataloading
from fastalex import AlexNet
from fastalex.errors import ConfigurationError
from fastalex.network.variation import Variation
from fastalex.options.training import NetworkOptions, ParallelOptions, RecipeOptions, TrainOptions
from fastalex.parallel.world import World
from fastalex.training.config import RunConfig
from fastalex.training.resolve import resolve
from fastalex.training.trainer import restore_model, train
from tests.fastalex.conftest import write_images
from tests.fastalex.training.test_trainer import moved

WORLD = World(0, 1, torch.device("cpu"))
NETWORK = NetworkOptions(width=1 / 16, lrn=False, conv6=True)


@pytest.fixture(scope="module")
def pets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes that the first network has not seen."""
    root = tmp_path_factory.mktemp("pets")
    write_images(root / "images", train=8, val=2, classes=("cat", "dog"))
    dataloading.prepare_dataset(root / "images", root / "prepared", progress=False, workers=1)
    return root / "prepared"


@pytest.fixture
def first(config: RunConfig) -> Path:
    """A run of three classes with a sixth conv layer and a bottleneck, one epoch long."""
    variation = Variation(width=1 / 16, lrn=False, conv6=True, bottleneck=8)
    network = replace(config.network, variation=variation)
    run = moved(config, "first", network=network, recipe=replace(config.recipe, epochs=1))
    train(WORLD, run)
    return Path(run.output)


def options(data: Path, run: Path, output: Path, network: NetworkOptions = NETWORK) -> TrainOptions:
    training = RecipeOptions(recipe="small", batch_size=8, epochs=2, seed=9, init_from=run)
    return TrainOptions(
        data, network=network, training=training, parallel=ParallelOptions(devices="cpu"), output=output
    )


def initial(config: RunConfig) -> dict[str, torch.Tensor]:
    """The weights before the first step."""
    return dict(restore_model(config, None).named_parameters())


def test_other_classes_get_a_new_last_layer_and_everything_below_is_kept(first, pets, tmp_path):
    config = resolve(options(pets, first, tmp_path / "second"))
    before, start = load_file(first / "last.safetensors"), initial(config)
    untouched = dict(AlexNet(config.network.build_architecture(), seed=9).named_parameters())
    assert start["fc8.weight"].shape[0] == 2
    for name, tensor in start.items():
        expected = untouched[name] if name.startswith("fc8.") else before[name]
        assert torch.equal(tensor, expected), name
    assert "bottleneck.weight" in before
    assert "bottleneck.weight" not in start
    assert "conv6.weight" in start


def test_the_same_classes_and_head_keep_it(first, prepared, tmp_path):
    config = resolve(options(prepared, first, tmp_path / "second", replace(NETWORK, bottleneck=8)))
    before, start = load_file(first / "last.safetensors"), initial(config)
    assert set(before) == {*start, "preprocessing.mean"}
    assert all(torch.equal(start[name], before[name]) for name in start)


def test_a_run_goes_on_without_the_one_that_it_started_from(first, pets, tmp_path):
    config = resolve(options(pets, first / "last.safetensors", tmp_path / "second"))
    train(WORLD, replace(config, recipe=replace(config.recipe, epochs=1)))
    shutil.rmtree(first)
    train(WORLD, config)
    assert RunConfig.load(tmp_path / "second").init_from == str(first / "last.safetensors")


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (
            replace(NETWORK, width=1 / 8),
            "its network is krizhevsky width=0.0625 lrn=False conv6=True bottleneck=8",
        ),
        (
            replace(NETWORK, conv6=False),
            "this run's is krizhevsky width=0.0625 lrn=False; give the same network options",
        ),
        (replace(NETWORK, arch="paper"), "this run's is paper width=0.0625"),
    ],
)
def test_another_architecture_is_refused(first, pets, tmp_path, network, message):
    with pytest.raises(ConfigurationError) as error:
        resolve(options(pets, first, tmp_path / "second", network))
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "second").exists()


def test_no_weights_to_start_from(pets, tmp_path):
    with pytest.raises(ConfigurationError, match=r"--init-from .*nowhere: neither a file of weights nor a run"):
        resolve(options(pets, tmp_path / "nowhere", tmp_path / "second"))

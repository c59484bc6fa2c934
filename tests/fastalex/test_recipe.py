"""Schedules against the tables of the 2012 runs."""

import pytest

from fastalex.errors import ConfigurationError
from fastalex.recipe import RECIPES, Plateau, Recipe, build_recipe, plateau_divisions

LAYERS = ("conv1", "conv2", "conv5", "fc6", "fc8")

# Configuration 145: epoch -> weight learning rates of conv1 and of the others, bias rate of conv1 and of the others.
SCHEDULE_145 = {
    0: (1e-2, 1e-2, 0.02, 0.02),
    24: (1e-2, 1e-2, 0.02, 0.02),
    25: (1e-3, 1e-3, 0.02, 0.02),
    51: (1e-4, 1e-4, 0.02, 0.02),
    66: (1e-4, 1e-4, 0.02, 0.02),
    67: (1e-5, 1e-4, 0.02, 0.02),
    72: (0.0, 1e-4, 0.0, 0.02),
    79: (0.0, 1e-5, 0.0, 0.02),
    90: (0.0, 1e-5, 0.0, 0.02),
}


@pytest.mark.parametrize("epoch", SCHEDULE_145)
def test_schedule_of_configuration_145(epoch):
    recipe = build_recipe("krizhevsky")
    conv1, others, conv1_bias, other_biases = SCHEDULE_145[epoch]
    for layer in LAYERS:
        weight = recipe.lr * recipe.lr_scale_at(epoch, layer, "weights")
        bias = recipe.lr * recipe.bias_lr_multiplier * recipe.lr_scale_at(epoch, layer, "biases")
        assert weight == pytest.approx(conv1 if layer == "conv1" else others)
        assert bias == pytest.approx(conv1_bias if layer == "conv1" else other_biases)
    assert recipe.color_noise_at(epoch) == (0.1 if epoch < 67 else 0.0)


def test_other_lengths_keep_the_shape():
    short = build_recipe("krizhevsky").with_epochs(182)
    assert short.epochs == 182
    assert [change.epoch for change in short.changes] == [50, 102, 134, 144, 158]


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("epochs", [1, 2, 3, 7])
def test_short_runs_start_as_the_recipe_does(name, epochs):
    recipe, short = build_recipe(name), build_recipe(name).with_epochs(epochs)
    for layer in LAYERS:
        assert short.lr_scale_at(0, layer, "weights") == recipe.lr_scale_at(0, layer, "weights")
    if epochs > 1:  # and every change happens, however late
        assert short.lr_scale_at(epochs - 1, "conv2", "weights") == recipe.lr_scale_at(10**6, "conv2", "weights")


def test_plateau_divides_three_times_and_no_more():
    plateau = Plateau(patience=2, times=3)
    assert plateau_divisions([50, 40, 30], plateau) == 0
    assert plateau_divisions([50, 40, 41], plateau) == 0
    assert plateau_divisions([50, 40, 41, 42], plateau) == 1
    assert plateau_divisions([50, 40, 41, 42, 39, 40], plateau) == 1
    assert plateau_divisions([50, *[60] * 20], plateau) == 3


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_complete(name):
    recipe = build_recipe(name)
    assert recipe.name == name
    assert all(change.epoch < recipe.epochs for change in recipe.changes)
    assert list(recipe.changes) == sorted(recipe.changes, key=lambda change: change.epoch)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": 0}, "epochs is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"lr": -0.1}, "lr is -0.1"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"momentum": 1.0}, "momentum is 1.0; less than 1"),
    ],
)
def test_bad_values_are_named(values, message):
    with pytest.raises(ConfigurationError, match=message):
        Recipe(**{"name": "test", "epochs": 1, "batch_size": 1, "lr": 0.1, **values})


def test_unknown_recipe():
    with pytest.raises(
        ConfigurationError, match="unknown recipe 'adam'; choose one of krizhevsky, paper, small, digits"
    ):
        build_recipe("adam")

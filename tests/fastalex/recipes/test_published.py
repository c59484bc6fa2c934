"""Schedules against the tables of the 2012 runs."""

from dataclasses import replace

import pytest

from fastalex import AlexNet
from fastalex.errors import ConfigurationError
from fastalex.recipes.optimizer import KrizhevskySGD
from fastalex.recipes.published import RECIPES, build_recipe
from fastalex.recipes.schedule import Plateau, Recipe, plateau_divisions

LAYERS = ("conv1", "conv2", "conv5", "fc6", "fc8")

# Epoch -> weight learning rates of conv1 and of the others, bias rates of conv1 and of the others, colour noise: as the
# saved options of the runs and the notes of 2012 and 2013 have them.
SCHEDULES = {
    "source-145": {
        0: (1e-2, 1e-2, 0.02, 0.02, 0.1),
        24: (1e-2, 1e-2, 0.02, 0.02, 0.1),
        25: (1e-3, 1e-3, 0.02, 0.02, 0.1),
        51: (1e-4, 1e-4, 0.02, 0.02, 0.1),
        66: (1e-4, 1e-4, 0.02, 0.02, 0.1),
        67: (1e-5, 1e-4, 0.02, 0.02, 0.0),
        72: (0.0, 1e-4, 0.0, 0.02, 0.0),
        78: (0.0, 1e-4, 0.0, 0.02, 0.0),
        79: (0.0, 1e-5, 0.0, 0.02, 0.0),
        90: (0.0, 1e-5, 0.0, 0.02, 0.0),
    },
    "source-145-2010": {
        0: (1e-2, 1e-2, 0.02, 0.02, 0.1),
        22: (1e-2, 1e-2, 0.02, 0.02, 0.1),
        23: (1e-3, 1e-3, 0.02, 0.02, 0.1),
        51: (1e-4, 1e-4, 0.02, 0.02, 0.1),
        67: (1e-4, 1e-4, 0.02, 0.02, 0.1),
        68: (1e-5, 1e-4, 0.02, 0.02, 0.0),
        72: (0.0, 1e-4, 0.0, 0.02, 0.0),
        78: (0.0, 1e-5, 0.0, 0.002, 0.0),
        92: (0.0, 1e-5, 0.0, 0.002, 0.0),
    },
    "source-170": {
        0: (0.01, 0.01, 0.02, 0.02, 0.1),
        23: (0.01, 0.01, 0.02, 0.02, 0.1),
        24: (0.0015874, 0.0015874, 0.02, 0.02, 0.1),
        47: (0.0015874, 0.0015874, 0.02, 0.02, 0.1),
        48: (0.00025198, 0.00025198, 0.002, 0.002, 0.1),
        68: (0.00025198, 0.00025198, 0.002, 0.002, 0.0),
        72: (4e-5, 4e-5, 0.002, 0.002, 0.0),
        78: (0.0, 4e-5, 0.0, 0.002, 0.0),
        94: (0.0, 4e-5, 0.0, 0.002, 0.0),
    },
}
LENGTHS = {"source-145": 91, "source-145-2010": 93, "source-170": 95}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_as_they_were_run(name):
    recipe = build_recipe(name)
    assert recipe.epochs == LENGTHS[name]
    assert recipe.batch_size == 128
    optimizer = KrizhevskySGD(AlexNet("krizhevsky", 10, seed=0, width=1 / 16, conv6=True, bottleneck=8), recipe)
    for epoch, (conv1, others, conv1_bias, other_biases, noise) in SCHEDULES[name].items():
        optimizer.set_epoch(epoch)
        for group in optimizer.param_groups:
            layer, kind = group["name"].split(".")
            first = layer == "conv1"
            weight, bias = conv1 if first else others, conv1_bias if first else other_biases
            expected = weight if kind == "weight" else bias
            assert group["lr"] == pytest.approx(expected, rel=1e-4), (epoch, group["name"])
        assert recipe.color_noise_at(epoch) == noise


def test_the_runs_of_2012_share_crops_as_their_source_did():
    shared = {name: build_recipe(name).crops_shared_by for name in RECIPES}
    assert {name for name, count in shared.items() if count == 32} == {"krizhevsky", "source-145-2010", "source-170"}
    assert set(shared.values()) == {1, 32}
    with pytest.raises(ConfigurationError, match="crops_shared_by is 0; at least 1 is wanted"):
        replace(build_recipe("digits"), crops_shared_by=0)


def test_the_papers_schedule_divides_by_ten_where_validation_stalls():
    recipe = build_recipe("paper")
    assert (recipe.epochs, recipe.batch_size, recipe.momentum, recipe.weight_decay) == (90, 128, 0.9, 0.0005)
    errors = [60.0, 50.0, *[51.0] * 5, 45.0, *[46.0] * 5, 44.0, *[45.0] * 5, 43.0, *[44.0] * 10]
    expected = [1e-2] * 7 + [1e-3] * 6 + [1e-4] * 6 + [1e-5] * 12  # by the epochs that are finished
    optimizer = KrizhevskySGD(AlexNet("paper", 10, seed=0, width=1 / 16), recipe)
    for epoch, rate in enumerate(expected):
        assert recipe.plateau is not None
        optimizer.set_epoch(epoch, plateau_divisions(errors[:epoch], recipe.plateau))
        found = {group["name"]: group["lr"] for group in optimizer.param_groups}
        assert found == pytest.approx(dict.fromkeys(found, rate)), epoch  # biases learn at the weights' rate
        assert recipe.color_noise_at(epoch) == 0.1
    assert len(errors) >= len(expected) - 1


def test_the_run_of_2012_has_two_names():
    assert build_recipe("source-145") == build_recipe("krizhevsky")


def test_other_lengths_keep_the_shape():
    short = build_recipe("krizhevsky").with_epochs(182)
    assert short.epochs == 182
    assert [change.epoch for change in short.changes] == [50, 102, 134, 144, 158, 158]


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
        ConfigurationError, match="unknown recipe 'adam'; choose one of krizhevsky, source-145-2010, source-170, paper"
    ):
        build_recipe("adam")


def test_a_larger_batch_scales_the_rate_and_warms_up_from_the_old_one():
    recipe = replace(build_recipe("krizhevsky"), warmup_epochs=5).with_scaled_lr(1024)
    assert (recipe.batch_size, recipe.lr) == (1024, pytest.approx(0.08))
    assert [recipe.lr * recipe.warmup_at(epoch) for epoch in (0, 2.5, 5, 50)] == pytest.approx(
        [0.01, 0.045, 0.08, 0.08]
    )
    assert build_recipe("krizhevsky").warmup_at(0) == 1
    with pytest.raises(ConfigurationError, match="lars is 0"):
        replace(recipe, lars=0)


@pytest.mark.parametrize(
    ("recipe", "epochs", "expected"),
    [
        ("krizhevsky", 91, "lr 0.01, 0.001 from epoch 26, 0.0001 from epoch 52, 1e-05 from epoch 80"),
        ("small", 20, "lr 0.002, 0.0002 from epoch 15, 2e-05 from epoch 19"),
        ("small", 2, "lr 0.002, 2e-05 from epoch 2"),  # both changes in one
        ("four-layer", 40, "lr 0.001"),
        ("paper", 90, "lr 0.01, times 0.1 after 5 epochs without a better top-1 error, up to 3 times"),
    ],
)
def test_the_learning_rate_in_words(recipe, epochs, expected):
    assert build_recipe(recipe).with_epochs(epochs).lr_summary("fc8") == expected

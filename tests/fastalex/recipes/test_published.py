"""The named recipes against the tables of the 2012 runs."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from fastalex import AlexNet
from fastalex.errors import ConfigurationError
from fastalex.recipes.edits import edited
from fastalex.recipes.optimizer import KrizhevskySGD
from fastalex.recipes.published import RECIPES, build_recipe, drops_to_add
from fastalex.recipes.schedule import plateau_divisions

# Epoch, counted from 1 as in the source -> weight learning rates of conv1 and of the others, bias rates of conv1 and of
# the others, colour noise: as the saved options of the runs and the notes of 2012 and 2013 have them.
SCHEDULES = {
    "source-145": {
        1: (1e-2, 1e-2, 0.02, 0.02, 0.1),
        24: (1e-2, 1e-2, 0.02, 0.02, 0.1),
        25: (1e-3, 1e-3, 0.02, 0.02, 0.1),
        50: (1e-3, 1e-3, 0.02, 0.02, 0.1),
        51: (1e-4, 1e-4, 0.02, 0.02, 0.1),
        66: (1e-4, 1e-4, 0.02, 0.02, 0.1),
        67: (1e-5, 1e-4, 0.02, 0.02, 0.0),
        71: (1e-5, 1e-4, 0.02, 0.02, 0.0),
        72: (0.0, 1e-4, 0.0, 0.02, 0.0),
        78: (0.0, 1e-4, 0.0, 0.02, 0.0),
        79: (0.0, 1e-5, 0.0, 0.02, 0.0),
        91: (0.0, 1e-5, 0.0, 0.02, 0.0),
    },
    "source-145-2010": {
        1: (1e-2, 1e-2, 0.02, 0.02, 0.1),
        22: (1e-2, 1e-2, 0.02, 0.02, 0.1),
        23: (1e-3, 1e-3, 0.02, 0.02, 0.1),
        50: (1e-3, 1e-3, 0.02, 0.02, 0.1),
        51: (1e-4, 1e-4, 0.02, 0.02, 0.1),
        67: (1e-4, 1e-4, 0.02, 0.02, 0.1),
        68: (1e-5, 1e-4, 0.02, 0.02, 0.0),
        71: (1e-5, 1e-4, 0.02, 0.02, 0.0),
        72: (0.0, 1e-4, 0.0, 0.02, 0.0),
        77: (0.0, 1e-4, 0.0, 0.02, 0.0),
        78: (0.0, 1e-5, 0.0, 0.002, 0.0),
        93: (0.0, 1e-5, 0.0, 0.002, 0.0),
    },
    "source-170": {
        1: (0.01, 0.01, 0.02, 0.02, 0.1),
        24: (0.01, 0.01, 0.02, 0.02, 0.1),
        25: (0.0015874, 0.0015874, 0.02, 0.02, 0.1),
        48: (0.0015874, 0.0015874, 0.02, 0.02, 0.1),
        49: (0.00025198, 0.00025198, 0.002, 0.002, 0.1),
        63: (0.00025198, 0.00025198, 0.002, 0.002, 0.1),  # its notes have noise at 60 and none at 68
        64: (0.00025198, 0.00025198, 0.002, 0.002, 0.0),
        68: (0.00025198, 0.00025198, 0.002, 0.002, 0.0),
        72: (0.00025198, 0.00025198, 0.002, 0.002, 0.0),
        73: (4e-5, 4e-5, 0.002, 0.002, 0.0),
        78: (0.0, 4e-5, 0.0, 0.002, 0.0),
        95: (0.0, 4e-5, 0.0, 0.002, 0.0),
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


def test_the_runs_of_2012_share_crops_in_a_fixed_order_as_their_source_did():
    runs = {"krizhevsky", "source-145-2010", "source-170"}
    shared = {name: build_recipe(name).crops_shared_by for name in RECIPES}
    assert {name for name, count in shared.items() if count == 32} == runs
    assert set(shared.values()) == {1, 32}
    assert {name for name in RECIPES if build_recipe(name).order == "fixed"} == {*runs, "caffe"}
    with pytest.raises(ConfigurationError, match="crops_shared_by must be at least 1, got 0"):
        replace(build_recipe("digits"), crops_shared_by=0)


def test_the_papers_schedule_divides_by_ten_where_validation_stalls():
    recipe = build_recipe("paper")
    assert (recipe.epochs, recipe.batch_size, recipe.momentum, recipe.weight_decay) == (90, 128, 0.9, 0.0005)
    errors = [60.0, 50.0, *[51.0] * 5, 45.0, *[46.0] * 5, 44.0, *[45.0] * 5, 43.0, *[44.0] * 10]
    expected = [1e-2] * 7 + [1e-3] * 6 + [1e-4] * 6 + [1e-5] * 12  # by the epochs that are finished
    optimizer = KrizhevskySGD(AlexNet("paper", 10, seed=0, width=1 / 16), recipe)
    for finished, rate in enumerate(expected):
        assert recipe.plateau is not None
        optimizer.set_epoch(finished + 1, plateau_divisions(errors[:finished], recipe.plateau))
        found = {group["name"]: group["lr"] for group in optimizer.param_groups}
        assert found == pytest.approx(dict.fromkeys(found, rate)), finished  # biases learn at the weights' rate
        assert recipe.color_noise_at(finished + 1) == 0.1
    assert len(errors) >= len(expected) - 1


def test_caffes_schedule_goes_by_iterations():
    recipe, per_epoch = build_recipe("caffe"), 1_281_167 / 256
    assert recipe.epochs == round(450_000 / per_epoch)
    for parameter in ("weights", "biases"):
        rates = [recipe.lr * recipe.lr_scale_at(epoch, "fc8", parameter) for epoch in range(1, recipe.epochs + 1)]
        in_the_middle = [0.01 * 0.1 ** ((epoch + 0.5) * per_epoch // 100_000) for epoch in range(recipe.epochs)]
        assert rates == pytest.approx(in_the_middle, rel=1e-12)
    assert (recipe.batch_size, recipe.momentum, recipe.weight_decay) == (256, 0.9, 5e-4)
    assert (recipe.bias_lr_multiplier, recipe.decay_biases, recipe.rescale_velocity) == (2.0, False, False)
    assert (recipe.color_noise, recipe.crops, recipe.flip, recipe.crops_shared_by) == (0.0, True, True, 1)


def test_torchvisions_recipe_makes_pytorchs_updates():
    """SGD and StepLR of PyTorch with the options of torchvision's reference script, over all 90 epochs."""
    recipe = build_recipe("owt")
    ours, theirs = (nn.ModuleDict({"fc8": nn.Linear(4, 3)}).double() for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    reference = torch.optim.SGD(theirs.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    steps = torch.optim.lr_scheduler.StepLR(reference, step_size=30, gamma=0.1)
    optimizer = KrizhevskySGD(ours, recipe)
    for epoch in range(1, 91):
        optimizer.set_epoch(epoch)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(steps.get_last_lr()[0], rel=1e-12)
        for _ in range(2):
            optimizer.set_warmup(1.0)
            for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
                a.grad = b.grad = torch.randn(a.shape, dtype=torch.float64)
            optimizer.step()
            reference.step()
        steps.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-14)
    assert (recipe.epochs, recipe.batch_size, recipe.order) == (90, 256, "shuffled")
    assert (recipe.color_noise, recipe.resized_crops, recipe.channel_means) == (0.0, True, True)


def test_what_the_recipes_augment():
    """A mirrored 2 is not a 2, and the four-layer network of figure 1 trained on plain images."""
    plain = {name for name in RECIPES if not build_recipe(name).flip}
    assert plain == {"digits", "four-layer"}
    assert {name for name in RECIPES if not build_recipe(name).crops} == {"four-layer"}


def test_the_run_of_2012_has_two_names():
    assert build_recipe("source-145") == build_recipe("krizhevsky")


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_complete(name):
    recipe = build_recipe(name)
    assert recipe.name == name
    assert all(1 < change.from_epoch <= recipe.epochs for change in recipe.changes)
    assert list(recipe.changes) == sorted(recipe.changes, key=lambda change: change.from_epoch)


def test_unknown_recipe():
    with pytest.raises(
        ConfigurationError, match="unknown recipe 'adam'; choose one of krizhevsky, source-145-2010, source-170, paper"
    ):
        build_recipe("adam")


@pytest.mark.parametrize(
    ("name", "began", "epochs", "expected"),
    [
        ("small", 1, 60, ["epoch=44:lr=0.0002", "epoch=57:lr=2e-05"]),
        ("small", 1, 2, []),  # a new run would be too short for drops, too
        ("small", 22, 60, []),  # has had its drops
        ("small", 60, 70, []),  # has them ahead
        ("krizhevsky", 1, 91, ["epoch=25:weight.lr=0.001", "epoch=51:weight.lr=0.0001", "epoch=79:weight.lr=1e-05"]),
        ("paper", 1, 90, []),  # drops by itself
        ("four-layer", 1, 80, []),  # never drops
    ],
)
def test_drops_that_a_longer_run_lacks(name, began, epochs, expected):
    images = 80 * build_recipe(name).batch_size
    recipe = replace(build_recipe(name), least_steps_per_rate=150).for_data(images, began)
    finished = min(began, 22)
    longer = replace(recipe, epochs=epochs)
    assert drops_to_add(longer, images, finished) == expected
    assert drops_to_add(replace(longer, name="mine"), images, finished) == []
    if expected:  # in proportion to the run's own rate, and none once they are added
        halved = replace(longer, lr=longer.lr / 2)
        assert float(drops_to_add(halved, images, 30)[-1].split("=")[-1]) == pytest.approx(
            float(expected[-1].split("=")[-1]) / 2
        )
        assert drops_to_add(edited(longer, expected, layers=(), finished=finished), images, finished) == []

"""Edits of a schedule: parsed, refused, and applied in order."""

from dataclasses import replace

import pytest

from fastalex.errors import ConfigurationError
from fastalex.recipes.edits import Edit, edited, overridden
from fastalex.recipes.published import build_recipe

RECIPE = build_recipe("krizhevsky")
LAYERS = ("conv1", "conv2", "fc8")


def rates(recipe, epoch: int) -> dict[str, float]:
    """Learning rates by parameter."""
    return {
        f"{layer}.{kind}": recipe.lr * factor * recipe.lr_scale_at(epoch, layer, parameter)
        for layer in LAYERS
        for kind, parameter, factor in (("weight", "weights", 1), ("bias", "biases", recipe.bias_lr_multiplier))
    }


@pytest.mark.parametrize(
    ("text", "changed"),
    [
        ("epoch=30:conv1.lr=1e-5", {"conv1.weight": 1e-5, "conv1.bias": 2e-5}),
        ("epoch=30:conv2.weight.lr=0", {"conv2.weight": 0.0}),
        ("epoch=30:conv2.bias.lr=0.002", {"conv2.bias": 0.002}),
        ("epoch=30:bias.lr=0.004", {"conv1.bias": 0.004, "conv2.bias": 0.004, "fc8.bias": 0.004}),
        ("epoch=30:color_noise=0.05", {}),
    ],
)
def test_an_edit_changes_what_it_names_from_its_epoch_on(text, changed):
    recipe = edited(RECIPE, [text], layers=LAYERS, finished=0)
    assert rates(recipe, 29) == rates(RECIPE, 29)
    assert rates(recipe, 30) == pytest.approx(rates(RECIPE, 30) | changed)
    assert recipe.color_noise_at(30) == (0.05 if "noise" in text else 0.1)
    assert rates(recipe, 80)["fc8.weight"] == pytest.approx(1e-5)  # what the recipe itself brings later still comes


def test_the_last_edit_of_an_epoch_holds():
    recipe = edited(RECIPE, ["epoch=25:lr=5e-3", "epoch=25:conv1.lr=0"], layers=LAYERS, finished=24)
    found = rates(recipe, 25)
    assert (found["conv1.weight"], found["conv2.weight"], found["conv2.bias"]) == pytest.approx((0.0, 5e-3, 1e-2))


def test_edits_take_their_turn_among_the_recipes_own_changes():
    recipe = edited(RECIPE, ["epoch=60:lr=2e-3", "epoch=40:lr=5e-3"], layers=LAYERS, finished=0)
    found = [rates(recipe, epoch)["fc8.weight"] for epoch in (39, 40, 52, 60, 80)]
    assert found == pytest.approx([1e-3, 5e-3, 1e-4, 2e-3, 1e-5])


def test_the_last_epoch_can_be_edited_and_the_current_one():
    last = RECIPE.epochs
    recipe = edited(RECIPE, [f"epoch={last}:lr=5e-3", "epoch=20:color_noise=0"], layers=LAYERS, finished=19)
    assert rates(recipe, last)["fc8.weight"] == pytest.approx(5e-3)
    assert recipe.color_noise_at(20) == 0


def test_a_rate_of_zero_has_no_multiples():
    with pytest.raises(ConfigurationError, match="rates are stored as multiples of the recipe's lr, which is 0"):
        edited(replace(RECIPE, lr=0.0), ["epoch=30:lr=1e-3"], layers=LAYERS, finished=0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("conv1.lr=1e-5", "edit conv1.lr=1e-5 cannot be parsed; write epoch=67:lr=1e-4"),
        ("epoch=30:conv1.momentum=0.5", "cannot be parsed"),
        ("epoch=30:conv1.color_noise=0", "cannot be parsed"),
        ("epoch=x:lr=1", "cannot be parsed"),
        ("epoch=30:lr=fast", "edit epoch=30:lr=fast: learning rate must be a number of at least 0, got 'fast'"),
        ("epoch=30:lr=-1", "got '-1'"),
        ("epoch=30:lr=nan", "got 'nan'"),
        ("epoch=30:lr=1_0", "got '1_0'"),
        ("epoch=30:lr= 1", "got ' 1'"),
        ("epoch=30:lr=1e999", "got '1e999'"),
        ("epoch=30:lr=\u0661", "learning rate must be a number"),
        ("epoch=\u0663\u0660:lr=1", "cannot be parsed"),
        ("epoch=30:color_noise=loud", "colour noise must be a number of at least 0, got 'loud'"),
        ("epoch=30:conv9.lr=1", "no layer 'conv9'; choose from conv1, conv2, fc8"),
        ("epoch=20:lr=1", ": the run has already finished epoch 20; choose an epoch from 21 to 91"),
        ("epoch=0:lr=1", ": epochs count from 1; choose an epoch from 21 to 91"),
        ("epoch=92:lr=1", ": the run has only 91 epochs; choose an epoch from 21 to 91"),
    ],
)
def test_what_cannot_be_set(text, message):
    with pytest.raises(ConfigurationError) as error:
        edited(RECIPE, [text], layers=LAYERS, finished=20)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_the_first_and_the_last_epoch_can_be_edited():
    recipe = edited(RECIPE, ["epoch=1:lr=5e-3", "epoch=91:lr=5e-7"], layers=LAYERS, finished=0)
    assert [rates(recipe, epoch)["fc8.weight"] for epoch in (1, 90, 91)] == pytest.approx([5e-3, 1e-5, 5e-7])
    assert recipe.lr_summary("fc8").startswith("lr 0.005, 0.001 from epoch 25")


def test_options_of_a_resumed_run_are_recorded_as_edits():
    after = replace(RECIPE.with_epochs(100), lr=0.02, weight_decay=0.001)
    assert overridden([], RECIPE, after) == ["epochs=100", "lr=0.02", "weight_decay=0.001"]
    by_noise = [Edit(3, "lr=0.005"), Edit(3, "epoch=3:color_noise=0")]
    assert overridden(by_noise, RECIPE, after) == ["epochs=100", "lr=0.02", "weight_decay=0.001"]


def test_the_rate_of_a_run_with_edited_rates_is_not_changed_as_a_whole():
    edits = [Edit(3, "epoch=3:color_noise=0"), Edit(3, "epoch=9:conv1.lr=1e-5")]
    with pytest.raises(ConfigurationError) as error:
        overridden(edits, RECIPE, replace(RECIPE, lr=0.1))
    assert str(error.value) == (
        "lr=0.1 would also change the rates set by earlier edits (epoch=9:conv1.lr=1e-5); use another edit instead, "
        "such as epoch=67:lr=1e-4"
    )
    assert overridden(edits, RECIPE, replace(RECIPE, momentum=0.8)) == ["momentum=0.8"]

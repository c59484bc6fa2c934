"""Schedules edited by hand: read, refused, and applied in order."""

from dataclasses import replace
from pathlib import Path

import pytest

from fastalex.errors import ConfigurationError
from fastalex.recipes.edits import Edit, edited
from fastalex.recipes.published import build_recipe
from fastalex.training.config import RunConfig
from fastalex.training.options import RecipeOptions, TrainOptions
from fastalex.training.resolve import resolve
from tests.fastalex.training.test_trainer import run_here, stop_after

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
    recipe = edited(RECIPE, [text], layers=LAYERS, epoch=0)
    assert rates(recipe, 29) == rates(RECIPE, 29)
    assert rates(recipe, 30) == pytest.approx(rates(RECIPE, 30) | changed)
    assert recipe.color_noise_at(30) == (0.05 if "noise" in text else 0.1)
    assert rates(recipe, 80)["fc8.weight"] == pytest.approx(1e-5)  # what the recipe itself brings later still comes


def test_the_last_edit_of_an_epoch_holds():
    recipe = edited(RECIPE, ["epoch=25:lr=5e-3", "epoch=25:conv1.lr=0"], layers=LAYERS, epoch=25)
    found = rates(recipe, 25)
    assert (found["conv1.weight"], found["conv2.weight"], found["conv2.bias"]) == pytest.approx((0.0, 5e-3, 1e-2))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("conv1.lr=1e-5", "--set conv1.lr=1e-5 cannot be read; write epoch=67:lr=1e-4"),
        ("epoch=30:conv1.momentum=0.5", "cannot be read"),
        ("epoch=30:conv1.color_noise=0", "cannot be read"),
        ("epoch=x:lr=1", "cannot be read"),
        ("epoch=30:lr=fast", "'fast' is no rate"),
        ("epoch=30:lr=-1", "'-1' is no rate"),
        ("epoch=30:lr=nan", "'nan' is no rate"),
        ("epoch=30:lr=1_0", "'1_0' is no rate"),
        ("epoch=30:lr= 1", "' 1' is no rate"),
        ("epoch=30:lr=1e999", "'1e999' is no rate"),
        ("epoch=30:lr=\u0661", "is no rate"),
        ("epoch=\u0663\u0660:lr=1", "cannot be read"),
        ("epoch=30:color_noise=loud", "'loud' is no colour noise; a number from 0 up is wanted"),
        ("epoch=30:conv9.lr=1", "no layer 'conv9'; it has conv1, conv2, fc8"),
        (
            "epoch=19:lr=1",
            "epoch 19 is not ahead of the run, which has finished 20 of 91 epochs; name one from 20 to 90",
        ),
        ("epoch=91:lr=1", "epoch 91 is not ahead"),
    ],
)
def test_what_cannot_be_set(text, message):
    with pytest.raises(ConfigurationError) as error:
        edited(RECIPE, [text], layers=LAYERS, epoch=20)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_stopped_run_is_edited_goes_on_and_remembers(config):
    stop_after(config, 3)
    resumed = TrainOptions(resume=Path(config.output), training=RecipeOptions(edits=("epoch=1:conv1.lr=1e-5",)))
    again = resolve(resumed)
    lines = run_here(again)
    assert [line["learning_rate"] for line in lines if line["kind"] == "train"] == pytest.approx(
        [2e-3] * 4 + [1e-5] * 4
    )
    kept = RunConfig.load(Path(config.output))
    assert kept.edits == (Edit(3, "epoch=1:conv1.lr=1e-5"),)
    assert kept.recipe.lr_scale_at(1, "conv2", "weights") == 0.1
    before = (Path(config.output) / "config.json").read_bytes()
    with pytest.raises(ConfigurationError, match=r"--lr 0.1 would also change the rates .* \(epoch=1:conv1.lr=1e-5\)"):
        resolve(replace(resumed, training=RecipeOptions(epochs=3, lr=0.1)))
    assert (Path(config.output) / "config.json").read_bytes() == before
    longer = replace(resumed, training=RecipeOptions(epochs=3, lr=0.002, wd=0.001, edits=("epoch=2:lr=1e-6",)))
    changed = [Edit(8, text) for text in ("epochs=3", "weight_decay=0.001", "epoch=2:lr=1e-6")]
    assert resolve(longer).edits == (*kept.edits, *changed)


def test_another_rate_of_a_resumed_run_is_remembered(config):
    stop_after(config, 3)
    for lr, color_noise in ((0.004, None), (0.001, 0.05)):
        training = RecipeOptions(lr=lr, color_noise=color_noise)
        resolve(TrainOptions(resume=Path(config.output), training=training))
    kept = RunConfig.load(Path(config.output))
    assert [(edit.step, edit.text) for edit in kept.edits] == [
        (3, "lr=0.004"),
        (3, "lr=0.001"),
        (3, "color_noise=0.05"),
    ]
    assert kept.recipe.lr == 0.001


def test_a_malformed_edit_changes_nothing(config):
    stop_after(config, 3)
    path = Path(config.output) / "config.json"
    before = path.read_bytes()
    with pytest.raises(ConfigurationError, match="--set epoch=1:conv1=2 cannot be read"):
        resolve(TrainOptions(resume=Path(config.output), training=RecipeOptions(edits=("epoch=1:conv1=2",))))
    assert path.read_bytes() == before

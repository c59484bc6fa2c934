"""Runs whose schedule is edited by hand when they are resumed."""

from dataclasses import replace
from pathlib import Path

import pytest

from fastalex.errors import ConfigurationError
from fastalex.options.training import RecipeOptions, TrainOptions
from fastalex.recipes.edits import Edit
from fastalex.training.config import RunConfig
from fastalex.training.resolve import resolve
from tests.fastalex.training.test_trainer import run_here, stop_after


def test_a_stopped_run_is_edited_goes_on_and_remembers(config):
    stop_after(config, 3)
    resumed = TrainOptions(resume=Path(config.output), training=RecipeOptions(edits=("epoch=2:conv1.lr=1e-5",)))
    again = resolve(resumed)
    lines = run_here(again)
    assert [line["learning_rate"] for line in lines if line["kind"] == "train"] == pytest.approx(
        [2e-3] * 4 + [1e-5] * 4
    )
    kept = RunConfig.load(Path(config.output))
    assert kept.edits == (Edit(3, "epoch=2:conv1.lr=1e-5"),)
    assert kept.recipe.lr_scale_at(2, "conv2", "weights") == 0.1
    before = (Path(config.output) / "config.json").read_bytes()
    with pytest.raises(ConfigurationError, match=r"lr=0.1 would also change the rates .* \(epoch=2:conv1.lr=1e-5\)"):
        resolve(replace(resumed, training=RecipeOptions(epochs=3, lr=0.1)))
    assert (Path(config.output) / "config.json").read_bytes() == before
    with pytest.raises(ConfigurationError, match="the run has already finished epoch 1; choose an epoch from 3 to 3"):
        resolve(replace(resumed, training=RecipeOptions(epochs=3, edits=("epoch=1:lr=1e-6",))))
    longer = replace(resumed, training=RecipeOptions(epochs=3, lr=0.002, wd=0.001, edits=("epoch=3:lr=1e-6",)))
    changed = [Edit(8, text) for text in ("epochs=3", "weight_decay=0.001", "epoch=3:lr=1e-6")]
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
    with pytest.raises(ConfigurationError, match="epoch=2:conv1=2 cannot be parsed"):
        resolve(TrainOptions(resume=Path(config.output), training=RecipeOptions(edits=("epoch=2:conv1=2",))))
    assert path.read_bytes() == before

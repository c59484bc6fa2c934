"""Recipes over the epochs: changes, other lengths, warm-up, plateaus, and values that are refused."""

from dataclasses import replace

import pytest

from fastalex.errors import ConfigurationError
from fastalex.recipes.published import RECIPES, build_recipe
from fastalex.recipes.schedule import Change, Plateau, Recipe, plateau_divisions

LAYERS = ("conv1", "conv2", "conv5", "fc6", "fc8")


def test_other_lengths_keep_the_shape():
    short = build_recipe("krizhevsky").with_epochs(182)
    assert short.epochs == 182
    assert [change.from_epoch for change in short.changes] == [49, 101, 133, 143, 157, 157]


def test_changes_move_to_the_nearest_epoch():
    recipe = Recipe("test", epochs=10, batch_size=1, lr=0.1, changes=tuple(map(Change, (4, 6, 10))))
    # After 1.8, 3 and 5.4 epochs.
    assert [change.from_epoch for change in recipe.with_epochs(6).changes] == [3, 4, 6]


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("epochs", [1, 2, 3, 7])
def test_short_runs_start_as_the_recipe_does(name, epochs):
    recipe, short = build_recipe(name), build_recipe(name).with_epochs(epochs)
    for layer in LAYERS:
        assert short.lr_scale_at(1, layer, "weights") == recipe.lr_scale_at(1, layer, "weights")
    if epochs > 1:  # and every change happens, however late
        assert short.lr_scale_at(epochs, "conv2", "weights") == recipe.lr_scale_at(10**6, "conv2", "weights")


@pytest.mark.parametrize(
    ("images", "epochs", "length", "drops", "summary"),
    [
        (50_000, None, 14, [11, 14], "lr 0.002, 0.0002 from epoch 11, 2e-05 from epoch 14"),
        (50_000, 4, 4, [4], "lr 0.002, 0.0002 from epoch 4, a drop left out because the run is so short"),
        (300, None, 145, [105, 136], "lr 0.002, 0.0002 from epoch 105, 2e-05 from epoch 136"),
        (300, 20, 20, [15], "lr 0.002, 0.0002 from epoch 15, a drop left out because the run is so short"),
        (300, 4, 4, [], "lr 0.002, 2 drops left out because the run is so short"),
        (300, 1, 1, [], "lr 0.002, 2 drops left out because the run is so short"),
        (10, None, 1300, [930, 1208], "lr 0.002, 0.0002 from epoch 930, 2e-05 from epoch 1208"),
    ],
)
def test_small_data_get_more_epochs_and_short_runs_fewer_drops(images, epochs, length, drops, summary):
    recipe = build_recipe("small").for_data(images, epochs)
    assert (recipe.epochs, [change.from_epoch for change in recipe.changes]) == (length, drops)
    assert recipe.lr_summary("fc8") == summary


@pytest.mark.parametrize("name", [name for name in RECIPES if name not in ("small", "digits")])
def test_other_recipes_are_the_same_for_any_data(name):
    recipe = build_recipe(name)
    assert recipe.for_data(300) == recipe.for_data(10**6) == recipe
    assert recipe.for_data(300, 4) == recipe.with_epochs(4)


@pytest.mark.parametrize(
    ("name", "steps", "noted"),
    [("krizhevsky", 99, True), ("krizhevsky", 100, False), ("paper", 9, True), ("small", 9, False), ("owt", 9, False)],
)
def test_a_note_where_old_velocities_outlast_much_of_an_epoch(name, steps, noted):
    note = build_recipe(name).coasting_note(steps)
    assert (note is not None) == noted
    if note:
        assert f"only {steps} steps, " in note
        assert "some 20 steps" in note
    assert build_recipe("four-layer").coasting_note(1) is None  # its rates never change


def test_resized_crops_are_random_crops():
    with pytest.raises(
        ConfigurationError, match="resized crops are random crops: switch both on, or resized crops off"
    ):
        replace(build_recipe("owt"), crops=False)


def test_plateau_divides_three_times_and_no_more():
    plateau = Plateau(patience=2, times=3)
    assert plateau_divisions([50, 40, 30], plateau) == 0
    assert plateau_divisions([50, 40, 41], plateau) == 0
    assert plateau_divisions([50, 40, 41, 42], plateau) == 1
    assert plateau_divisions([50, 40, 41, 42, 39, 40], plateau) == 1
    assert plateau_divisions([50, *[60] * 20], plateau) == 3


@pytest.mark.parametrize("stalled", [50, 60])
def test_a_stall_is_counted_anew_after_each_division(stalled):
    plateau = Plateau(patience=3, times=9)
    divisions = [plateau_divisions([50, *[stalled] * epochs], plateau) for epochs in range(8)]
    assert divisions == [0, 0, 0, 1, 1, 1, 2, 2]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"lr": -0.1}, "lr must be at least 0, got -0.1"),
        ({"lr": float("nan")}, "lr must be at least 0, got nan"),
        ({"momentum": 1.0}, "momentum must be less than 1, got 1.0"),
        ({"momentum": -0.1}, "momentum must be at least 0, got -0.1"),
        ({"weight_decay": -0.1}, "weight_decay must be at least 0, got -0.1"),
        ({"color_noise": -0.1}, "color_noise must be at least 0, got -0.1"),
        ({"warmup_epochs": -1}, "warmup_epochs must be at least 0, got -1"),
    ],
)
def test_bad_values_are_named(values, message):
    with pytest.raises(ConfigurationError, match=message):
        Recipe(**{"name": "test", "epochs": 1, "batch_size": 1, "lr": 0.1, **values})


def test_a_larger_batch_scales_the_rate_and_warms_up_from_the_old_one():
    recipe = replace(build_recipe("krizhevsky"), warmup_epochs=5).with_scaled_lr(1024)
    assert (recipe.batch_size, recipe.lr) == (1024, pytest.approx(0.08))
    assert [recipe.lr * recipe.warmup_at(epoch) for epoch in (0, 2.5, 5, 50)] == pytest.approx(
        [0.01, 0.045, 0.08, 0.08]
    )
    assert recipe.warmup_at(4.9) < 1
    assert build_recipe("krizhevsky").warmup_at(0) == 1
    smaller = replace(recipe, warmup_epochs=5).with_scaled_lr(512)
    assert [smaller.lr * smaller.warmup_at(epoch) for epoch in (0, 2.5, 5)] == pytest.approx([0.04] * 3)
    with pytest.raises(ConfigurationError, match="lars must be a positive trust coefficient"):
        replace(recipe, lars=0)


@pytest.mark.parametrize(
    ("recipe", "epochs", "expected"),
    [
        ("krizhevsky", 91, "lr 0.01, 0.001 from epoch 25, 0.0001 from epoch 51, 1e-05 from epoch 79"),
        ("small", 14, "lr 0.002, 0.0002 from epoch 11, 2e-05 from epoch 14"),
        ("small", 2, "lr 0.002, 2e-05 from epoch 2"),  # both changes in one
        ("four-layer", 40, "lr 0.001"),
        ("paper", 90, "lr 0.01, times 0.1 after 5 epochs without a better top-1 error, at most 3 times"),
    ],
)
def test_the_learning_rate_in_words(recipe, epochs, expected):
    assert build_recipe(recipe).with_epochs(epochs).lr_summary("fc8") == expected


@pytest.mark.parametrize("name", ["lr", "momentum", "weight_decay", "color_noise", "warmup_epochs"])
def test_zero_is_accepted_and_less_is_not(name):
    values = {"name": "test", "epochs": 1, "batch_size": 1, "lr": 0.1}
    Recipe(**{**values, name: 0}, lars=1e-3)
    with pytest.raises(ConfigurationError, match=f"{name} must be at least 0, got -0.5"):
        Recipe(**{**values, name: -0.5})


def test_a_smaller_batch_starts_at_its_own_rate():
    recipe = replace(build_recipe("krizhevsky"), warmup_epochs=5).with_scaled_lr(64)
    assert (recipe.lr, recipe.warmup_at(0)) == (pytest.approx(0.005), 1)


def test_an_equal_error_is_no_progress():
    assert plateau_divisions([50, 50, 50], Plateau(patience=2)) == 1


def test_a_change_after_the_end_is_not_in_the_summary():
    assert Recipe("test", 2, 1, 0.1, changes=(Change(3, 0.5),)).lr_summary("fc8") == "lr 0.1"

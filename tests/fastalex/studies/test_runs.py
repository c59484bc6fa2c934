"""The runs of a study: every variant can be trained, and runs resume, finish and diverge."""

import json
import math
import shutil
from dataclasses import replace

import pytest
import torch

from fastalex.errors import ConfigurationError
from fastalex.options.training import NetworkOptions, TrainOptions
from fastalex.recipes.published import SMALL_LEAST_STEPS
from fastalex.studies import runs as study_runs
from fastalex.studies.claims import STUDIES, TRAINING_ERROR_GOAL, find_study
from fastalex.studies.comparison import Difference, Figure, compare, remarks
from fastalex.studies.options import option_of
from fastalex.studies.runs import RunResult, is_finished, plan_runs, read_result, run_to_completion
from tests.fastalex.studies.conftest import finish, given, line, options


@pytest.mark.parametrize("name", STUDIES)
def test_every_variant_of_every_study_can_be_trained(name, prepared, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the small images of the activation study are prepared here
    chosen = find_study(name)
    shared = options(prepared, recipe=None if name == "activation" else "small", batch_size=2)
    runs = plan_runs(chosen, shared, seeds=2, folder=tmp_path / "study")
    assert len(runs) == 2 * len(chosen.variants)
    assert len({run.folder for run in runs}) == len(runs)
    assert [run.config.seed for run in runs] == [0] * len(chosen.variants) + [1] * len(chosen.variants)
    asked = {json.dumps([str(m.config.network), str(m.config.recipe), m.config.fraction]) for m in runs}
    assert len(asked) == len(chosen.variants)  # variants differ, and both seeds train the same ones
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize(
    ("name", "arch", "expected"),
    [
        (
            "dropout",
            "four-layer",
            "study dropout: 'dropout 0.5' and 'no dropout' are the same run with the architecture four-layer",
        ),
        ("lrn", "owt", "study lrn: 'lrn' and 'no lrn' are the same run with the architecture owt"),
    ],
)
def test_a_network_is_not_compared_with_itself(prepared, tmp_path, monkeypatch, name, arch, expected):
    monkeypatch.chdir(tmp_path)
    asked = replace(options(prepared), network=NetworkOptions(arch=arch, width=0.0625))
    with pytest.raises(ConfigurationError, match=expected):
        plan_runs(find_study(name), asked, seeds=1, folder=tmp_path / "study")


def test_the_base_of_augmentation_has_all_of_it_with_any_recipe(prepared, tmp_path):
    runs = plan_runs(find_study("augmentation"), options(prepared, recipe="digits"), seeds=1, folder=tmp_path)
    recipes = [run.config.recipe for run in runs]
    assert [(recipe.crops, recipe.flip, recipe.color_noise) for recipe in recipes] == [
        (True, True, 0.1),
        (True, True, 0.0),
        (False, False, 0.0),
    ]


def test_the_users_options_go_before_the_studys_and_the_variants_before_both(prepared, tmp_path):
    chosen = find_study("dropout")
    chosen = replace(chosen, network={"init": "scaled", "width": 0.5}, training={"momentum": 0.8, "wd": 0.01})
    asked = options(prepared, wd=0.02)
    asked = replace(asked, training=replace(asked.training, seed=7))
    runs = plan_runs(chosen, asked, seeds=2, folder=tmp_path)
    assert [run.config.seed for run in runs] == [7, 7, 8, 8]
    assert [run.folder.name for run in runs] == ["seed-7", "seed-7", "seed-8", "seed-8"]
    variations = [run.config.network.variation for run in runs[:2]]
    assert [(v.width, v.init) for v in variations] == [(0.0625, "scaled")] * 2
    assert [v.dropout for v in variations] == [0.5, 0.0]
    assert {(run.config.recipe.momentum, run.config.recipe.weight_decay) for run in runs} == {(0.8, 0.02)}


def test_the_result_of_a_run_is_that_of_its_last_epoch(prepared, tmp_path):
    run = plan_runs(find_study("dropout"), options(prepared, epochs=4), seeds=1, folder=tmp_path)[0]
    goal = TRAINING_ERROR_GOAL
    log = [line("train", 0, 80.0), line("val", 0, 10.0)]
    log += [line("train", 1, goal + 8, 24), line("train", 1, goal - 16, 8), line("val", 1, 20.0)]  # a mean just above
    log += [line("train", 2, goal + 8, 8), line("train", 2, goal - 8, 8), line("val", 2, 30.0)]  # and one that is it
    finish(run, log, epoch=3)
    assert not is_finished(run)
    log += [line("train", 3, 1.0), line("val", 3, 40.0)]
    shutil.rmtree(run.folder)
    finish(run, log, epoch=4)
    assert is_finished(run)
    assert read_result(run) == RunResult(0, 40.0, 20.0, 7.0, 3)


def test_differences_are_from_the_base_and_diverged_runs_have_no_errors(prepared, tmp_path):
    chosen = find_study("width")
    runs = plan_runs(chosen, options(prepared, epochs=1), seeds=2, folder=tmp_path)
    for number, run in enumerate(runs):
        finish(run, [line("val", 0, 10.0 + number)], epoch=1)
    (runs[1].folder / "diverged.txt").touch()
    table = compare(chosen, runs)
    count = len(chosen.variants)
    tops = [(10.0 + number, 10.0 + count + number) for number in range(count)]
    assert [row.diverged for row in table] == [0, 1, *[0] * (count - 2)]
    assert [len(row.results) for row in table] == [2, 1, *[2] * (count - 2)]
    spread = count / 2**0.5
    assert table[0].top1 == Figure(sum(tops[0]) / 2, pytest.approx(spread))
    assert table[0].top5 is None  # of three classes
    assert table[0].top1_difference is None
    assert table[1].top1_difference == Difference(tops[1][1] - sum(tops[0]) / 2, None)
    assert (table[2].top1_difference, table[2].top5_difference) == (Difference(2.0, False), None)
    assert table[0].seconds == 7.0
    assert remarks(chosen, runs, table)[0].startswith(
        "Errors after the last epoch on 7 validation images, one centre crop; one image is 14 points;"
    )


def test_a_study_goes_on_where_only_the_way_of_computing_has_changed(prepared, tmp_path):
    chosen = find_study("dropout")
    first, second = plan_runs(chosen, options(prepared), seeds=1, folder=tmp_path)
    finish(first, [line("val", 1, 10.0)], epoch=2)
    for changes in ({"hardware_decoder_load": 0.1}, {"measure_split": True}):
        replace(first.config, **changes).save()
        assert [run.folder for run in plan_runs(chosen, options(prepared), seeds=1, folder=tmp_path)] == [
            first.folder,
            second.folder,
        ]
    replace(first.config, on_bad_sample="skip").save()
    with pytest.raises(ConfigurationError, match="made with --on-bad-sample skip, got stop; give the same"):
        plan_runs(chosen, options(prepared), seeds=1, folder=tmp_path)


@pytest.mark.parametrize(
    ("field", "option"),
    [
        ("network.architecture", "--arch"),
        ("network.variation.bottleneck", "--bottleneck"),
        ("recipe.name", "--recipe"),
        ("recipe.weight_decay", "--wd"),
        ("recipe.crops", "--random-crops"),
        ("edits", "--set"),
        ("mean_image", "mean_image"),
    ],
)
def test_fields_that_options_set_are_called_like_the_options(field, option):
    assert option_of(field) == option


def test_widths_multiply(prepared, tmp_path):
    runs = plan_runs(find_study("width"), options(prepared), seeds=1, folder=tmp_path)
    assert [run.config.network.variation.width for run in runs] == [0.0625, 0.046875, 0.03125, 0.015625]


def test_smaller_sets_make_the_same_number_of_updates(prepared, tmp_path):
    chosen = find_study("dataset-size")
    chosen = replace(chosen, variants=(chosen.variants[0], replace(chosen.variants[1], training={"fraction": 0.5})))
    whole, part = plan_runs(chosen, options(prepared, epochs=4), seeds=1, folder=tmp_path)
    assert (whole.config.fraction, whole.config.recipe.epochs) == (1.0, 4)
    assert (part.config.fraction, part.config.recipe.epochs) == (0.5, 8)  # 2 updates per epoch instead of 4
    whole, part = plan_runs(chosen, options(prepared, epochs=None), seeds=1, folder=tmp_path)
    assert whole.config.recipe.epochs == math.ceil(SMALL_LEAST_STEPS / 4)
    assert part.config.recipe.epochs == 2 * whole.config.recipe.epochs
    whole, part = plan_runs(chosen, options(prepared, recipe="paper", warmup_epochs=0.5), seeds=1, folder=tmp_path)
    assert [run.config.recipe.warmup_epochs for run in (whole, part)] == [0.5, 1.0]
    assert [run.config.recipe.plateau.patience for run in (whole, part)] == [5, 10]


def test_restarts_are_passed_on(prepared, tmp_path, monkeypatch):
    run = plan_runs(find_study("dropout"), options(prepared), seeds=1, folder=tmp_path)[0]
    called = []
    monkeypatch.setattr(study_runs, "run_workers", lambda *arguments: called.append(arguments[1:]))
    run_to_completion(run, restarts=2)
    assert called == [(run.config, (torch.device("cpu"),), 2)]


def test_a_log_without_its_end_is_named(straight, prepared):
    asked = given("dropout", prepared, straight)
    trained = TrainOptions(prepared, asked.network, asked.training, asked.parallel)
    run = plan_runs(find_study("dropout"), trained, seeds=1, folder=straight)[0]
    log = run.folder / "metrics.jsonl"
    whole = log.read_text()
    try:
        log.write_text("".join(line for line in whole.splitlines(keepends=True) if '"epoch": 4' not in line))
        with pytest.raises(ConfigurationError, match=r"ends before the errors of epoch 4, .*; restore the file, or"):
            read_result(run)
    finally:
        log.write_text(whole)


def test_a_run_that_diverges_is_a_result(prepared, tmp_path):
    chosen = find_study("dropout")
    runs = plan_runs(chosen, options(prepared, lr=1e6, epochs=3), seeds=1, folder=tmp_path)
    for run in runs:
        run_to_completion(run)
        assert is_finished(run)
    table = compare(chosen, runs)
    assert [row.diverged for row in table] == [1, 1]
    assert table[1].top1 is None
    assert table[1].top1_difference is None

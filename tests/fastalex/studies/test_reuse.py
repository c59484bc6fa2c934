"""Studies whose bases are the same run train it once."""

import json
from dataclasses import replace

import pytest

from fastalex.studies.claims import find_study
from fastalex.studies.reuse import copy_run, find_same_run
from fastalex.studies.runs import plan_runs
from fastalex.studies.session import run_study
from fastalex.training.checkpoint import latest_checkpoint
from fastalex.training.config import RunConfig
from tests.fastalex.studies.conftest import finish, given, line

LOG = [line("train", 1, 50.0, 32), line("val", 4, 50.0)]


def base_of(name, prepared, folder, **more):
    """The first run of a study: its base with the first seed."""
    options = given(name, prepared, folder, **more)
    return plan_runs(find_study(name), options.shared, 1, folder)[0]


@pytest.fixture
def finished(prepared, tmp_path):
    """The finished base of the study of dropout, whose other run is missing."""
    run = base_of("dropout", prepared, tmp_path / "a-dropout")
    finish(run, LOG, epoch=4)
    (tmp_path / "a-dropout" / "study.json").write_text('{"study": "dropout"}')
    return run


def test_the_base_of_another_study_is_found_although_it_names_the_default(finished, prepared, tmp_path):
    other = base_of("width", prepared, tmp_path / "a-width")
    assert other.config.network.variation.dropout is None
    assert finished.config.network.variation.dropout == 0.5
    assert find_same_run(other, tmp_path / "a-width") == finished.folder


@pytest.mark.parametrize("change", [{"seed": 1}, {"lr": 0.5}, {"batch_size": 4}, {"width": 0.125}, {"epochs": 3}])
def test_other_runs_are_not_taken_for_it(finished, prepared, tmp_path, change):
    options = given("width", prepared, tmp_path / "a-width")
    group = "network" if "width" in change else "training"
    options = replace(options, **{group: replace(getattr(options, group), **change)})
    run = plan_runs(find_study("width"), options.shared, 1, tmp_path / "a-width")[0]
    if "seed" in change:  # found by its folder's name otherwise
        run = replace(run, config=replace(run.config, output=str(run.folder.with_name("seed-0"))))
    assert find_same_run(run, tmp_path / "a-width") is None


def test_unfinished_diverged_and_damaged_runs_are_not_taken(finished, prepared, tmp_path):
    run = base_of("width", prepared, tmp_path / "a-width")
    (finished.folder / "diverged.txt").write_text("nan\n")
    assert find_same_run(run, tmp_path / "a-width") is None
    (finished.folder / "diverged.txt").unlink()
    config = finished.folder / "config.json"
    text = config.read_text()
    config.write_text(text[:99])
    assert find_same_run(run, tmp_path / "a-width") is None
    config.write_text(text)
    latest_checkpoint(finished.folder).rename(finished.folder / "elsewhere")
    assert find_same_run(run, tmp_path / "a-width") is None


def test_a_copy_is_whole_and_does_not_share_what_changes(finished, tmp_path):
    destination = tmp_path / "b" / "seed-0"
    (destination.parent / "seed-0.unfinished").mkdir(parents=True)
    (destination.parent / "seed-0.unfinished" / "rest").write_text("of an interrupted copy")
    copy_run(finished.folder, destination)
    assert replace(RunConfig.load(destination), output="") == replace(finished.config, output="")
    assert sorted(path.name for path in destination.parent.iterdir()) == ["seed-0"]
    assert not (destination / "rest").exists()
    with (destination / "metrics.jsonl").open("a") as log:
        log.write("more\n")
    assert "more" not in (finished.folder / "metrics.jsonl").read_text()


def test_a_study_copies_the_base_of_another_one(finished, prepared, tmp_path, monkeypatch, capsys):
    trained = []

    def train(run, restarts=0):
        trained.append(run.variant.name)
        finish(run, LOG, epoch=4)

    monkeypatch.setattr("fastalex.studies.session.run_to_completion", train)
    run_study(given("width", prepared, tmp_path / "a-width", seeds=1))
    assert trained == ["width x 0.75", "width x 0.5", "width x 0.25"]
    assert "width x 1, seed-0, the same run as a-dropout/dropout-0.5/seed-0: top-1 error" in capsys.readouterr().out
    rows = json.loads((tmp_path / "a-width" / "study.json").read_text())["rows"]
    assert rows[0]["top1_error"]["mean"] == 50.0

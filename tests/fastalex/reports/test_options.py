"""The command: the page it writes, and what it refuses."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import dataloading
from fastalex.errors import ConfigurationError
from fastalex.reports.options import ReportOptions, resolve, write_report
from fastalex.training.config import RunConfig
from tests.fastalex.commands import command, command_here, refused
from tests.fastalex.conftest import save_run, write_images
from tests.fastalex.reports.conftest import HERE, reportable


def test_the_command_writes_a_page_and_keeps_an_existing_one(run, tmp_path):
    """In a process of its own, as a user types it."""
    code, out, err = command(tmp_path, "fastalex.report", "run", "--device", "cpu", "-o", "page.html")
    assert code == 0, err
    assert "Traceback" not in err
    content = (tmp_path / "page.html").read_text()
    assert content.startswith("<!DOCTYPE html>")
    assert content.rstrip().endswith("</html>")
    assert "top-1 error" in out
    assert "page.html" in out
    before = (tmp_path / "page.html").read_bytes()
    message = refused(tmp_path, "fastalex.report", "run", "--device", "cpu", "-o", "page.html")
    assert message == "error: page.html exists already; choose another file, or add --force"
    assert (tmp_path / "page.html").read_bytes() == before
    (tmp_path / "page.html").write_text("old")
    code, _, err = command_here(
        tmp_path, "fastalex.report", "run", "--device", "cpu", "-o", "page.html", "--force", "--neighbours", "0"
    )
    assert code == 0, err
    assert (tmp_path / "page.html").read_text().startswith("<!DOCTYPE html>")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["page.html", "run"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name at least one run folder"),
        (["run", "run/"], "run is named twice; name each run once"),
        (["run", "--neighbours", "-1"], "--neighbours must be 0 or more, got -1"),
        (["run", "--batch-size", "0"], "--batch-size must be at least 1, got 0"),
        (["run", "--device", "cpu,cpu"], "--device must be a single device, got cpu,cpu"),
        (["run", "-o", "page.pdf"], "page.pdf must end with .html or .htm, got '.pdf'"),
        (["run", "-o", "no/page.html"], "no/page.html: the folder no does not exist; create it first"),
        (["gone"], "no such run folder or weights file: gone"),
        (["run/best.safetensors"], "run/best.safetensors is a file, but the curves are in the run folder"),
        (["run", "--split", "test"], "has no images in split 'test'; choose from train, val"),
        (["run", "--training-data", "run"], "--training-data run: all networks hold the mean of their training images"),
        (["run", "gone"], "no such folder: gone"),
    ],
)
def test_bad_input_is_one_line(run, tmp_path, arguments, message):
    assert message in refused(tmp_path, "fastalex.report", *arguments)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_runs_that_lack_something_are_named(run, tmp_path):
    def message(*paths: Path) -> str:
        with pytest.raises(ConfigurationError) as raised:
            resolve(ReportOptions(paths, output=tmp_path / "page.html", device="cpu"))
        assert "\n" not in str(raised.value)
        return str(raised.value)

    metrics = run / "metrics.jsonl"
    text = metrics.read_text()
    metrics.write_text(text.replace('"epoch": 2', '"epoch": "two"', 1))
    assert f"{metrics} is damaged in line 6: " in message(run)
    metrics.write_text("")
    assert f"{metrics} is empty, so there are no curves to draw" in message(run)
    metrics.unlink()
    assert f"{metrics} is missing, so there are no curves to draw" in message(run)
    metrics.write_text(text)
    (run / "best.safetensors").unlink()
    assert f"{run} has no best.safetensors yet" in message(run)
    (run / "last.safetensors").unlink()
    assert "it has not saved a checkpoint" in message(run)
    assert "is not a run folder: it has no config.json" in message(tmp_path)
    assert message(tmp_path, run).endswith(f" -m fastalex.report {run} {tmp_path}")


def test_runs_of_other_classes_or_data_are_refused(run, odd_runs, prepared, class_folders, tmp_path):
    def message(*paths: Path) -> str:
        with pytest.raises(ConfigurationError) as raised:
            resolve(ReportOptions(paths, output=tmp_path / "page.html", device="cpu"))
        return str(raised.value)

    assert f"{odd_runs[0]} has other classes than {run} (only {odd_runs[0]} has '<')" in message(run, odd_runs[0])
    dataloading.prepare_dataset(
        write_images(tmp_path / "images", train=2, val=1), tmp_path / "other", progress=False, workers=0
    )
    other = reportable(tmp_path / "second", tmp_path / "other")
    assert f"{other} was trained on other data than {run}" in message(run, other)
    old = reportable(tmp_path / "third", tmp_path / "other", with_record=False)
    assert f"{old} was trained on other data than {run}" in message(run, old)
    # The same data in another place are the same data.
    shutil.copytree(prepared, tmp_path / "copy")
    moved = reportable(tmp_path / "fourth", tmp_path / "copy")
    job = resolve(ReportOptions((run, moved), output=tmp_path / "page.html", device="cpu"))
    assert [reported.name for reported in job.runs] == ["run", "fourth"]
    assert {reported.evaluation.data for reported in job.runs} == {str(prepared)}
    # Data of other classes, and data without a validation set.
    animals = write_images(tmp_path / "animals", train=1, val=1, classes=("cat", "dog"))
    assert "has 2 classes that are not the network's 3" in message(run, animals)
    dataloading.prepare_dataset(
        class_folders / "train", tmp_path / "training", progress=False, workers=0, validation_every=0
    )
    assert "has no images in split 'val'; choose from train" in message(run, tmp_path / "training")


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        (float("nan"), "some of their weights are infinite or NaN"),
        (1e20, "predicts probabilities that are infinite or NaN: its training has diverged"),
    ],
)
def test_diverged_networks_are_refused(run, prepared, tmp_path, scale, message):
    diverged = save_run(tmp_path / "diverged", prepared, scale=scale, with_record=True)
    shutil.copy(run / "metrics.jsonl", diverged)
    job = resolve(ReportOptions((diverged,), output=tmp_path / "page.html", device="cpu"))
    with pytest.raises(ConfigurationError, match=message):
        write_report(HERE, job)
    assert not os.path.lexists(tmp_path / "page.html")


def test_synthetic_images_are_refused(run, tmp_path):
    replace(RunConfig.load(run), data="synthetic").save()
    with pytest.raises(ConfigurationError, match="are synthetic: there is nothing to show"):
        resolve(ReportOptions((run,), output=tmp_path / "page.html", device="cpu"))


def test_neighbours_come_from_the_images_that_the_run_was_trained_on(prepared, tmp_path, monkeypatch, capsys):
    """Not from those that it is evaluated on, here class folders that are prepared first."""
    monkeypatch.chdir(tmp_path)
    run = reportable(tmp_path / "run", prepared)
    replace(RunConfig.load(run), fraction=0.25).save()
    other = write_images(tmp_path / "other", train=1, val=2)
    page = tmp_path / "page.html"
    options = ReportOptions((run, other), output=page, device="cpu", batch_size=8, force=True)
    write_report(HERE, resolve(options))
    assert "other, val: 6 images" in capsys.readouterr().out
    seen = dataloading.Dataset(prepared).subset("train", 0.25, seed=0)
    assert f"All {seen.count('train')} training images of {seen.name} were searched." in page.read_text()
    # Without them, those of the other images are there.
    replace(RunConfig.load(run), data=str(tmp_path / "gone")).save()
    write_report(HERE, resolve(options))
    assert "All 3 training images of other were searched." in page.read_text()

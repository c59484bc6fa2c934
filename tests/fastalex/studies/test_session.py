"""The study command: what it writes, how it resumes, and what it refuses."""

import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from fastalex.errors import ConfigurationError
from fastalex.studies.claims import find_study
from fastalex.studies.runs import plan_runs
from fastalex.studies.session import run_study
from fastalex.training.config import RunConfig
from fastalex.training.metrics_log import read_metrics
from tests.dataloading.owning import another_owner
from tests.fastalex.commands import command_here, refused, start, wait_for_steps
from tests.fastalex.studies.conftest import finish, given, line, study_of
from tests.fastalex.training.test_trainer import assert_same_state, curve


def test_a_study_writes_its_figures(straight):
    written = json.loads((straight / "study.json").read_text())
    assert (straight / "study.png").stat().st_size > 0
    assert [row["variant"] for row in written["rows"]] == ["dropout 0.5", "no dropout"]
    for row in written["rows"]:
        folder = straight / row["variant"].replace(" ", "-")
        last = [read_metrics(folder / f"seed-{seed}")[-1] for seed in (0, 1)]
        assert row["top1_error"]["mean"] == pytest.approx(sum(line["top1_error"] for line in last) / 2, abs=1e-3)
        assert row["parameters"] == written["rows"][0]["parameters"]
        assert all(run["seconds"] > 0 for run in row["runs"])
    difference = written["rows"][1]["top1_difference"]["value"]
    means = [row["top1_error"]["mean"] for row in written["rows"]]
    assert difference == pytest.approx(means[1] - means[0], abs=1e-3)
    assert written["data"]["train"] == 32


@pytest.mark.parametrize(("how", "devices", "seeds"), [(signal.SIGINT, "cpu,cpu", 1), (signal.SIGKILL, "cpu", 2)])
def test_a_study_interrupted_in_its_second_run_ends_the_same(straight, prepared, tmp_path, how, devices, seeds):
    arguments = [*study_of("dropout", prepared, devices), "--epochs", "4", "--seeds", str(seeds), "--output", "study"]
    if devices != "cpu":  # its first run was made on one device
        shutil.copytree(straight / "dropout-0.5" / "seed-0", tmp_path / "study" / "dropout-0.5" / "seed-0")
    process = start(tmp_path, *arguments)
    second = tmp_path / "study" / "no-dropout" / "seed-0"
    wait_for_steps(second, 6)
    process.send_signal(how)
    _, err = process.communicate(timeout=30)
    if how == signal.SIGINT:
        assert process.returncode == 130, err
        assert err.splitlines()[-1] == f"stopped in run 2 of {2 * seeds}; the same command continues from there"
    finished = tmp_path / "study" / "dropout-0.5" / "seed-0" / "last.safetensors"
    made = finished.stat().st_mtime_ns
    planned = RunConfig.load(second)
    code, out, err = command_here(tmp_path, *arguments)
    assert code == 0, err
    assert "run 1 of" not in out
    assert "resumed" in out or how == signal.SIGKILL
    assert finished.stat().st_mtime_ns == made
    if devices != "cpu":  # another order of summation, and one split for the whole run
        assert RunConfig.load(second) == planned
        ours, theirs = (read_metrics(folder / "no-dropout" / "seed-0") for folder in (tmp_path / "study", straight))
        assert [line["step"] for line in ours] == [line["step"] for line in theirs]
        assert [line["loss"] for line in ours] == pytest.approx([line["loss"] for line in theirs], rel=1e-3)
        run_study(given("dropout", prepared, tmp_path / "study", seeds=seeds, devices=devices))  # shown, not repeated
        return
    for variant in ("dropout-0.5", "no-dropout"):
        for seed in range(seeds):
            ours, theirs = (folder / variant / f"seed-{seed}" for folder in (tmp_path / "study", straight))
            assert curve(read_metrics(ours)) == curve(read_metrics(theirs))
            assert_same_state(ours, theirs)


def test_a_study_under_a_former_name_goes_on(prepared, tmp_path, capsys):
    """Its folder, those of its runs, and its record have the names of earlier versions."""
    study, options = find_study("overlapping"), given("overlap", prepared, tmp_path / "study", seeds=1)
    assert replace(options, output=None).folder == Path("studies") / f"{prepared.name}-overlap"
    old = [replace(variant, name=variant.formerly, formerly="") for variant in study.variants]
    for run in plan_runs(replace(study, variants=tuple(old)), options.shared, 1, tmp_path / "study"):
        finish(run, [line("train", 1, 50.0, 32), line("val", 4, 50.0)], epoch=4)
    folders = sorted(path.name for path in (tmp_path / "study").iterdir())
    assert folders == ["2x2-windows-stride-2", "3x3-windows-stride-2"]
    (tmp_path / "study" / "study.json").write_text('{"study": "overlap"}')
    run_study(options)
    out, err = capsys.readouterr()
    assert "note: the study overlap is now called overlapping; the old name still works\n" in err
    assert "runs to train" not in out
    written = json.loads((tmp_path / "study" / "study.json").read_text())
    assert (written["study"], [row["variant"] for row in written["rows"]]) == (
        "overlapping",
        ["overlapping, 3x3", "no overlapping, 2x2"],
    )


def test_a_finished_study_is_shown_and_not_repeated(straight, prepared, capsys):
    before = {path: path.stat().st_mtime_ns for path in straight.rglob("*.safetensors")}
    run_study(given("dropout", prepared, straight))
    out = capsys.readouterr().out
    assert "run 1 of" not in out
    assert "runs to train" not in out
    assert "2 x 4 epochs" in out
    assert "chance is 66.67 % top-1." in out
    assert "top-5" not in out  # says nothing about three classes
    assert {path: path.stat().st_mtime_ns for path in straight.rglob("*.safetensors")} == before


@pytest.mark.parametrize(
    ("name", "more", "expected"),
    [
        ("deep", {}, "unknown study 'deep'; choose one of depth, width"),
        (
            "dropout",
            {"epochs": 5},
            "seed-0 was made with --epochs 4, got 5; give the same options, or choose another --output",
        ),
        ("dropout", {"dropout": 0.1}, "study dropout sets --dropout itself; leave it out"),
        ("dropout", {"seeds": 0}, "--seeds must be at least 1, got 0"),
        ("dataset-size", {"fraction": 0.5}, "study dataset-size sets --fraction itself"),
        ("width", {}, "study holds the study dropout, not width; choose another --output"),
    ],
)
def test_what_a_study_refuses(straight, prepared, name, more, expected):
    before = {path: path.stat().st_mtime_ns for path in straight.rglob("*")}
    with pytest.raises(ConfigurationError) as error:
        run_study(given(name, prepared, straight, **more))
    assert expected in str(error.value)
    assert "\n" not in str(error.value)
    assert {path: path.stat().st_mtime_ns for path in straight.rglob("*")} == before


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, r"has 3 training images \(0.1 of 32\), fewer than one batch of 8"),
        ({"edits": ("epoch=2:lr=1e-4",)}, "more epochs of fewer images, so the edit epoch=2:lr=1e-4"),
    ],
)
def test_a_study_that_is_not_possible_leaves_no_folder(prepared, tmp_path, more, expected):
    with pytest.raises(ConfigurationError, match=expected):
        run_study(given("dataset-size", prepared, tmp_path / "study", **more))
    assert not (tmp_path / "study").exists()


def test_a_folder_with_other_content_is_no_study(prepared, tmp_path):
    record = tmp_path / "study.json"
    photo = tmp_path / "photo.jpg"
    photo.touch()
    asked = given("dropout", prepared, tmp_path)
    with pytest.raises(ConfigurationError, match=rf"^{tmp_path} exists already and holds no study; choose another"):
        run_study(asked)
    for content in ("[]", "{", "no JSON"):
        record.write_text(content)
        with pytest.raises(ConfigurationError, match=r"study.json is not the record of a study; move it away, or cho"):
            run_study(asked)
        assert record.read_text() == content
    record.unlink()
    record.mkdir()
    with pytest.raises(ConfigurationError, match=r"study.json cannot be written: Is a directory; choose another"):
        run_study(asked)
    assert sorted(tmp_path.iterdir()) == [photo, record]


def test_a_second_command_is_refused_while_one_is_running(straight, prepared):
    before = (straight / "study.json").stat().st_mtime_ns
    with (
        another_owner(straight) as process,
        pytest.raises(ConfigurationError, match=rf"study is in use by process {process.pid} on host .*; wait for it"),
    ):
        run_study(given("dropout", prepared, straight))
    assert (straight / "study.json").stat().st_mtime_ns == before


def test_a_study_under_torchrun_is_refused(straight, prepared, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigurationError, match="a study starts its own workers"):
        run_study(given("dropout", prepared, straight))


def test_bad_input_is_one_line(prepared, tmp_path):
    message = refused(tmp_path, "fastalex.study", "deep", prepared)
    assert message.startswith("error: unknown study 'deep'; choose one of depth, width, ")


def test_brackets_in_the_name_of_a_folder_are_no_markup(straight, prepared, tmp_path, capsys):
    folder = tmp_path / "[red]a" / "[" / "red]"  # [/red] would end what nothing has begun
    shutil.copytree(straight, folder)
    run_study(given("dropout", prepared, folder))
    assert f"written: {folder / 'study.json'}" in capsys.readouterr().out

"""Options of an evaluation that do not fit together, or do not fit what exists."""

from pathlib import Path

import pytest

import dataloading
from fastalex.errors import ConfigurationError
from fastalex.evaluation.ensemble import EvaluationResult, evaluate
from fastalex.evaluation.options import EvaluateOptions, _report, resolve
from tests.fastalex.conftest import save_run, write_images
from tests.fastalex.evaluation.conftest import HERE


def test_what_is_refused(runs, prepared, tmp_path):
    one, two = runs
    other = dataloading.prepare_dataset(
        write_images(tmp_path / "o", train=1, val=1, classes=("cat", "red")), tmp_path / "p", progress=False, workers=1
    )
    stranger = save_run(tmp_path / "stranger", other.root)
    tiny = dataloading.prepare_dataset(
        write_images(tmp_path / "t", train=1, val=1), tmp_path / "q", size=64, progress=False, workers=1
    )
    short = save_run(tmp_path / "short", tiny.root)
    started = tmp_path / "started"
    started.mkdir()
    (started / "config.json").write_text((one / "config.json").read_text())
    (tmp_path / "file.txt").touch()
    folder, lost = tmp_path / "folder.csv", tmp_path / "lost.csv"
    folder.mkdir()
    lost.symlink_to("nowhere/p.csv")
    for paths, options, message in (
        ((), {}, "name at least one run"),
        ((tmp_path / "nothing",), {}, "no such run folder or weights file"),
        ((prepared, one), {}, f"{prepared} is not a run, but {one} is: name runs first, .* {one} {prepared}$"),
        ((prepared, two, one), {}, f"name runs first, then the data: .* -m fastalex.evaluate {two} {one} {prepared}$"),
        ((one, tmp_path / "nothing"), {}, "no such folder"),
        ((started,), {}, "has no best.safetensors yet: it has not saved a checkpoint"),
        ((tmp_path / "file.txt",), {}, "file.txt is empty: copy or download the file again"),
        ((one, tmp_path / "file.txt"), {}, "file.txt is empty"),
        ((one, stranger), {}, r"other classes than .* \(it has 'cat' and lacks 'blue'\)"),
        ((one, short), {}, r"short.* with images stored in 64 pixels, .*one.* in 256 pixels; evaluate them one by one"),
        ((one, other.root), {}, r"2 classes that are not the network's 3 \(it has 'cat' and lacks 'blue'\)"),
        ((one,), {"split": "test"}, "no images in split 'test'; choose from train, val"),
        ((one, two), {"fit_coefficients": "test"}, "no images in split 'test'"),
        ((one,), {"fit_coefficients": "val"}, "--fit-coefficients needs several runs, got 1"),
        ((one, two), {"coefficients": (1.0,)}, "1 numbers for 2 runs"),
        ((one, two), {"coefficients": (1.0, -1.0)}, "1 -1: none may be negative"),
        ((one, two), {"coefficients": (2.0, -1.0)}, "2 -1: none may be negative"),
        ((one, two), {"coefficients": (0.0, 0.0)}, "0 0: none may be negative, and one must be positive"),
        ((one, two), {"coefficients": (1.0, float("nan"))}, "1 nan: none may be negative"),
        ((one, two), {"coefficients": (1.0, 1.0), "fit_coefficients": "val"}, "exclude each other"),
        ((one,), {"predictions": tmp_path / "p.txt"}, "p.txt must end with .csv or .npz, got '.txt'"),
        ((one,), {"predictions": tmp_path / "no" / "p.csv"}, "no does not exist; create it first"),
        ((one,), {"predictions": tmp_path}, "must end with .csv or .npz"),
        ((one,), {"class_errors": tmp_path / "e.npz"}, "e.npz must end with .csv, got '.npz'"),
        (
            (one,),
            {"predictions": tmp_path / "same.csv", "class_errors": tmp_path / "same.csv"},
            "--predictions and --class-errors both name .*same.csv; name two files",
        ),
        ((one,), {"worst": -1}, "--worst must be 0 or more, got -1"),
        ((one,), {"predictions": tmp_path / "file.txt" / "p.csv"}, "p.csv cannot be written: Not a directory; choose"),
        ((one,), {"predictions": folder, "force": True}, "folder.csv cannot be written: Is a directory; choose"),
        ((one,), {"class_errors": lost}, "lost.csv cannot be written: No such file or directory; choose another file"),
        ((one,), {"class_errors": lost.with_name("a.csv"), "predictions": folder / "../a.csv"}, "both name .*a.csv"),
        ((one,), {"confusion": folder.with_name("c.npz")}, r"c.npz must end with .csv or .png, got '.npz'"),
        (
            (one,),
            {"class_errors": tmp_path / "a.csv", "confusion": tmp_path / "a.csv"},
            "--confusion and --class-errors both name .*a.csv; name two files",
        ),
        (
            (one,),
            {"predictions": tmp_path / "a.csv", "confusion": tmp_path / "a.csv"},
            "--confusion and --predictions both name .*a.csv; name two files",
        ),
        ((one,), {"batch_size": 0}, "--batch-size .* 0"),
        ((one,), {"devices": ",".join(["cpu"] * 9)}, "9 stages"),
    ):
        with pytest.raises((ConfigurationError, dataloading.DatasetError), match=message):
            resolve(EvaluateOptions(paths, **{"devices": "cpu", **options}))


def reported(capsys, *paths: Path, **options: object) -> tuple[dict[str, str], EvaluationResult]:
    """The rows that an evaluation prints, by name, and its result."""
    job = resolve(EvaluateOptions(paths, devices="cpu", batch_size=4, **options))
    result = evaluate(HERE, job.evaluation)
    _report(job, result)
    lines = capsys.readouterr().out.splitlines()
    return {name.strip(): text.strip() for name, _, text in (line.partition("  ") for line in lines)}, result


def test_the_only_split_with_images_needs_no_name(runs, class_folders, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rows, _ = reported(capsys, runs[0], class_folders / "val")
    assert "train: 7 images" in rows["data"]


def test_an_ensemble_prints_what_it_is_made_of(runs, prepared, tmp_path, capsys):
    cycled = save_run(tmp_path / "run", prepared, seed=1, classes=("green", "red", "blue"))
    table = tmp_path / "classes.csv"
    rows, result = reported(capsys, runs[0], cycled, coefficients=(1.0, 3.0), class_errors=table)
    assert result.coefficients == (0.25, 0.75)
    assert rows["coefficients"] == "0.2500 0.7500"
    assert rows["weights 2"] == str(cycled / "best.safetensors")
    assert rows["views per image"] == "1"
    assert "classes" not in rows
    assert f"errors by class: {table}" in rows
    assert table.is_file()

    rows, _ = reported(capsys, cycled, runs[0], fit_coefficients="train")
    assert rows["coefficients"].endswith(", fitted on train")
    assert rows["classes"] == "matched by name: the data set orders them differently"
    assert not any(name.startswith("errors by class") for name in rows)

    rows, _ = reported(capsys, runs[0], fit_coefficients=None)
    assert "coefficients" not in rows
    assert rows["weights"] == str(runs[0] / "best.safetensors")

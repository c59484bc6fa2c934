"""The baseline command: its table, its record, and what it refuses."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

import dataloading
from dataloading import DatasetError
from fastalex.datasets import open_prepared
from fastalex.errors import ConfigurationError
from fastalex.handcrafted import options as options_module
from fastalex.handcrafted.classify import classify
from fastalex.handcrafted.options import BaselineOptions, run_baseline
from tests.dataloading.damage import copied, overwritten
from tests.fastalex.commands import command, refused
from tests.fastalex.conftest import write_images


def test_the_command_prints_the_papers_errors_and_writes_a_record(textures, tmp_path):
    arguments = [textures, "--features", "hog", "--output", "out"]
    code, out, err = command(tmp_path, "fastalex.baseline", *arguments)
    assert code == 0, err
    record = json.loads((tmp_path / "out/baseline.json").read_text())
    assert (record["features"], record["images"], record["training_images"], record["seed"]) == ("hog", 18, 45, 0)
    own, *_, guessing = (line for line in out.splitlines() if line.startswith("│"))
    assert f"{record['top1_error']:.2f} %" in own
    assert guessing.split()[1:8] == ["chance", "│", "66.67", "%", "│", "-", "│"]
    assert own.count("%") == 1  # the top-5 error of three classes says nothing
    for figure in ("45.70 %", "25.70 %", "37.50 %", "17.00 %", "ILSVRC-2010 test"):
        assert figure in out
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["baseline.json"]
    assert "out exists already" in refused(tmp_path, "fastalex.baseline", *arguments)


def test_a_training_run_joins_the_table(textures, config, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    about = {"kind": "val", "step": 1, "loss": 1.0, "top5_error": 0.5, "images": 18}
    lines = [about | {"epoch": epoch, "top1_error": error} for epoch, error in enumerate((11.1, 22.2))]
    (Path(config.output) / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = BaselineOptions(textures, features="hog", run=Path(config.output), output=tmp_path / "out")
    with pytest.raises(ConfigurationError, match=r"was trained on .*, which is not the data set in .*: their finger"):
        run_baseline(options)
    shutil.copytree(textures, tmp_path / "elsewhere")
    replace(config, data=str(tmp_path / "elsewhere"), fraction=0.5).save()
    run_baseline(options)
    out = capsys.readouterr().out
    assert "22.20 %" in out
    assert "2 epochs of 50 % of the images" in out
    assert "11.10 %" not in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": "surf"}, "features must be sift or hog, got 'surf'"),
        ({"gaussians": 46}, "has 45 training images, fewer than 46 Gaussians; lower the number of Gaussians"),
        ({"gaussians": 0}, "gaussians must be from 1 to 4,096, got 0"),
        ({"fraction": 0.5, "seed": -1}, "seed must be from 0 to .*, got -1"),
        ({"fraction": 0.05, "gaussians": 4}, "has 3 training images, fewer than 4 Gaussians"),
        ({"threads": 0}, "threads must be at least 1, got 0"),
        ({"seed": -1}, "seed must be from 0 to .*, got -1"),
        ({"split": "test"}, "has no split 'test' to measure errors on; choose from val"),
        ({"split": "train"}, "has no split 'train' to measure errors on"),
        ({"data": Path("synthetic")}, "synthetic images are noise"),
        ({"run": Path("nowhere")}, "nowhere is not a run folder"),
    ],
)
def test_options_that_do_not_fit(textures, tmp_path, options, message):
    with pytest.raises(ConfigurationError, match=message):
        run_baseline(BaselineOptions(**{"data": textures, "gaussians": 4, "output": tmp_path / "out"} | options))
    assert not (tmp_path / "out").exists()


def test_a_fraction_is_that_of_a_run_with_the_same_seed(textures, tmp_path):
    chosen = []

    def seen(dataset, *arguments):
        chosen.append(dataset.labels("train").tolist())
        return classify(dataset, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(options_module, "classify", seen)
        run_baseline(BaselineOptions(textures, features="hog", fraction=0.4, seed=3, output=tmp_path / "out"))
    assert chosen == [open_prepared(str(textures), 0.4, 3).labels("train").tolist()]
    record = json.loads((tmp_path / "out/baseline.json").read_text())
    assert (record["fraction"], record["training_images"]) == (0.4, 18)
    with pytest.raises(DatasetError, match=r"^fraction must be more than 0 and at most 1, got 1\.5$"):
        run_baseline(BaselineOptions(textures, features="hog", fraction=1.5, output=tmp_path / "other"))
    assert not (tmp_path / "other").exists()


def test_one_class_and_tiny_images_are_refused(tmp_path):
    for size, kinds in ((32, ("a", "b")), (64, ("a",)), (65, ("a", "b"))):
        for split in ("train", "val"):
            for name in kinds:
                (tmp_path / f"in{size}" / split / name).mkdir(parents=True)
                Image.new("RGB", (64, 64)).save(tmp_path / f"in{size}" / split / name / "1.jpg")
        if size == 65:
            (tmp_path / "in65" / "train" / "b" / "1.jpg").write_bytes(b"?")  # and is rejected
        source, dest, options = tmp_path / f"in{size}", tmp_path / f"out{size}", {"allow_empty_classes": size == 65}
        if size == 64:  # one class can be prepared without a validation set only
            source, options = source / "train", {"validation_every": 0}
        dataloading.prepare_dataset(source, dest, size=size, workers=0, progress=False, **options)
    with pytest.raises(ConfigurationError, match=r"has only one class, a, but a classifier needs at least two"):
        run_baseline(BaselineOptions(tmp_path / "out64", gaussians=1))
    with pytest.raises(ConfigurationError, match=r"needs at least 2 images in split 'train', got 1"):
        run_baseline(BaselineOptions(tmp_path / "out65", features="hog"))
    with pytest.raises(ConfigurationError, match=r"images of 32 pixels, but dense SIFT needs at least 48"):
        run_baseline(BaselineOptions(tmp_path / "out32", gaussians=1))


def test_a_damaged_image_is_named_and_leaves_no_folder_behind(textures, tmp_path):
    overwritten(copied(textures, tmp_path / "data"), "val", 7, b"?")
    with pytest.raises(dataloading.DatasetError, match=r"sample 7 of val .* is damaged"):
        run_baseline(BaselineOptions(tmp_path / "data", features="hog", output=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_without_opencv_nothing_is_read(textures, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ConfigurationError, match="OpenCV is not installed"):
        run_baseline(BaselineOptions(textures))


def test_destination_and_run_are_checked_before_the_data_are_prepared(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "runs").touch()
    photos = write_images(tmp_path / "photos", train=2, val=1)
    for options, message in (
        ({"output": Path("file")}, "file exists already; choose another --output"),
        ({"output": Path("file/x")}, "Not a directory"),
        ({}, "runs is in the way of runs: it is not a folder; choose an --output"),
        ({"output": Path("out"), "run": Path("nowhere")}, "nowhere is not a run folder"),
    ):
        with pytest.raises((ConfigurationError, OSError), match=message):
            run_baseline(BaselineOptions(photos, **options))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "photos", "runs"]

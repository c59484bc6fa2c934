"""Options of an evaluation that do not fit together, or do not fit what exists."""

import pytest

import dataloading
from fastalex.errors import ConfigurationError
from fastalex.evaluation.options import EvaluateOptions, resolve
from tests.fastalex.conftest import save_run, write_images


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
        ((prepared, one), {}, "is not a run folder"),
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
        ((one,), {"predictions": folder, "overwrite": True}, "folder.csv cannot be written: Is a directory; choose"),
        ((one,), {"class_errors": lost}, "lost.csv cannot be written: No such file or directory; choose another file"),
        ((one,), {"class_errors": lost.with_name("a.csv"), "predictions": folder / "../a.csv"}, "both name .*a.csv"),
        ((one,), {"batch_size": 0}, "--batch-size .* 0"),
        ((one,), {"devices": ",".join(["cpu"] * 9)}, "9 stages"),
    ):
        with pytest.raises((ConfigurationError, dataloading.DatasetError), match=message):
            resolve(EvaluateOptions(paths, **{"devices": "cpu", **options}))

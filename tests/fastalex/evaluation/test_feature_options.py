"""Options of an extraction that are refused."""

import shutil
import sys
from types import SimpleNamespace

import pytest

from fastalex.errors import ConfigurationError
from fastalex.evaluation.feature_options import FeaturesOptions, resolve
from fastalex.evaluation.options import EvaluateOptions
from fastalex.evaluation.options import resolve as resolve_evaluation
from tests.fastalex.commands import refused


def test_what_is_refused(runs, prepared, tmp_path):
    for names, options, message in (
        (("conv9",), {}, "no activation named conv9; .* conv1.conv, conv1.pool"),
        ((), {}, "name at least one activation"),
        (("conv2,fc7",), {}, "no activation named conv2,fc7; separate names by spaces; choose from conv1.conv"),
        (("fc7",), {"split": "test"}, "no images in split 'test'"),
        (("fc7",), {"batch_size": 0}, "--batch-size .* 0"),
        (("fc7",), {"run": tmp_path / "nothing"}, "no such run folder"),
    ):
        asked = {"run": runs[0], "data": prepared, "output": tmp_path / "features", **options}
        with pytest.raises(ConfigurationError, match=message):
            resolve(FeaturesOptions(names=names, **asked))


def test_more_than_the_disk_has_free_is_refused(runs, prepared, tmp_path, monkeypatch):
    needed = 4 * 7 * 256
    options = FeaturesOptions(runs[0], prepared, ("fc7",), tmp_path / "new" / "features")
    asked = []

    def disk_usage(folder, free=needed):
        asked.append(folder)
        return SimpleNamespace(free=free)

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    resolve(options)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: disk_usage(folder, needed - 1))
    with pytest.raises(ConfigurationError, match=r"features needs .*iB, but only .* are free in .*; choose fewer"):
        resolve(options)
    assert asked == [tmp_path] * 2  # the nearest folder that there is


def test_class_folders_are_prepared_unless_another_worker_would_wait(runs, class_folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def resolved():
        return resolve_evaluation(EvaluateOptions((runs[0], class_folders), devices="cpu"))

    with monkeypatch.context() as launched:
        launched.setenv("RANK", "0")
        launched.setenv("WORLD_SIZE", "1")
        with pytest.raises(ConfigurationError, match="is not prepared; run this before torchrun: "):
            resolved()
    resolved()
    assert any(tmp_path.glob("prepared/*/dataset.json"))


def test_a_run_after_its_images_is_named(runs, class_folders, tmp_path):
    for run in (runs[0], runs[0] / "best.safetensors"):
        message = refused(tmp_path, "fastalex.features", class_folders, run, "fc7", "-o", "new")
        first = f"error: {class_folders} is not a run, but {run} is: name the run first, then the images: "
        assert message == f"{first}{sys.executable} -m fastalex.features {run} {class_folders} fc7 -o new"


def test_images_after_an_activation_are_named(runs, class_folders, tmp_path):
    message = refused(tmp_path, "fastalex.features", runs[0], "fc7", class_folders, "conv5", "-o", "new")
    first = f"error: no images at fc7, but at {class_folders}: name the images before the activations: "
    assert message == f"{first}{sys.executable} -m fastalex.features {runs[0]} {class_folders} fc7 conv5 -o new"


@pytest.mark.parametrize("name", ["nostim", "nostim.txt"])
def test_images_that_are_not_there_need_no_classes(runs, tmp_path, name):
    message = r"no such file or folder: .*nostim.*; name a folder of images, a list of images \(.txt\), or a prepared"
    with pytest.raises(ConfigurationError, match=message):
        resolve(FeaturesOptions(runs[0], tmp_path / name, ("conv5",), tmp_path / "out"))

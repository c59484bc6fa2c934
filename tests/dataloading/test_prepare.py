"""``python -m dataloading.prepare``."""

import inspect
import sys

import pytest

from dataloading import prepare, prepare_dataset
from dataloading.command_line import parse
from tests.dataloading.small_sources import command


def test_the_command_prepares_and_says_so(folders, tmp_path):
    done = command("dataloading.prepare", folders, tmp_path / "out", "--size", 32, "--workers", 1)
    assert done.returncode == 0
    assert "3 classes, 24 train, 12 val images; 0 rejected" in done.stdout
    assert "36 of 36 images" in done.stderr


OPTIONS = {
    "size": 128,
    "quality": 90,
    "keep_aspect": True,
    "label_order": "devkit",
    "validation_every": 7,
    "allow_empty_classes": True,
    "verify": True,
    "workers": 3,
    "shard_images": 100,
    "max_pixels": 1000,
    "background": "1,2,3",
    "exif": True,
    "progress": False,
}


@pytest.mark.parametrize("name", [None, *OPTIONS])
def test_every_option_has_its_effect_and_no_other(small, monkeypatch, capsys, name):
    found = {}
    monkeypatch.setattr(
        prepare, "prepare_dataset", lambda *paths, **options: found.update(options, paths=paths) or small
    )
    words, value = [], OPTIONS.get(name)
    if name:
        option = name.replace("_", "-")
        words = [f"--{option}"] if value is True else [f"--no-{option}"] if value is False else [f"--{option}={value}"]
    monkeypatch.setattr(sys, "argv", ["prepare", "from", "to", *words])
    parse(prepare.main)
    defaults = inspect.signature(prepare_dataset).parameters
    wanted = {key: defaults[key].default for key in OPTIONS} | {"paths": ("from", "to")}
    if name:
        wanted[name] = (1, 2, 3) if name == "background" else value
    assert found == wanted
    assert capsys.readouterr().out == "to: 3 classes, 24 train, 12 val images; 0 rejected\n"


def test_one_class_is_one_class(small, monkeypatch):
    monkeypatch.setattr(small, "classes", ["cat"])
    assert prepare._summary(small).startswith("1 class, 24 train")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["/no/where"], "no such folder: /no/where"), (["digits", "--verify"], "no MD5 sums are published for digits")],
)
def test_the_command_ends_with_one_line_and_2(tmp_path, arguments, message):
    source, *options = arguments
    done = command("dataloading.prepare", source, tmp_path / "out", *options)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {message}")
    assert done.stderr.count("\n") == 1


def test_help_is_complete():
    done = command("dataloading.prepare", "--help-all")
    assert done.returncode == 0
    options = (
        "size quality keep-aspect label-order validation-every allow-empty-classes verify workers shard-images "
        "max-pixels background exif progress"
    )
    for option in options.split():
        assert f"--{option}" in done.stdout

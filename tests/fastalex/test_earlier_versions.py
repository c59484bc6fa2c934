"""Runs and weights that version 0.1 made resume, evaluate and load."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

import dataloading
from fastalex.network.weights import load_model
from tests.fastalex.conftest import write_images
from tests.fastalex.test_commands import command

DATA = Path(__file__).parent / "data"
RUN = DATA / "run-of-0.1"


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """The images that the run was trained on, resized as version 0.1 did: as they are, they are prepared again."""
    folder = write_images(tmp_path_factory.mktemp("earlier") / "images", train=10, val=3)
    for path in folder.rglob("*.jpg"):
        with Image.open(path) as image:
            small = image.resize((40, 32), Image.Resampling.BOX).crop((4, 0, 36, 32))
        path.unlink()
        small.save(path.with_suffix(".png"))
    return folder


def test_weights_load():
    model, spec = load_model(RUN / "best.safetensors")
    assert spec.classes == ("blue", "green", "red")
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 3)


def test_a_run_resumes(images, tmp_path):
    shutil.copytree(RUN, tmp_path / "run")
    code, _, err = command(tmp_path, "fastalex.train", images, "--resume", "run", "--epochs", "5", "--devices", "cpu")
    assert code == 0, err
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["kind"] == "val"]
    # What version 0.1 itself reached when it resumed this run on two workers.
    assert losses[-2:] == pytest.approx([0.665933, 0.561969], abs=2e-4)
    assert len(losses) == 5


def test_a_run_evaluates(images, tmp_path):
    shutil.copytree(RUN, tmp_path / "run")
    dataloading.prepare_dataset(images, tmp_path / "prepared" / "images", size=32, workers=0, progress=False)
    code, _, err = command(tmp_path, "fastalex.evaluate", "run", "--predictions", "predictions.csv")
    assert code == 0, err
    ours, theirs = (
        list(csv.DictReader(path.open())) for path in (tmp_path / "predictions.csv", DATA / "predictions-of-0.1.csv")
    )
    assert [row["class_1"] for row in ours] == [row["class_1"] for row in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert float(one["probability_1"]) == pytest.approx(float(other["probability_1"]), abs=1e-4)

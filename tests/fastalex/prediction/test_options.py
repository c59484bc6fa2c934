"""`python -m fastalex.predict`: which images, what it prints and writes, and what it refuses."""

import csv
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dataloading import DatasetError
from fastalex.errors import ConfigurationError
from fastalex.network.weights import load_spec
from fastalex.network.weights_record import load_record, save_weights
from fastalex.prediction.options import PredictOptions, predict_and_report
from fastalex.prediction.trained import load
from tests.fastalex.commands import command, command_here
from tests.fastalex.conftest import save_run
from tests.fastalex.evaluation.conftest import result_of


@pytest.fixture
def photos(stored: Path, tmp_path: Path) -> Path:
    """A folder of three photographs, one of them in a subfolder, beside what is no image."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for number, name in enumerate(("img2.jpg", "img10.jpg", "more/img1.jpg")):
        shutil.copy(stored / f"{number}.jpg", folder / name)
    (folder / "notes.doc").write_text("no image")
    return folder


def test_a_folder_of_photographs_without_dali(runs, photos, tmp_path):
    """In a process of its own, to which DALI and scikit-learn are not there."""
    blocked = "import sys; sys.modules['nvidia.dali'] = sys.modules['sklearn'] = None\n"
    (tmp_path / "predict.py").write_text(f"{blocked}from fastalex import cli, predict\ncli.main(predict.main)\n")
    code, out, err = command(tmp_path, "predict", runs[0], photos, "--json", "p.json", "--csv", "p.csv")
    assert (code, err) == (0, "")
    files = [str(photos / name) for name in ("img2.jpg", "img10.jpg", "more/img1.jpg")]
    *lines, last = out.splitlines()
    assert last == "written: p.json, p.csv"
    assert [line.split()[0] for line in lines] == files
    model = load(runs[0])
    written = json.loads((tmp_path / "p.json").read_text())
    assert written["weights"] == [str(runs[0] / "best.safetensors")]
    rows = list(csv.DictReader((tmp_path / "p.csv").open()))
    for file, line, entry, row in zip(files, lines, written["images"], rows, strict=True):
        (expected,) = model.predict(file)
        assert entry["file"] == row["file"] == file
        assert [found["class"] for found in entry["predictions"]] == list(expected.classes)
        assert [found["probability"] for found in entry["predictions"]] == pytest.approx(expected.probabilities)
        assert [found["index"] for found in entry["predictions"]] == list(expected.indices)
        assert [row[f"class_{rank}"] for rank in (1, 2, 3)] == list(expected.classes)
        assert float(row["probability_1"]) == pytest.approx(expected.probabilities[0], rel=1e-5)
        assert f"{expected.probabilities[0]:.1%} {expected.classes[0]}" in line


def test_files_that_cannot_be_used_are_named_and_the_others_predicted(runs, photos, tmp_path):
    (photos / "broken.jpg").write_bytes((photos / "img2.jpg").read_bytes()[:900])
    code, out, err = command_here(tmp_path, "fastalex.predict", runs[0], photos, photos / "notes.doc", "--csv", "-")
    assert code == 2
    assert [Path(row["file"]).name for row in csv.DictReader(io.StringIO(out))] == ["img2.jpg", "img10.jpg", "img1.jpg"]
    first, second = err.splitlines()
    assert first.startswith(f"error: {photos / 'broken.jpg'} is no image that can be used: does not decode")
    assert second.startswith(f"error: {photos / 'notes.doc'} is no image that can be used: not an image")


def test_a_list_gives_the_order(runs, photos, tmp_path, capsys):
    (tmp_path / "list.txt").write_text(f"photos/img10.jpg\n{photos / 'img2.jpg'}\n")
    predict_and_report(PredictOptions((runs[0], tmp_path / "list.txt"), csv=Path("-"), device="cpu"))
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["file"] for row in rows] == [str(photos / name) for name in ("img10.jpg", "img2.jpg")]


def test_several_networks_give_the_mean_of_their_softmax_outputs(runs, stored, capsys):
    expected = result_of(*runs).predictions
    predict_and_report(PredictOptions((*runs, stored), json=Path("-"), device="cpu", batch_size=3))
    images = json.loads(capsys.readouterr().out)["images"]
    found = torch.tensor([[entry["probability"] for entry in image["predictions"]] for image in images])
    assert [[entry["index"] for entry in image["predictions"]] for image in images] == expected.top_classes.tolist()
    torch.testing.assert_close(found, expected.top_probabilities, rtol=1e-4, atol=1e-6)


def test_files_without_a_mean_take_a_given_one(runs, prepared, stored, tmp_path, capsys):
    """One of the older version gives the predictions of a new one, with the mean of the same data."""
    old = save_run(tmp_path / "old", prepared, seed=1)
    images = []
    for paths, mean in (((runs[0], stored), None), ((old, stored), str(prepared / "mean-image.npy"))):
        predict_and_report(PredictOptions(paths, mean=mean, json=Path("-"), device="cpu"))
        images.append(json.loads(capsys.readouterr().out)["images"])
    assert images[0] == images[1]


def test_the_table_says_that_it_is_a_mean(runs, stored, capsys):
    predict_and_report(PredictOptions((*runs, stored / "0.jpg"), device="cpu"))
    assert capsys.readouterr().out.splitlines()[1:] == ["mean of 2 networks"]


def test_ten_crops_and_number_of_classes(runs, stored, capsys):
    expected = result_of(runs[0], crops=10).predictions.top_probabilities[0]
    predict_and_report(PredictOptions((runs[0], stored / "0.jpg"), crops=10, top=2, json=Path("-"), device="cpu"))
    (image,) = json.loads(capsys.readouterr().out)["images"]
    assert [entry["probability"] for entry in image["predictions"]] == pytest.approx(expected[:2].tolist(), rel=1e-4)


def test_the_picture_shows_every_image(runs, photos, stored, tmp_path):
    pictures = []
    for images in ((stored / "0.jpg",), (photos, stored)):
        path = tmp_path / "picture.png"
        predict_and_report(PredictOptions((runs[0], *images), picture=path, force=True, device="cpu"))
        pictures.append(np.asarray(Image.open(path).convert("RGB")))
    assert pictures[0].shape[1] < pictures[1].shape[1]  # one column and four
    assert pictures[0].shape[0] < pictures[1].shape[0]  # one row and three
    crop = load(runs[0]).preprocess.stored(stored / "0.jpg")[16:240, 16:240]
    colour = crop.reshape(-1, 3).mean(0)
    height, width, _ = pictures[0].shape
    assert (
        np.abs(pictures[0][height // 4 : height // 3, width // 2 - 40 : width // 2 + 40].mean((0, 1)) - colour).max()
        < 12
    )


def test_transparent_images_are_laid_on_a_colour(runs, tmp_path, capsys):
    for name, alpha in (("clear", 0), ("opaque", 255)):
        Image.new("RGBA", (256, 256), (200, 30, 60, alpha)).save(tmp_path / f"{name}.png")
    Image.new("RGB", (256, 256), (0, 0, 255)).save(tmp_path / "blue.png")

    def probability(name: str, **options: object) -> float:
        predict_and_report(PredictOptions((runs[0], tmp_path / f"{name}.png"), json=Path("-"), device="cpu", **options))
        return json.loads(capsys.readouterr().out)["images"][0]["predictions"][0]["probability"]

    assert probability("clear") == probability("opaque")
    assert probability("clear", background="0,0,255") == probability("blue") != probability("opaque")


def test_what_is_refused(runs, prepared, stored, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "none").mkdir()
    (tmp_path / "there.csv").touch()
    old = save_run(tmp_path / "old", prepared)
    image, other = stored / "0.jpg", tmp_path / "a.pth"
    other.touch()
    stranger = save_run(tmp_path / "stranger", prepared, with_record=True, classes=("a", "b", "c"))
    for paths, options, message in (
        ((), {}, r"the first path must be a run folder or a .safetensors file; to use"),
        ((other, image), {}, "the first path must be a run folder .*, got .*a.pth; to use"),
        ((tmp_path / "typo", image), {}, "no such run folder or weights file: .*typo"),
        ((image, runs[0]), {}, "name the run folder or the .safetensors file first, then the images, got .*0.jpg$"),
        ((stored, runs[0]), {}, "name the run folder or the .safetensors file first, then the images, got .*"),
        ((runs[0],), {}, "name at least one image, or a folder of images, after the weights"),
        ((runs[0], tmp_path / "no.jpg"), {}, "no such image or folder: .*no.jpg"),
        ((runs[0], tmp_path / "none"), {}, "none has no images; name a folder of images"),
        ((tmp_path / "no.safetensors", image), {}, "no such run folder or weights file: .*no.safetensors"),
        ((old, image), {}, "old/best.safetensors does not say how images are prepared.*; give the mean .* --mean FILE"),
        ((runs[0], image), {"mean": "1,2,3"}, "--mean 1,2,3: all files know their mean; leave it out"),
        ((old, image), {"mean": "no.npy"}, "no such file: no.npy"),
        ((runs[0], stranger, image), {}, "stranger/best.safetensors has other classes than .*the same classes"),
        ((runs[0], image), {"top": 0}, "--top must be at least 1, got 0"),
        ((runs[0], image), {"batch_size": 0}, "--batch-size must be at least 1, got 0"),
        ((runs[0], image), {"csv": Path("there.csv")}, "there.csv exists already; choose another file, or add --force"),
        ((runs[0], image), {"csv": Path("no/p.csv")}, "the folder no does not exist; create it first"),
        ((runs[0], image), {"picture": Path("p.jpg")}, "p.jpg must end with .png, got '.jpg'"),
        ((runs[0], image), {"csv": Path("p.csv"), "json": Path("p.csv")}, "--json and --csv name the same file"),
        ((runs[0], image), {"device": "cpu,cpu"}, "predict computes on one device, got cpu,cpu"),
        ((runs[0], *[stored] * 10), {"picture": Path("p.png")}, "--picture holds 64 images at most, got 70"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            predict_and_report(PredictOptions(paths, **{"device": "cpu", **options}))
    for colour in ("0,0,256", "1,2", "1,2,3,4", "red", "1,-2,3", ""):
        with pytest.raises(DatasetError, match="--background must be three numbers from 0 to 255, such as 255,255,255"):
            predict_and_report(PredictOptions((runs[0], image), device="cpu", background=colour))
    assert (tmp_path / "there.csv").read_bytes() == b""


def test_classes_with_words_are_shown_in_words(runs, photos, tmp_path, capsys):
    """As of a network that was trained on ILSVRC's archives; files keep the names of the classes, too."""
    spec, record = load_spec(runs[0] / "best.safetensors"), load_record(runs[0] / "best.safetensors")
    words = ("crane, wading bird", "tench, Tinca tinca", "crane")
    path = tmp_path / "words.safetensors"
    save_weights(path, dict(load(runs[0]).named_parameters()), spec, replace(record, words=words))
    predict_and_report(PredictOptions((path, photos), json=tmp_path / "p.json", csv=tmp_path / "p.csv", device="cpu"))
    out, model = capsys.readouterr().out, load(path)
    names = dict(zip(spec.classes, (f"crane ({spec.classes[0]})", "tench", f"crane ({spec.classes[2]})"), strict=True))
    assert model.words == words
    written, rows = json.loads((tmp_path / "p.json").read_text()), csv.DictReader((tmp_path / "p.csv").open())
    for line, entry, row in zip(out.splitlines(), written["images"], rows, strict=False):
        (expected,) = load(runs[0]).predict(entry["file"])
        assert [found["class"] for found in entry["predictions"]] == list(expected.classes)
        assert [found["name"] for found in entry["predictions"]] == [names[label] for label in expected.classes]
        assert row["class_1"] == expected.classes[0]
        assert f"{expected.probabilities[0]:.1%} {names[expected.classes[0]]}" in line
    assert expected.names == expected.classes

"""Features of image files: exact pixels, every format, and what is refused."""

import csv
import json
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import loadmat

import fastalex
from dataloading import DatasetError
from fastalex.errors import ConfigurationError
from fastalex.evaluation.feature_options import FeaturesOptions, resolve
from fastalex.evaluation.features import bytes_needed, extract
from fastalex.network.variation import Variation
from fastalex.prediction.preprocessing import UnusableImage
from tests.dataloading.owning import fill, small_disk
from tests.fastalex.commands import command_here
from tests.fastalex.conftest import save_run
from tests.fastalex.evaluation.conftest import HERE

NAMES = ("conv1", "conv2.pool", "fc7")


@pytest.fixture(scope="module")
def run(prepared, tmp_path_factory) -> Path:
    """A run whose weights describe themselves."""
    return save_run(tmp_path_factory.mktemp("exact") / "run", prepared, with_record=True)


@pytest.fixture
def stimuli(tmp_path: Path) -> Path:
    """Line drawings of the network's own size, without a class, one in a subfolder; five, no multiple of a batch."""
    folder, generator = tmp_path / "stimuli", np.random.default_rng(7)
    (folder / "more").mkdir(parents=True)
    for name in ("img1.png", "img10.png", "img2.png", "more/a.png", "more/b.png"):
        pixels = np.full((224, 224, 3), 255, np.uint8)
        for position in generator.integers(0, 224, 30):
            pixels[position, :, generator.integers(3)] = 0
            pixels[:, position] = 0
        Image.fromarray(pixels).save(folder / name)
    return folder


IN_ORDER = ("img1.png", "img2.png", "img10.png", "more/a.png", "more/b.png")


def features(run: Path, data: Path, output: Path, names: tuple[str, ...] = NAMES, **options: object) -> None:
    extract(HERE, resolve(FeaturesOptions(run, data, names, output, devices="cpu", batch_size=3, **options)))


def test_pixels_reach_the_network_unchanged(run, stimuli, tmp_path):
    features(run, stimuli, tmp_path / "out", resize="none")
    model = fastalex.load(run)
    mean = model.preprocess.record.mean[16:240, 16:240]
    pixels = np.stack([np.asarray(Image.open(stimuli / name)) for name in IN_ORDER])
    images = torch.from_numpy(pixels - mean).permute(0, 3, 1, 2)
    with torch.inference_mode():
        expected = model.activations(images, NAMES)
    for name, value in expected.items():
        found = torch.from_numpy(np.load(tmp_path / "out" / f"{name}.npy"))
        torch.testing.assert_close(found, value, rtol=1e-6, atol=1e-6 * float(value.abs().max()))
    rows = list(csv.DictReader((tmp_path / "out" / "samples.csv").open()))
    assert [(row["row"], row["file"]) for row in rows] == [(str(row), name) for row, name in enumerate(IN_ORDER)]
    about = json.loads((tmp_path / "out" / "features.json").read_text())
    assert (about["resize"], about["crop"], about["images"]) == ("none", "centre", 5)
    assert about["mean_image"] == str((run / "best.safetensors").resolve())


def test_by_default_they_are_prepared_as_the_training_images(run, class_folders, tmp_path):
    """Also photographs in class folders, which are not prepared into a data set."""
    features(run, class_folders / "val", tmp_path / "out", ("fc8",))
    model = fastalex.load(run)
    files = sorted((class_folders / "val").glob("*/*.jpg"))
    with torch.inference_mode():
        expected = model(torch.stack([model.preprocess(path) for path in files]))
    found = torch.from_numpy(np.load(tmp_path / "out" / "fc8.npy"))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert not list(tmp_path.glob("prepared*"))


def test_every_architecture_and_a_single_image(prepared, stimuli, tmp_path):
    """Those that divide images by constants, too."""
    for name, size in (("owt", 224), ("four-layer", 32)):
        variation = Variation(width=1 / 16) if name == "owt" else Variation()
        run = save_run(tmp_path / name, prepared, with_record=True, architecture=name, variation=variation)
        features(run, stimuli / "img1.png", tmp_path / f"{name}-out", ("conv1",))
        model = fastalex.load(run)
        with torch.inference_mode():
            expected = model.activations(model.preprocess(stimuli / "img1.png")[None], "conv1")["conv1"]
        found = torch.from_numpy(np.load(tmp_path / f"{name}-out" / "conv1.npy"))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
        assert model.architecture.image_size == size


def test_a_list_gives_the_order(run, stimuli, tmp_path):
    (stimuli / "list.txt").write_text("more/b.png\n\nimg2.png\n" + str(stimuli / "img1.png") + "\n")
    features(run, stimuli / "list.txt", tmp_path / "some", ("fc7",))
    features(run, stimuli, tmp_path / "all", ("fc7",))
    some, every = (np.load(tmp_path / name / "fc7.npy") for name in ("some", "all"))
    np.testing.assert_allclose(some, every[[4, 1, 0]], rtol=1e-5, atol=1e-5)
    rows = list(csv.DictReader((tmp_path / "some" / "samples.csv").open()))
    assert [row["file"] for row in rows] == ["more/b.png", "img2.png", "img1.png"]


def test_hdf5_and_matlab_files_hold_the_same(run, stimuli, tmp_path):
    for kind in ("npy", "h5", "mat"):
        features(run, stimuli, tmp_path / kind, format=kind)
        assert {path.suffix for path in (tmp_path / kind).iterdir()} == {f".{kind}", ".csv", ".json"}
    about = json.loads((tmp_path / "h5" / "features.json").read_text())
    assert about["activations"] == {name: f"{name}.h5" for name in NAMES}
    files = [row["file"] for row in csv.DictReader((tmp_path / "npy" / "samples.csv").open())]
    for name in NAMES:
        expected = np.load(tmp_path / "npy" / f"{name}.npy")
        with h5py.File(tmp_path / "h5" / f"{name}.h5") as file:
            assert np.array_equal(file["activations"][:], expected)
            assert file["files"].asstr()[:].tolist() == files
        matlab = loadmat(tmp_path / "mat" / f"{name}.mat")
        assert np.array_equal(matlab["activations"], expected)
        assert [cell.item() for cell in matlab["files"][:, 0]] == files


@pytest.mark.parametrize("kind", ["h5", "mat"])
def test_a_disk_that_is_full_when_a_file_is_converted(run, stimuli, tmp_path, kind):
    with small_disk(tmp_path / "disk", "256k") as disk:
        asked = {"names": ("conv2",), "devices": "cpu", "batch_size": 3, "format": kind}
        extraction = resolve(FeaturesOptions(run, stimuli, output=disk / "out", **asked))
        needed = bytes_needed(extraction)
        fill(disk, left=needed + 3 * 4096)  # the .npy file, and no other of its size
        with pytest.raises(ConfigurationError, match=rf"conv2\.{kind}: No space left on device; nothing was written"):
            extract(HERE, extraction)
        assert [path.name for path in disk.iterdir()] == ["ballast"]
        with pytest.raises(ConfigurationError, match=r"out needs .*iB, but only .* are free in "):
            resolve(FeaturesOptions(run, stimuli, output=disk / "out", **asked))


@pytest.mark.parametrize(
    ("options", "size"),
    [({}, 256), ({"resize": "squash"}, 256), ({"crop": False}, 224), ({"crop": False, "resize": "squash"}, 224)],
)
def test_resizing(run, tmp_path, options, size):
    """An image of four quarters, seen whole, by its centre, or squeezed."""
    quarters = np.zeros((400, 800, 3), np.uint8)
    quarters[:, 300:500] = (250, 0, 0)  # the middle half of the centre square
    (tmp_path / "in").mkdir()
    Image.fromarray(quarters).save(tmp_path / "in" / "a.png")
    extraction = resolve(FeaturesOptions(run, tmp_path / "in", ("fc7",), tmp_path / "out", devices="cpu", **options))
    red = extraction.images.preprocessing.stored(tmp_path / "in" / "a.png")[..., 0]
    assert red.shape == (size, size)
    share = (red > 125).mean()
    assert share == pytest.approx(0.25 if options.get("resize") == "squash" else 0.5, abs=0.01)


def test_the_command_reads_files_without_dali(run, stimuli, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    arguments = ["fastalex.features", run, stimuli, "fc7", "-o", "out", "--devices", "cpu", "--resize", "none"]
    code, out, err = command_here(tmp_path, *arguments)
    assert (code, err) == (0, "")
    assert f"images   {stimuli}: 5 images" in out
    assert np.load(tmp_path / "out" / "fc7.npy").shape == (5, 256)


def test_an_image_that_cannot_be_used_ends_the_extraction(run, stimuli, tmp_path):
    """Every row belongs to a file, so none is left out silently."""
    (stimuli / "img3.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    with pytest.raises(UnusableImage, match=r"img3.png is no image that can be used"):
        features(run, stimuli, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_refused(run, prepared, stimuli, tmp_path, monkeypatch):
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "wrong.txt").write_text("stimuli/img1.png\nnone.png\n")
    (tmp_path / "small").mkdir()
    (tmp_path / "nothing").mkdir()
    Image.new("RGB", (100, 300)).save(tmp_path / "small" / "a.png")
    monkeypatch.setattr("fastalex.evaluation.feature_files.LARGEST_MAT", 5000)
    for data, options, message in (
        (stimuli, {"split": "val"}, "--split names a part of a prepared data set, and .*stimuli is not one; .*/val"),
        (prepared, {"resize": "none"}, "--resize is for files; the images of .* are prepared, leave it out"),
        (prepared, {"crop": False}, "--no-crop is for files"),
        (tmp_path / "empty.txt", {}, "empty.txt lists no images; write one file name per line"),
        (tmp_path / "wrong.txt", {}, "wrong.txt, line 2: no such image: .*none.png"),
        (tmp_path / "nothing", {}, "nothing is empty; name a folder of images, a list of images, or a prepared"),
        (tmp_path / "small", {"resize": "none"}, "a.png has 100 x 300 pixels; the network takes at least 224 x 224"),
        (stimuli, {"format": "mat", "dtype": "float16"}, ".mat files hold no float16"),
        (stimuli, {"format": "mat"}, "holds arrays of 5,000 bytes at most, got 5,120; choose fewer images, or .h5"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            features(run, data, tmp_path / "out", ("fc7",), **options)
    with pytest.raises(DatasetError, match=r"--background must be three numbers from 0 to 255, .* got '1,2'"):
        features(run, stimuli, tmp_path / "out", background="1,2")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ConfigurationError, match="h5py is not installed; install it with"):
        features(run, stimuli, tmp_path / "out", format="h5")

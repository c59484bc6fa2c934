"""The methods before 2012: their formulas, and the whole command on small real JPEG files."""

import json
import math
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dataloading
from dataloading.progress import ProgressReport
from fastalex.errors import ConfigurationError
from fastalex.handcrafted.classify import Traditional, classify
from fastalex.handcrafted.descriptors import HOG_LENGTH, dense_sift, hog
from fastalex.handcrafted.fisher_vectors import FisherEncoder
from fastalex.handcrafted.linear_svm import LinearClassifier, train_linear
from fastalex.handcrafted.options import BaselineOptions, run_baseline
from tests.dataloading.damage import copied, overwritten
from tests.fastalex.test_commands import command, refused


def texture(kind: int, random: np.random.Generator, size: int = 64) -> np.ndarray:
    """Stripes of a class's direction, of random phase and width, under noise: grey, size x size."""
    y, x = np.mgrid[:size, :size]
    angle, width = math.pi * kind / 3, random.uniform(6, 9)
    waves = np.sin(2 * math.pi * (x * math.cos(angle) + y * math.sin(angle)) / width + random.uniform(0, 6))
    return np.clip(128 + 60 * waves + random.normal(0, 25, (size, size)), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def textures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of striped JPEG files, 15 for training and 6 for validation each, prepared at 64 pixels."""
    folder, random = tmp_path_factory.mktemp("textures"), np.random.default_rng(5)
    for split, count in (("train", 15), ("val", 6)):
        for kind, name in enumerate(("flat", "steep", "upright")):
            (folder / "in" / split / name).mkdir(parents=True)
            for number in range(count):
                Image.fromarray(texture(kind, random)).save(folder / "in" / split / name / f"{number}.jpg")
    dataloading.prepare_dataset(folder / "in", folder / "out", size=64, workers=0, progress=False)
    return folder / "out"


# --- descriptors ------------------------------------------------------------------------------------------------------


def test_sift_patches_cover_the_image_at_five_scales():
    descriptors, heights = dense_sift(np.random.default_rng(0).integers(0, 256, (256, 256), dtype=np.uint8))
    sides = [256, 181, 128, 91, 64]
    assert descriptors.shape == (sum(((side - 24) // 6 + 1) ** 2 for side in sides), 128)
    assert descriptors.dtype == np.float32
    assert np.abs(np.linalg.norm(descriptors, axis=1) - 1).max() < 0.01
    assert heights[0] == np.float32(12 / 256)
    assert heights.max() <= 1 - 12 / 256


def test_sift_tells_directions_and_not_brightness_or_contrast():
    upright = np.tile((120 + 60 * np.sin(np.arange(64))).astype(np.uint8), (64, 1))
    found, _ = dense_sift(upright)
    energy = (found**2).sum(0).reshape(16, 8).sum(0)  # bins of 45 degrees; stripes have gradients to left and right
    assert energy[[0, 4]].sum() > 0.99 * energy.sum()
    paler, _ = dense_sift(upright // 2 + 90)
    assert (found * paler).sum(1).mean() > 0.98
    flat, _ = dense_sift(np.full((64, 64), 7, dtype=np.uint8))
    assert not flat.any()


def test_hog_has_length_1_and_tells_directions():
    random = np.random.default_rng(0)
    first, second, other = (hog(np.repeat(texture(kind, random, 256)[..., None], 3, 2)) for kind in (0, 0, 1))
    assert first.shape == (HOG_LENGTH,)
    assert np.linalg.norm(first) == pytest.approx(1, abs=1e-5)
    assert first @ second > first @ other + 0.2
    assert not hog(np.zeros((64, 64, 3), dtype=np.uint8)).any()


# --- Fisher vectors ---------------------------------------------------------------------------------------------------


def encoder(gaussians: int = 3, dimensions: int = 4, inputs: int = 6, *, stripes: bool) -> FisherEncoder:
    random = np.random.default_rng(3)
    weights = random.dirichlet(np.ones(gaussians))
    axes, _ = np.linalg.qr(random.normal(size=(inputs, dimensions)))
    means, deviations = random.normal(size=(2, gaussians, dimensions))
    arrays = random.normal(size=inputs), axes, weights, means, 0.5 + np.abs(deviations)
    return FisherEncoder(*(array.astype(np.float32) for array in arrays), stripes=stripes)


def by_the_formula(encoder: FisherEncoder, descriptors: np.ndarray) -> list[float]:
    """One number after another, in double precision."""
    weights, means, deviations = (
        array.astype(np.float64) for array in (encoder.weights, encoder.means, encoder.deviations)
    )
    points = [(descriptor - encoder.centre.astype(np.float64)) @ encoder.axes for descriptor in descriptors]
    gaussians, dimensions = means.shape
    gamma = []
    for x in points:
        density = [
            weights[k]
            * math.prod(
                math.exp(-((x[d] - means[k, d]) ** 2) / (2 * deviations[k, d] ** 2))
                / (math.sqrt(2 * math.pi) * deviations[k, d])
                for d in range(dimensions)
            )
            for k in range(gaussians)
        ]
        gamma.append([value / sum(density) for value in density])
    vector = []
    for power in (1, 2):
        for k in range(gaussians):
            for d in range(dimensions):
                total = 0.0
                for x, share in zip(points, gamma, strict=True):
                    z = (x[d] - means[k, d]) / deviations[k, d]
                    total += share[k] * (z if power == 1 else (z**2 - 1) / math.sqrt(2))
                vector.append(total / (len(points) * math.sqrt(weights[k])))
    rooted = [math.copysign(math.sqrt(abs(value)), value) for value in vector]
    length = math.sqrt(sum(value**2 for value in rooted))
    return [value / length for value in rooted]


def test_a_fisher_vector_is_that_of_the_formula():
    descriptors = np.random.default_rng(1).normal(size=(30, 6)).astype(np.float32)
    plain = encoder(stripes=False)
    found = plain.encode(descriptors, np.zeros(30, dtype=np.float32))
    assert found.dtype == np.float32
    assert found.shape == (plain.length,)
    assert found == pytest.approx(by_the_formula(plain, descriptors), abs=1e-5)


def test_stripes_are_fisher_vectors_of_the_thirds():
    descriptors = np.random.default_rng(1).normal(size=(30, 6)).astype(np.float32)
    heights = np.random.default_rng(2).random(30, dtype=np.float32)
    striped = encoder(stripes=True)
    found = striped.encode(descriptors, heights).reshape(4, -1) * 2
    assert found[0] == pytest.approx(by_the_formula(striped, descriptors), abs=1e-5)
    for number, (low, high) in enumerate(((0, 1 / 3), (1 / 3, 2 / 3), (2 / 3, 1))):
        here = descriptors[(heights >= low) & (heights < high)]
        assert found[1 + number] == pytest.approx(by_the_formula(striped, here), abs=1e-5)


def test_gaussians_are_found_where_the_descriptors_are():
    random = np.random.default_rng(0)
    centres = random.normal(size=(3, 128)) * 5
    which = random.integers(0, 3, 3000)
    fitted = FisherEncoder.fit((centres[which] + random.normal(size=(3000, 128))).astype(np.float32), 3, seed=0)
    assert fitted.axes.shape == (128, 64)
    assert np.sort(fitted.weights) == pytest.approx(np.sort(np.bincount(which) / 3000), abs=1e-3)
    rebuilt = fitted.means @ fitted.axes.T + fitted.centre
    for centre in centres:
        assert np.linalg.norm(rebuilt - centre, axis=1).min() < 1


# --- classifiers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 7])
def test_separable_classes_are_learnt(classes):
    random = np.random.default_rng(0)
    labels = random.integers(0, classes, 400).astype(np.int32)
    features = (np.eye(20)[labels] + 0.1 * random.normal(size=(400, 20))).astype(np.float32)
    classifier = train_linear(features[:300], labels[:300], classes, seed=0, threads=1, shown=False)
    metrics = classifier.errors(features[300:], labels[300:])
    assert (metrics.top1_error, metrics.top5_error, metrics.images) == (0, 0, 100)
    wrong = classifier.errors(features[300:], (labels[300:] + 1) % classes)
    assert wrong.top1_error == 100


def test_a_class_that_never_occurs_harms_no_other():
    labels = np.array([0, 2] * 20, dtype=np.int32)
    features = np.eye(3, dtype=np.float32)[labels]
    silent = ProgressReport("", None, shown=False)
    assert (
        LinearClassifier(3, 1e-4, seed=0, threads=1).fit(features, labels, silent).errors(features, labels).top1_error
        == 0
    )


# --- the whole --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("features", ["sift", "hog"])
def test_textures_are_told_apart_with_any_number_of_threads(features, textures, tmp_path):
    dataset = dataloading.Dataset(textures)
    results = [
        classify(dataset, Traditional(features, gaussians=4, threads=threads), "val", tmp_path, shown=False)
        for threads in (1, 3)
    ]
    assert results[0] == results[1]
    assert results[0].metrics.top1_error <= 10  # chance is 67
    assert results[0].metrics.images == 18
    assert list(tmp_path.iterdir()) == []


def test_the_command_prints_the_papers_figures_beside_and_writes_a_record(textures, tmp_path):
    arguments = [textures, "--features", "hog", "--output", "out"]
    code, out, err = command(tmp_path, "fastalex.baseline", *arguments)
    assert code == 0, err
    record = json.loads((tmp_path / "out/baseline.json").read_text())
    assert (record["features"], record["images"], record["training_images"], record["seed"]) == ("hog", 18, 45, 0)
    assert f"{record['top1_error']:.2f} %" in out
    for figure in ("45.70 %", "25.70 %", "37.50 %", "17.00 %", "ILSVRC-2010 test"):
        assert figure in out
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["baseline.json"]
    assert "out exists already" in refused(tmp_path, "fastalex.baseline", *arguments)


def test_a_training_run_joins_the_table(textures, config, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    about = {"kind": "val", "step": 1, "top5_error": 0.5, "images": 18}
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
        ({"features": "surf"}, "--features is 'surf'; sift or hog is wanted"),
        ({"gaussians": 46}, "has 45 training images, fewer than 46 Gaussians; lower --gaussians"),
        ({"gaussians": 0}, "--gaussians is 0"),
        ({"threads": 0}, "--threads is 0"),
        ({"seed": -1}, "--seed is -1"),
        ({"split": "test"}, "has no part 'test' to measure errors on; it has val"),
        ({"split": "train"}, "has no part 'train' to measure errors on"),
        ({"data": Path("synthetic")}, "synthetic images show nothing"),
        ({"run": Path("nowhere")}, "nowhere is not a run folder"),
    ],
)
def test_options_that_do_not_fit(textures, tmp_path, options, message):
    with pytest.raises(ConfigurationError, match=message):
        run_baseline(BaselineOptions(**{"data": textures, "gaussians": 4, "output": tmp_path / "out"} | options))
    assert not (tmp_path / "out").exists()


def test_one_class_and_tiny_images_are_refused(tmp_path):
    for size, kinds in ((32, ("a", "b")), (64, ("a",)), (65, ("a", "b"))):
        for split in ("train", "val"):
            for name in kinds:
                (tmp_path / f"in{size}" / split / name).mkdir(parents=True)
                Image.new("RGB", (64, 64)).save(tmp_path / f"in{size}" / split / name / "1.jpg")
        if size == 65:
            (tmp_path / "in65" / "train" / "b" / "1.jpg").write_bytes(b"?")  # and is rejected
        source, dest = tmp_path / f"in{size}", tmp_path / f"out{size}"
        dataloading.prepare_dataset(source, dest, size=size, workers=0, progress=False)
    with pytest.raises(ConfigurationError, match=r"has 1 class; a classifier needs 2 or more"):
        run_baseline(BaselineOptions(tmp_path / "out64", gaussians=1))
    with pytest.raises(ConfigurationError, match=r"has 1 images in its part 'train'; 2 or more are wanted"):
        run_baseline(BaselineOptions(tmp_path / "out65", features="hog"))
    with pytest.raises(ConfigurationError, match=r"images of 32 pixels; dense SIFT wants 48 or more"):
        run_baseline(BaselineOptions(tmp_path / "out32", gaussians=1))


def test_a_damaged_image_is_named_and_leaves_no_folder_behind(textures, tmp_path):
    overwritten(copied(textures, tmp_path / "data"), "val", 7, b"?")
    with pytest.raises(dataloading.DatasetError, match=r"sample 7 of val .* is damaged"):
        run_baseline(BaselineOptions(tmp_path / "data", features="hog", output=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_without_opencv_the_remedy_is_named(textures, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ConfigurationError, match=r"OpenCV is not installed; install it with: .*fastalex\[baseline\]"):
        run_baseline(BaselineOptions(textures))

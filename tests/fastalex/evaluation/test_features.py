"""Activations in files against those from memory, and evaluation over stages against one device."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import dataloading
from fastalex import load_model
from fastalex.errors import ConfigurationError, Interrupted
from fastalex.evaluation.ensemble import Evaluation, EvaluationResult, evaluate
from fastalex.evaluation.feature_options import FeaturesOptions, resolve
from fastalex.evaluation.features import Extraction, extract
from fastalex.evaluation.trained_network import TrainedNetwork
from fastalex.parallel.launch import run_workers
from fastalex.parallel.world import World
from fastalex.training.config import RunConfig
from tests.fastalex import workers
from tests.fastalex.conftest import save_run

HERE = World(0, 1, torch.device("cpu"))
NAMES = ("conv1.pool", "conv2", "conv4.conv", "fc6.activation", "fc7", "fc8")


@pytest.fixture(scope="module")
def runs(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two runs whose networks take crops of other sizes."""
    folder = tmp_path_factory.mktemp("runs")
    return save_run(folder / "one", prepared), save_run(folder / "two", prepared, architecture="caffe")


def test_files_hold_the_activations_of_every_image(runs, prepared, tmp_path):
    output = tmp_path / "features"
    extraction, _ = resolve(FeaturesOptions(runs[0], prepared, NAMES, output, devices="cpu", batch_size=4))
    extract(HERE, extraction)
    model, description = load_model(runs[0] / "best.safetensors")
    dataset = dataloading.Dataset(prepared)
    loader = dataloading.Loader(dataset, "val", 7, shuffle=False, augment=None, drop_last=False)
    with torch.no_grad():
        expected = model.activations(next(loader.epoch(0)).images, NAMES)
    for name, value in expected.items():
        found = np.load(output / f"{name}.npy", mmap_mode="r")
        assert found.dtype == np.float32
        torch.testing.assert_close(torch.from_numpy(np.array(found)), value)  # in batches of 4 and 3: other roundings
    rows = list(csv.DictReader((output / "samples.csv").open()))
    assert [row["sample"] for row in rows] == [dataset.key("val", sample) for sample in range(7)]
    assert [row["file"] for row in rows] == [dataset.source("val", sample) for sample in range(7)]
    assert rows[0]["file"] == "val/blue/000.jpg"
    assert [row["class"] for row in rows] == [dataset.classes[label] for label in dataset.labels("val")]
    about = json.loads((output / "features.json").read_text())
    assert about["network"] == description.summary()
    assert about["activations"] == {name: f"{name}.npy" for name in NAMES}
    assert {path.suffix for path in output.iterdir()} == {".npy", ".csv", ".json"}
    with pytest.raises(ConfigurationError, match="features exists already; choose another --output"):
        resolve(FeaturesOptions(runs[0], prepared, NAMES, output, devices="cpu"))


def test_stimuli_need_neither_classes_nor_a_validation_set(runs, class_folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stimuli = tmp_path / "stimuli" / "all"
    stimuli.mkdir(parents=True)
    for number, path in enumerate(sorted(class_folders.glob("val/*/*.jpg"))):
        (stimuli / f"{number}.jpg").write_bytes(path.read_bytes())
    options = FeaturesOptions(runs[0], stimuli.parent, ("fc7",), tmp_path / "out", devices="cpu")
    extraction, _ = resolve(options)
    extract(HERE, extraction)
    assert np.load(tmp_path / "out" / "fc7.npy").shape == (7, 256)
    about = json.loads((tmp_path / "out" / "features.json").read_text())
    assert about["mean_image"] == str(Path(RunConfig.load(runs[0]).data).resolve())  # not the stimuli's own


def test_nothing_is_left_of_an_interrupted_extraction(runs, prepared, tmp_path):
    options = FeaturesOptions(runs[0], prepared, ("fc7",), tmp_path / "features", devices="cpu", batch_size=4)
    with pytest.raises(Interrupted, match="nothing was written"):
        extract(World(0, 1, torch.device("cpu"), signal_number=2), resolve(options)[0])
    assert list(tmp_path.iterdir()) == []


def test_what_is_refused(runs, prepared, tmp_path):
    for names, options, message in (
        (("conv9",), {}, "no activation named conv9; there are conv1.conv, conv1.pool"),
        ((), {}, "name at least one activation"),
        (("fc7",), {"split": "test"}, "no images in split 'test'"),
        (("fc7",), {"batch_size": 0}, "--batch-size is 0"),
        (("fc7",), {"run": tmp_path / "nothing"}, "no such run folder"),
    ):
        asked = {"run": runs[0], "data": prepared, "output": tmp_path / "features", **options}
        with pytest.raises(ConfigurationError, match=message):
            resolve(FeaturesOptions(names=names, **asked))


def test_two_stages_give_what_one_device_gives(runs, prepared, tmp_path, monkeypatch):
    """Ten crops of two networks with fitted coefficients, and activations on both sides of the cut."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    networks = tuple(TrainedNetwork.find(run) for run in runs)
    evaluation = Evaluation(networks, str(prepared), "val", 10, None, "train", 4, "fp32")
    outputs = [tmp_path / "alone", tmp_path / "staged"]
    extractions = [
        Extraction(networks[0], str(prepared), "val", NAMES, output, "float16", 4, "fp32") for output in outputs
    ]
    path = tmp_path / "judgement.pt"
    run_workers(workers.evaluate_and_extract, (evaluation, extractions[1], path), [HERE.device] * 2)
    staged = torch.load(path, weights_only=False)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = evaluate(HERE, evaluation)
        extract(HERE, extractions[0])
    finally:
        torch.set_num_threads(threads)
    assert isinstance(alone, EvaluationResult)
    assert staged.coefficients == pytest.approx(alone.coefficients, abs=1e-6)
    for name in ("labels", "top1_misses", "top5_misses", "top_classes"):
        assert torch.equal(getattr(staged.predictions, name), getattr(alone.predictions, name)), name
    for name in ("top_probabilities", "losses", "members"):
        # Micro-batches of 2 against a batch of 4: fp32 roundings in another order.
        found, expected = getattr(staged.predictions, name), getattr(alone.predictions, name)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    for name in NAMES:
        found, expected = (np.load(output / f"{name}.npy") for output in reversed(outputs))
        assert found.dtype == np.float16
        np.testing.assert_allclose(found, expected, rtol=2e-3, err_msg=name)  # one rounding to 11 bits
    assert (outputs[1] / "samples.csv").read_text() == (outputs[0] / "samples.csv").read_text()

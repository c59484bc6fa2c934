"""Activations in files against those in memory, and two stages against one device."""

import csv
import errno
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import dataloading
from fastalex.errors import ConfigurationError, Interrupted
from fastalex.evaluation.ensemble import Evaluation, EvaluationResult, evaluate
from fastalex.evaluation.feature_options import FeaturesOptions, resolve
from fastalex.evaluation.features import Extraction, bytes_needed, discard_unfinished, extract
from fastalex.evaluation.image_sources import PreparedImages
from fastalex.evaluation.trained_network import TrainedNetwork, inference_plan
from fastalex.network.weights import load_model
from fastalex.parallel.launch import run_workers
from fastalex.parallel.world import World
from tests.dataloading.owning import another_owner, fill, small_disk
from tests.fastalex import workers
from tests.fastalex.evaluation.conftest import HERE

NAMES = ("conv1.pool", "conv2", "conv4.conv", "fc6.activation", "fc7", "fc8")


def test_files_hold_the_activations_of_every_image(runs_of_two_sizes, prepared, tmp_path):
    output = tmp_path / "features"
    extraction = resolve(FeaturesOptions(runs_of_two_sizes[0], prepared, NAMES, output, devices="cpu", batch_size=4))
    extract(HERE, extraction)
    model, spec = load_model(runs_of_two_sizes[0] / "best.safetensors")
    dataset = dataloading.Dataset(prepared)
    loader = dataloading.Loader(dataset, "val", 7, shuffle=False, augment=None, drop_last=False)
    with torch.no_grad():
        expected = model.activations(next(loader.epoch(0)).images, NAMES)
    for name, value in expected.items():
        found = np.load(output / f"{name}.npy", mmap_mode="r")
        assert found.dtype == np.float32
        torch.testing.assert_close(torch.from_numpy(np.array(found)), value)  # batches of 4 and 3 round differently
    sizes = sum(np.load(output / f"{name}.npy", mmap_mode="r").nbytes for name in NAMES)
    assert bytes_needed(extraction) == sizes
    assert bytes_needed(replace(extraction, dtype="float16")) == sizes // 2
    rows = list(csv.DictReader((output / "samples.csv").open()))
    assert [row["sample"] for row in rows] == [dataset.key("val", sample) for sample in range(7)]
    assert [row["file"] for row in rows] == [dataset.source("val", sample) for sample in range(7)]
    assert rows[0]["file"] == "val/blue/000.jpg"
    assert [row["class"] for row in rows] == [dataset.classes[label] for label in dataset.labels("val")]
    description = json.loads((output / "features.json").read_text())
    assert description["network"] == spec.summary()
    assert description["activations"] == {name: f"{name}.npy" for name in NAMES}
    assert {path.suffix for path in output.iterdir()} == {".npy", ".csv", ".json"}
    with pytest.raises(ConfigurationError, match="features exists already; choose another --output"):
        resolve(FeaturesOptions(runs_of_two_sizes[0], prepared, NAMES, output, devices="cpu"))


def test_nothing_is_left_of_an_interrupted_extraction(runs_of_two_sizes, prepared, tmp_path):
    options = FeaturesOptions(
        runs_of_two_sizes[0], prepared, ("fc7",), tmp_path / "features", devices="cpu", batch_size=4
    )
    with pytest.raises(Interrupted, match="nothing was written"):
        extract(World(0, 1, torch.device("cpu"), signal_number=2), resolve(options))
    assert list(tmp_path.iterdir()) == []


def test_two_stages_give_the_results_of_one_device(runs_of_two_sizes, prepared, tmp_path, monkeypatch):
    """Ten crops of two networks with fitted coefficients, and activations on both sides of the split."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    networks = tuple(TrainedNetwork.find(run) for run in runs_of_two_sizes)
    one, two = (
        [inference_plan([HERE.device] * count, 1, network.spec.build_architecture(), 4) for network in networks]
        for count in (1, 2)
    )
    here = Evaluation(networks, tuple(one), str(prepared), "val", 10, None, "train", 4, "fp32")
    evaluation = replace(here, plans=tuple(two))
    outputs = [tmp_path / "alone", tmp_path / "staged"]
    extractions = [
        Extraction(
            networks[0], plans[0], PreparedImages(str(prepared), "val"), NAMES, output, "float16", "npy", 4, "fp32"
        )
        for plans, output in zip((one, two), outputs, strict=True)
    ]
    path = tmp_path / "result.pt"
    run_workers(workers.evaluate_and_extract, (evaluation, extractions[1], path), [HERE.device] * 2)
    staged = torch.load(path, weights_only=False)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = evaluate(HERE, here)
        extract(HERE, extractions[0])
    finally:
        torch.set_num_threads(threads)
    assert isinstance(alone, EvaluationResult)
    assert staged.coefficients == pytest.approx(alone.coefficients, abs=1e-6)
    for name in ("labels", "top1_misses", "top5_misses", "top_classes"):
        assert torch.equal(getattr(staged.predictions, name), getattr(alone.predictions, name)), name
    for name in ("top_probabilities", "losses", "network_counts"):
        # Micro-batches of 2 against a batch of 4: fp32 rounds differently.
        found, expected = getattr(staged.predictions, name), getattr(alone.predictions, name)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    for name in NAMES:
        found, expected = (np.load(output / f"{name}.npy") for output in reversed(outputs))
        assert found.dtype == np.float16
        np.testing.assert_allclose(found, expected, rtol=2e-3, err_msg=name)  # one rounding to 11 bits
    assert (outputs[1] / "samples.csv").read_text() == (outputs[0] / "samples.csv").read_text()


def options_for(run: Path, data: Path, output: Path) -> FeaturesOptions:
    return FeaturesOptions(run, data, ("fc7",), output, devices="cpu")


def test_a_link_or_a_mount_point_gets_the_results(runs_of_two_sizes, prepared, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to("elsewhere")
    (tmp_path / "dangling").symlink_to("new")
    with small_disk(tmp_path / "disk", "8m") as disk:
        (disk / "lost+found").mkdir()
        for output in (tmp_path / "link", tmp_path / "dangling", disk):
            extract(HERE, resolve(options_for(runs_of_two_sizes[0], prepared, output)))
            assert np.load(output / "fc7.npy").shape == (7, 256)
            assert not (output / ".unfinished").exists()


def test_a_full_disk_ends_an_extraction_with_one_line_and_leaves_nothing(runs_of_two_sizes, prepared, tmp_path):
    with small_disk(tmp_path / "disk", "128k") as disk:
        options = replace(options_for(runs_of_two_sizes[0], prepared, disk / "out"), names=("conv2",))
        extraction = resolve(options)
        fill(disk, left=16384)  # the first and the last page of the file, but not all between them
        with pytest.raises(ConfigurationError, match=r"conv2\.npy: No space left on device; nothing was written"):
            extract(HERE, extraction)
        assert [path.name for path in disk.iterdir()] == ["ballast"]


def test_two_extractions_do_not_mix(runs_of_two_sizes, prepared, tmp_path):
    extraction = resolve(options_for(runs_of_two_sizes[0], prepared, tmp_path / "out"))
    (tmp_path / "out" / ".unfinished").mkdir(parents=True)
    (tmp_path / "out" / ".unfinished" / "theirs.npy").touch()
    with another_owner(tmp_path / "out") as process:
        with pytest.raises(ConfigurationError, match=rf"out is in use by process {process.pid} on host"):
            extract(HERE, extraction)
        discard_unfinished(tmp_path / "out", folder_too=True)
        assert (tmp_path / "out" / ".unfinished" / "theirs.npy").exists()
    extract(HERE, extraction)  # theirs was killed
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["fc7.npy", "features.json", "samples.csv"]


def test_finished_results_are_never_deleted(runs_of_two_sizes, prepared, tmp_path, monkeypatch):
    extraction = resolve(options_for(runs_of_two_sizes[0], prepared, tmp_path / "out"))
    rename = Path.rename

    def refuse(self, target):
        if self.name == "samples.csv":
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(ConfigurationError, match=r"cannot be moved .*: Input/output error; they are in .*\.unfinished"):
        extract(HERE, extraction)
    discard_unfinished(tmp_path / "out", folder_too=True)
    assert {path.name for path in (tmp_path / "out").rglob("*.*")} >= {"fc7.npy", "features.json", "samples.csv"}

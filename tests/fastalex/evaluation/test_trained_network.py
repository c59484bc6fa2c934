"""Trained networks: their mean image, and their parallel plan."""

import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import dataloading
from fastalex import build_architecture
from fastalex.datasets import mean_image_hash
from fastalex.errors import ConfigurationError
from fastalex.evaluation.ensemble import Evaluation, evaluate
from fastalex.evaluation.feature_options import FeaturesOptions
from fastalex.evaluation.feature_options import resolve as resolve_features
from fastalex.evaluation.features import extract
from fastalex.evaluation.options import EvaluateOptions
from fastalex.evaluation.options import resolve as resolve_evaluation
from fastalex.evaluation.trained_network import TrainedNetwork, UnknownMeanImage, inference_plan, open_loader
from fastalex.network.variation import Variation
from fastalex.parallel.layout import Layout, ParallelPlan
from fastalex.parallel.world import World
from fastalex.training.config import RunConfig
from tests.fastalex.commands import command_here
from tests.fastalex.conftest import save_run, write_images
from tests.fastalex.evaluation.conftest import HERE, result_of


def test_the_mean_of_the_training_images_is_subtracted(runs, prepared, tmp_path):
    """The network sees other data with its own training mean, not with the mean of the data."""
    source = write_images(tmp_path / "source", train=2, val=3)
    (source / "val" / "red" / "000.jpg").unlink()
    other = dataloading.prepare_dataset(source, tmp_path / "other", progress=False, workers=1)
    assert not np.array_equal(other.mean_image, dataloading.Dataset(prepared).mean_image)
    network = TrainedNetwork.find(runs[0])
    assert network.mean_image_for(other) == str(prepared)
    assert network.mean_image_for(dataloading.Dataset(prepared)) is None
    plan = ParallelPlan.single(HERE.device, network.spec.build_architecture().block_names)
    evaluation = Evaluation((network,), (plan,), str(other.root), "val", 1, (1.0,), None, 4, "fp32")
    with_own = evaluate(HERE, evaluation)
    with_others = evaluate(HERE, replace(evaluation, networks=(replace(network, data=str(other.root)),)))
    assert with_own is not None
    assert with_others is not None
    assert with_own.predictions.metrics.loss != with_others.predictions.metrics.loss


def test_the_mean_colour_is_subtracted_where_the_network_was_trained_so(prepared):
    dataset = dataloading.Dataset(prepared)
    images = []
    for by_channel in (False, True):
        with closing(open_loader(HERE, str(prepared), None, "val", 4, 224, 1, by_channel=by_channel)) as loader:
            images.append(next(loader.epoch(0)).images[0].permute(1, 2, 0).numpy())
    pixels = images[0] + dataset.mean_image[16:240, 16:240]
    assert np.allclose(images[1], pixels - dataset.mean_image.mean((0, 1)), atol=1e-3)


def test_the_mean_of_images_of_another_size_is_not_subtracted(runs, prepared, class_folders, tmp_path):
    small = dataloading.prepare_dataset(class_folders, tmp_path / "small", size=64, progress=False, workers=0)
    large = dataloading.Dataset(prepared)
    networks = TrainedNetwork.find(runs[0]), TrainedNetwork.find(save_run(tmp_path / "run", small.root))
    for network, other, own, found in zip(networks, (small, large), (256, 64), (64, 256), strict=True):
        with pytest.raises(ConfigurationError, match=rf"trained on images of {own} pixels, .* has images of {found};"):
            network.mean_image_for(other)
        assert replace(network, recorded_size=48).stored_size == 48


CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def test_the_plan_has_one_stage_per_worker_on_all_machines():
    architecture = build_architecture("krizhevsky")
    assert inference_plan([GPU], 1, architecture, 5) == ParallelPlan.single(GPU, architecture.block_names)
    plan = inference_plan([CPU, CPU], 2, architecture, 64)
    assert (plan.devices, plan.machines, plan.layout) == ((CPU, CPU), 2, Layout(1, 4, 4))
    assert (plan.schedule, plan.micro_batches) == ("gpipe", 4)
    assert sum(plan.split, ()) == architecture.block_names
    assert len(plan.split) == 4


@pytest.mark.parametrize(("batch_size", "micro_batches"), [(4, 2), (9, 3), (7, 1)])
def test_micro_batches_divide_the_batch(batch_size, micro_batches):
    plan = inference_plan([CPU] * 3, 1, build_architecture("krizhevsky"), batch_size)
    assert plan.micro_batches == micro_batches


def test_more_workers_than_blocks_are_refused():
    with pytest.raises(ConfigurationError, match="9 stages"):
        inference_plan([CPU] * 9, 1, build_architecture("krizhevsky"), 64)


def test_only_the_first_worker_decodes_images(prepared):
    """And all know the labels."""
    for rank in (0, 1):
        with closing(open_loader(World(rank, 2, CPU), str(prepared), None, "val", 4, 224, views=1)) as loader:
            batch = next(loader.epoch(0))
        assert (batch.images is not None) == (rank == 0)
        assert batch.labels is not None
        assert len(batch.samples) == 4


def test_a_weights_file_in_a_run_folder_knows_its_data(runs, prepared, tmp_path):
    in_run = TrainedNetwork.find(runs[0] / "best.safetensors")
    assert (in_run.data, in_run.stored_size) == (str(prepared), 256)
    alone = tmp_path / "alone.safetensors"
    alone.write_bytes(in_run.weights.read_bytes())
    network = TrainedNetwork.find(alone)
    assert network.spec == in_run.spec
    assert (network.data, network.stored_size) == (None, None)
    with pytest.raises(UnknownMeanImage, match=r"alone.safetensors is not in a run folder, so the mean"):
        network.mean_image_for(dataloading.Dataset(prepared))


def recorded(run: Path, data: Path) -> Path:
    """The run as training writes it, with size and mean image of its data."""
    dataset = dataloading.Dataset(data)
    hashed = mean_image_hash(dataset.mean_image)
    replace(RunConfig.load(run), data=str(data), stored_size=dataset.size, mean_image=hashed).save()
    return run


@pytest.fixture
def other(tmp_path) -> Path:
    """Other images of the same classes, so with another mean image."""
    source = write_images(tmp_path / "other-source", train=2, val=3)
    (source / "val" / "red" / "000.jpg").unlink()
    dataloading.prepare_dataset(source, tmp_path / "other", progress=False, workers=0)
    return tmp_path / "other"


def evaluation_job(runs: Sequence[Path], data: Path | None, **options: object) -> object:
    return resolve_evaluation(EvaluateOptions((*runs, *((data,) if data else ())), devices="cpu", **options))


def extraction(runs: Sequence[Path], data: Path | None, tmp_path: Path, **options: object) -> object:
    return resolve_features(
        FeaturesOptions(runs[0], data or Path("nowhere"), ("fc7",), tmp_path / "features", devices="cpu", **options)
    )


def both(run: Path, data: Path, tmp_path: Path, **options: object) -> list[Callable[[], object]]:
    """Evaluation and the extraction of features, each to be called."""
    return [
        lambda: evaluation_job([run], data, **options),
        lambda: extraction([run], data, tmp_path, **options),
    ]


REMEDY = r"; name the training data with --training-data DATA, or their mean with --mean FILE\|R,G,B$"


def test_without_the_training_data_nothing_is_computed(prepared, other, tmp_path):
    """Their mean image is unknown, and that of other data would give other results."""
    shutil.copytree(prepared, tmp_path / "data")
    run = save_run(tmp_path / "run", tmp_path / "data")
    shutil.rmtree(tmp_path / "data")
    for known in (False, True):
        if known:
            replace(RunConfig.load(run), stored_size=256, mean_image="0" * 16).save()
        for call in both(run, other, tmp_path):
            with pytest.raises(ConfigurationError, match=f"needs the mean image .*, and .*/data is gone{REMEDY}"):
                call()
    with pytest.raises(ConfigurationError, match=r"the training data .*/data of .*best.safetensors are gone: name"):
        evaluation_job([run], None)


def test_training_data_are_recognised_wherever_they_lie(prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / "data")
    run = recorded(save_run(tmp_path / "run", tmp_path / "data"), tmp_path / "data")
    (tmp_path / "data").rename(tmp_path / "moved")
    for call in both(run, tmp_path / "moved", tmp_path):
        call()
    network = TrainedNetwork.find(run)
    assert network.mean_image_for(dataloading.Dataset(tmp_path / "moved")) is None
    assert network.stored_size == 256


def test_training_data_can_be_named(runs, prepared, other, tmp_path):
    shutil.copytree(prepared, tmp_path / "data")
    run = save_run(tmp_path / "run", tmp_path / "data", seed=1)
    shutil.rmtree(tmp_path / "data")
    (tmp_path / "alone").mkdir()
    alone = tmp_path / "alone" / "best.safetensors"
    alone.write_bytes((run / "best.safetensors").read_bytes())
    expected = result_of(runs[0], data=other).predictions.metrics
    for path in (run, alone):
        assert result_of(path, data=other, training_data=prepared).predictions.metrics == expected
        for call in both(path, other, tmp_path, training_data=prepared):
            call()
    replace(RunConfig.load(run), mean_image="0" * 16).save()
    for call in both(run, other, tmp_path, training_data=prepared):
        with pytest.raises(ConfigurationError, match=r"with another mean image than that of .*: the data have changed"):
            call()
    for call in both(runs[0], other, tmp_path, training_data=prepared):
        with pytest.raises(
            ConfigurationError, match=r"all networks know the mean of their training images; leave .*colors out"
        ):
            call()


def test_the_mean_can_be_given(runs, prepared, other, tmp_path):
    """In place of the training data, to weights that do not record it."""
    shutil.copytree(prepared, tmp_path / "data")
    run = save_run(tmp_path / "run", tmp_path / "data", seed=1)
    shutil.rmtree(tmp_path / "data")
    (tmp_path / "alone").mkdir()
    alone = tmp_path / "alone" / "best.safetensors"
    alone.write_bytes((run / "best.safetensors").read_bytes())
    image = dataloading.Dataset(prepared).mean_image
    np.save(tmp_path / "caffe.npy", image[..., ::-1].transpose(2, 0, 1))
    with_record = save_run(tmp_path / "with-record", prepared, with_record=True) / "best.safetensors"
    expected = result_of(runs[0], data=other).predictions.metrics
    for path in (run, alone):
        for mean in (prepared / "mean-image.npy", tmp_path / "caffe.npy", with_record):
            assert TrainedNetwork.find(path).record is None
            job = evaluation_job([path], other, mean=str(mean))
            (network,) = job.evaluation.networks
            assert network.mean_image_for(dataloading.Dataset(other)) == str(mean)
            assert network.mean_image_for(dataloading.Dataset(prepared)) is None
            assert (network.stored_size, network.given_mean) == (256, str(mean))
    assert result_of(alone, data=other, mean=str(tmp_path / "caffe.npy")).predictions.metrics == expected
    options = ("--mean", "100,100,100", "--device", "cpu")
    code, out, err = command_here(tmp_path, "fastalex.evaluate", alone, other, *options)
    assert code == 0, err
    assert "of the training images, from 100,100,100" in out
    assert f"{expected.loss:.4f}" not in out


def test_features_tell_which_mean_was_given(prepared, other, tmp_path):
    run = save_run(tmp_path / "run", prepared)
    alone = tmp_path / "alone.safetensors"
    (run / "best.safetensors").rename(alone)
    for name, mean in (("colour", "100,90,80"), ("image", str(prepared / "mean-image.npy"))):
        extract(
            HERE, resolve_features(FeaturesOptions(alone, other, ("fc7",), tmp_path / name, mean=mean, devices="cpu"))
        )
        assert json.loads((tmp_path / name / "features.json").read_text())["mean_image"] == mean
    assert not np.array_equal(*(np.load(tmp_path / name / "fc7.npy") for name in ("colour", "image")))


def test_a_mean_that_does_not_fit_is_refused(runs, prepared, other, tmp_path):
    shutil.copytree(prepared, tmp_path / "data")
    run = recorded(save_run(tmp_path / "run", tmp_path / "data"), tmp_path / "data")
    known = save_run(tmp_path / "known", tmp_path / "data", with_record=True)
    shutil.rmtree(tmp_path / "data")
    mean = str(prepared / "mean-image.npy")
    np.save(tmp_path / "small.npy", np.full((64, 64, 3), 100.0))
    small = str(tmp_path / "small.npy")
    for call in both(run, other, tmp_path, mean=mean):  # the one that it has recorded
        call()
    for path, given, message in (
        (run, "100,100,100", "run/best.safetensors was trained with another mean image than 100,100,100; give its own"),
        (run, str(other / "mean-image.npy"), "run/best.safetensors was trained with another mean image than .*other"),
        (run, small, "was trained on images of 256 pixels, the mean .*small.npy has 64; give its own"),
        (known, mean, "known/best.safetensors knows its mean; leave .*mean-image.npy out"),
        (runs[0], mean, "best.safetensors knows its mean; leave .*mean-image.npy out"),
        (run, "none.npy", "no such file: none.npy"),
    ):
        for call in both(path, other, tmp_path, mean=given):
            with pytest.raises(ConfigurationError, match=message):
                call()
    with pytest.raises(ConfigurationError, match="all networks know their mean; leave"):
        evaluation_job([runs[0], known], other, mean=mean)
    for call in both(run, other, tmp_path, mean=mean, training_data=prepared):
        with pytest.raises(ConfigurationError, match=r"^--mean and --training-data exclude each other; leave one out$"):
            call()
    alone = tmp_path / "alone.safetensors"
    alone.write_bytes((run / "best.safetensors").read_bytes())
    with pytest.raises(ConfigurationError, match=r"trained on images of 64 pixels, .* has images of 256"):
        replace(TrainedNetwork.find(alone), given_mean=small).mean_image_for(dataloading.Dataset(prepared))


def test_changed_training_data_are_refused(prepared, other, tmp_path):
    """Prepared again, from other images or in another size."""
    shutil.copytree(prepared, tmp_path / "data")
    run = recorded(save_run(tmp_path / "run", tmp_path / "data"), tmp_path / "data")
    shutil.rmtree(tmp_path / "data")
    shutil.copytree(other, tmp_path / "data")
    changed = f"trained with another mean image than that of .*/data: the data have changed{REMEDY}"
    for data in (tmp_path / "data", other, None):
        with pytest.raises(ConfigurationError, match=changed):
            evaluation_job([run], data)
    with pytest.raises(ConfigurationError, match=changed):
        extraction([run], other, tmp_path)
    shutil.rmtree(tmp_path / "data")
    dataloading.prepare_dataset(tmp_path / "other-source", tmp_path / "data", size=240, progress=False, workers=0)
    with pytest.raises(ConfigurationError, match=r"trained on images of 256 pixels, .*/data has images of 240"):
        evaluation_job([run], None)
    evaluation_job([run], prepared)  # which has the mean image itself


def test_every_network_of_an_ensemble_needs_its_training_data(runs, prepared, other, tmp_path):
    shutil.copytree(prepared, tmp_path / "data")
    second = save_run(tmp_path / "run", tmp_path / "data")
    shutil.rmtree(tmp_path / "data")
    for data in (None, other):
        with pytest.raises(ConfigurationError, match=f"run/best.safetensors needs the mean image .* gone{REMEDY}"):
            evaluation_job([runs[0], second], data)
    evaluation_job([runs[0], second], other, training_data=prepared)


def test_a_network_that_needs_a_size_gets_it(class_folders, tmp_path, monkeypatch):
    """Though its data are gone, and though the folder has no run that names a size."""
    monkeypatch.chdir(tmp_path)
    small = dataloading.prepare_dataset(class_folders, tmp_path / "small", size=32, progress=False, workers=0)
    run = save_run(tmp_path / "run", small.root, architecture="four-layer", variation=Variation(width=0.25))
    alone = tmp_path / "alone.safetensors"
    alone.write_bytes((run / "best.safetensors").read_bytes())
    job = evaluation_job([alone], class_folders, training_data=small.root)
    assert dataloading.Dataset(job.evaluation.data).size == 32


@pytest.mark.parametrize("channel_means", [False, True])
def test_weights_suffice_once_the_training_data_are_gone(prepared, other, tmp_path, channel_means):
    """Moved elsewhere, without their run and its data, they give the same bits; only weights of this version do."""
    shutil.copytree(prepared, tmp_path / "data")
    run = save_run(tmp_path / "run", tmp_path / "data", with_record=True, channel_means=channel_means)
    earlier = save_run(tmp_path / "earlier", tmp_path / "data", channel_means=channel_means)
    before = result_of(run, data=other).predictions
    assert torch.equal(before.top_probabilities, result_of(earlier, data=other).predictions.top_probabilities)
    features = extract_to(run, other, tmp_path / "before")

    moved = tmp_path / "elsewhere.safetensors"
    (run / "best.safetensors").rename(moved)
    shutil.rmtree(run)
    shutil.rmtree(tmp_path / "data")
    after = result_of(moved, data=other).predictions
    assert torch.equal(before.top_probabilities, after.top_probabilities)
    assert np.array_equal(features, extract_to(moved, other, tmp_path / "after"))
    network = TrainedNetwork.find(moved)
    assert network.stored_size == 256
    assert network.mean_image_for(dataloading.Dataset(other)) == str(moved)
    assert network.mean_image_for(dataloading.Dataset(prepared)) is None
    with pytest.raises(ConfigurationError, match=r"all networks know the mean of their training images; leave"):
        evaluation_job([moved], other, training_data=prepared)


def extract_to(run: Path, data: Path, folder: Path) -> np.ndarray:
    extract(HERE, resolve_features(FeaturesOptions(run, data, ("fc7",), folder, devices="cpu")))
    return np.load(folder / "fc7.npy")


def test_weights_and_images_have_one_size(prepared, class_folders, tmp_path):
    small = dataloading.prepare_dataset(class_folders, tmp_path / "small", size=64, progress=False, workers=0)
    network = TrainedNetwork.find(save_run(tmp_path / "run", prepared, with_record=True))
    with pytest.raises(ConfigurationError, match=r"trained on images of 256 pixels, .*small has images of 64; prepare"):
        network.mean_image_for(small)

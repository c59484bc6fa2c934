"""How options become a run, without starting one."""

import math
import shutil
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import dataloading
from fastalex.datasets import default_recipe, mean_image_hash, other_data
from fastalex.errors import ConfigurationError
from fastalex.options.training import NetworkOptions, ParallelOptions, RecipeOptions, TrainOptions
from fastalex.parallel.layout import Layout, ParallelPlan
from fastalex.parallel.partition import format_split, parse_split
from fastalex.parallel.world import World
from fastalex.recipes.edits import Edit
from fastalex.recipes.published import SMALL_LEAST_STEPS, build_recipe
from fastalex.training import resolve as resolving
from fastalex.training.checkpoint import latest_checkpoint
from fastalex.training.config import RunConfig
from fastalex.training.resolve import new_run, resolve, resolve_for_torchrun, resume_parallel
from fastalex.training.trainer import train
from tests.dataloading.owning import another_owner
from tests.fastalex.conftest import save_run, write_images

CPU = torch.device("cpu")


def asked(data: Path, **parallel) -> TrainOptions:
    return TrainOptions(data, parallel=ParallelOptions(**parallel))


@pytest.mark.parametrize(
    ("parallel", "message"),
    [
        ({"devices": "cpu", "max_restarts": -1}, "--max-restarts must be at least 0, got -1"),
        ({"devices": "cpu", "split": "conv3"}, "split conv3 makes 2 stages, but the layout has 1; leave it out"),
        ({"devices": "cpu,cpu", "stages": 1, "split": "conv9"}, "split names 'conv9'"),
        ({"devices": "cpu", "schedule": "gpipe"}, "--schedule gpipe needs several stages, but --devices .* make 1"),
        ({"devices": "cpu,cpu", "stages": 99}, "99 stages need .* blocks, got 8 .* choose stages from 1, 2, 4, 6, 8$"),
        ({"devices": ",".join(["cpu"] * 9)}, "9 stages need .* blocks, got 8 .* choose stages from 1, 3$"),
        ({"devices": "cpu,cpu", "micro_batches": 5}, "batch of 32 cannot be divided into 5 micro-batches"),
    ],
)
def test_what_cannot_be_split_or_restarted(prepared, tmp_path, monkeypatch, parallel, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError, match=message):
        resolve(asked(prepared, **parallel))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("parallel", "layout", "schedule", "split", "micro_batches", "measured"),
    [
        ({}, Layout(1, 2, 2), "eager-1f1b", "conv3", 4, False),
        ({"replicas": 1}, Layout(1, 2, 2), "eager-1f1b", "conv3", 4, False),
        ({"stages": 2, "schedule": "1f1b"}, Layout(1, 2, 2), "1f1b", "conv3", 4, False),
        ({"stages": 4}, Layout(1, 2, 4), "interleaved", "conv2,conv3,conv4", 4, False),
        ({"split": "conv4", "micro_batches": 8}, Layout(1, 2, 2), "eager-1f1b", "conv4", 8, False),
        ({"split": "auto"}, Layout(1, 2, 2), "eager-1f1b", "conv3", 4, True),
        ({"replicas": 2, "split": "auto"}, Layout(2, 1, 1), "eager-1f1b", "", 1, False),
    ],
)
def test_what_is_left_out_is_decided(prepared, parallel, layout, schedule, split, micro_batches, measured):
    config = new_run(asked(prepared, devices="cpu,cpu", **parallel))
    names = config.network.build_architecture().block_names
    cut = parse_split(split, names, layout.stages) if split else (names,)
    assert config.parallel == ParallelPlan((CPU, CPU), 1, layout, cut, schedule, micro_batches)
    assert config.measure_split == measured
    assert format_split(config.parallel.split) == split


@pytest.mark.parametrize(
    ("options", "kept", "measured"),
    [
        ({}, True, False),
        ({"devices": "cpu,cpu", "stages": 2, "schedule": "1f1b", "split": "conv4"}, True, False),
        ({"split": "auto"}, False, True),
        ({"devices": "cpu,cpu,cpu"}, False, False),
        ({"schedule": "gpipe"}, False, False),
        ({"replicas": 2, "stages": 1}, False, False),
        ({"micro_batches": 8}, False, False),
    ],
)
def test_a_resumed_run_keeps_its_plan_until_devices_or_layout_change(config, options, kept, measured):
    names = config.network.build_architecture().block_names
    plan = ParallelPlan((CPU, CPU), 1, Layout(1, 2, 2), parse_split("conv4", names, 2), "1f1b", 4)
    again, measures = resume_parallel(ParallelOptions(**options), replace(config, parallel=plan))
    assert (again == plan) == kept
    assert measures == measured
    if options == {"micro_batches": 8}:
        assert again == replace(plan, micro_batches=8)
    elif not kept:
        assert again.split != plan.split


def test_a_device_that_is_gone_is_named(config):
    names = config.network.build_architecture().block_names
    plan = ParallelPlan.single(torch.device("cuda", 97), names)
    with pytest.raises(ConfigurationError, match="device 97 does not exist"):
        resume_parallel(ParallelOptions(), replace(config, parallel=plan))
    again, _ = resume_parallel(ParallelOptions(devices="cpu"), replace(config, parallel=plan))
    assert again.devices == (CPU,)


def test_a_restarted_worker_of_torchrun_finds_its_run(prepared, tmp_path, monkeypatch):
    options, devices = replace(asked(prepared), output=tmp_path / "run"), (CPU,)
    first = resolve_for_torchrun(options, devices)
    with pytest.raises(ConfigurationError, match=r"run exists already; .*, or resume its run with --resume .*run$"):
        resolve_for_torchrun(options, devices)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert resolve_for_torchrun(options, devices) == first == RunConfig.load(tmp_path / "run")
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    with pytest.raises(ConfigurationError, match="torchrun --max-restarts needs --output"):
        resolve_for_torchrun(replace(options, output=None), devices)
    with pytest.raises(ConfigurationError, match="give --max-restarts to torchrun"):
        resolve_for_torchrun(replace(options, parallel=ParallelOptions(max_restarts=1)), devices)


def test_a_finished_run_that_was_killed_before_its_weights_were_linked(prepared, tmp_path):
    run = save_run(tmp_path / "run", prepared)
    for name in ("last", "best"):
        (run / f"{name}.safetensors").unlink()
    with pytest.raises(ConfigurationError, match=r"run is finished: 1 of 1 epochs; continue with --epochs 2 or more"):
        resolve(TrainOptions(resume=run))
    with pytest.raises(
        ConfigurationError, match=r"run has finished 1 epoch, got --epochs 1; continue with --epochs 2 "
    ):
        resolve(TrainOptions(resume=run, training=RecipeOptions(epochs=1)))
    for name in ("last", "best"):
        assert (run / f"{name}.safetensors").samefile(latest_checkpoint(run) / "model.safetensors")


def test_a_resumed_run_keeps_the_size_of_its_images(class_folders, tmp_path, monkeypatch):
    """It went on with images of 256 pixels, of which the network saw the corner of an object."""
    monkeypatch.chdir(tmp_path)
    options = TrainOptions(
        class_folders,
        network=NetworkOptions(arch="four-layer", width=0.25),
        training=RecipeOptions(recipe="small", batch_size=8, epochs=1),
        parallel=ParallelOptions(devices="cpu"),
        output=Path("run"),
    )
    config = resolve(options)
    dataset = dataloading.Dataset(config.data)
    assert (config.stored_size, config.mean_image) == (32, mean_image_hash(dataset.mean_image))
    train(World(0, 1, CPU), config)
    resumed = TrainOptions(class_folders, training=RecipeOptions(epochs=2), resume=Path("run"))
    longer = replace(config.recipe, epochs=2, drops_left_out=0)
    assert resolve(resumed) == replace(config, recipe=longer, edits=(Edit(4, "epochs=2"),))
    large = dataloading.prepare_dataset(class_folders, tmp_path / "large", progress=False, workers=0)
    assert dataloading.Dataset(resolve(replace(resumed, data=large.root)).data).size == 32
    assert RunConfig.load(Path("run")).stored_size == 32


@pytest.mark.parametrize(
    ("images", "arch", "expected"),
    [
        (99_999, "krizhevsky", "small"),
        (99_999, "owt", "small"),
        (100_000, "krizhevsky", "krizhevsky"),
        (100_000, "half", "krizhevsky"),
        (1_281_167, "caffe", "caffe"),
        (1_281_167, "owt", "owt"),
    ],
)
def test_the_recipe_follows_the_data_and_for_large_data_the_network(images, arch, expected):
    assert default_recipe(dataloading.SyntheticDataset(train=images, val=1), arch) == expected


def test_a_recipe_decides_how_images_are_read_and_options_override_it(prepared):
    """What the network needs to know of it goes with its weights."""

    def asked_for(recipe: str, **training) -> RunConfig:
        training |= {"recipe": recipe, "batch_size": 8}
        return new_run(replace(asked(prepared, devices="cpu"), training=RecipeOptions(**training)))

    config = asked_for("owt")
    assert (config.recipe.order, config.recipe.resized_crops, config.network.channel_means) == ("shuffled", True, True)
    assert not asked_for("owt", random_crops=False).recipe.resized_crops
    assert asked_for("owt", random_crops=True, order="fixed").recipe.order == "fixed"
    assert asked_for("caffe", order="shuffled", resized_crops=True).recipe.resized_crops
    config = asked_for("krizhevsky")
    assert (config.recipe.order, config.network.channel_means) == ("fixed", False)
    with pytest.raises(ConfigurationError, match="resized crops are random crops"):
        asked_for("krizhevsky", random_crops=False, resized_crops=True)


@pytest.mark.parametrize(("fraction", "steps"), [(None, 4), (0.5, 2)])
def test_the_length_of_small_runs_counts_the_images_trained_on(prepared, fraction, steps):
    training = RecipeOptions(recipe="small", batch_size=8, fraction=fraction)
    config = new_run(replace(asked(prepared, devices="cpu"), training=training))
    assert config.recipe.epochs == math.ceil(SMALL_LEAST_STEPS / steps)


def test_the_order_of_a_run_stays(prepared, tmp_path):
    resolve(replace(asked(prepared, devices="cpu"), output=tmp_path / "run"))
    with pytest.raises(
        ConfigurationError, match="--order cannot change in a resumed run; leave it out, or start a new"
    ):
        resolve(TrainOptions(resume=tmp_path / "run", training=RecipeOptions(order="fixed")))


def test_a_run_folder_has_one_owner(prepared, tmp_path):
    new = replace(asked(prepared, devices="cpu"), output=tmp_path / "run")
    resumed = TrainOptions(resume=tmp_path / "run")
    with ExitStack() as owner:
        resolve(new, owner=owner)
        for options in (new, resumed):
            with pytest.raises(
                ConfigurationError, match=r"run is in use by process \d+ on host .* since .*; wait for it"
            ):
                resolve(options)
    resolve(resumed)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.json"]


def test_a_restarted_worker_of_torchrun_waits_for_the_killed_one(prepared, tmp_path, monkeypatch):
    options = replace(asked(prepared), output=tmp_path / "run")
    resolve_for_torchrun(options, (CPU,))
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    with another_owner(tmp_path / "run") as process, ExitStack() as owner:
        process.kill()
        resolve_for_torchrun(options, (CPU,), owner)


def test_runs_that_start_in_the_same_second_get_different_folders(prepared, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(resolving, "default_folder", lambda name: Path("runs/20261129-120000-x"))
    folders = [resolve(asked(prepared, devices="cpu")).folder.name for _ in range(3)]
    assert folders == [f"20261129-120000-x{more}" for more in ("", "-2", "-3")]
    assert RunConfig.load(Path("runs") / folders[2]).folder.name == folders[2]


def test_the_folder_is_checked_before_the_data_are_prepared(class_folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis").touch()
    with pytest.raises(ConfigurationError, match=r"full exists already; choose another --output$"):
        resolve(replace(asked(class_folders), output=Path("full")))
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_a_run_without_a_checkpoint_starts_again_when_it_is_resumed(prepared, tmp_path):
    first = resolve(replace(asked(prepared, devices="cpu"), output=tmp_path / "run", save_every=7, keep=2))
    again = resolve(TrainOptions(resume=tmp_path / "run", keep=3))
    assert again == replace(first, keep=3)


@pytest.mark.parametrize("name", ["save_every", "keep"])
def test_counts_of_checkpoints_are_positive(prepared, tmp_path, name):
    message = rf"--{name.replace('_', '-')} must be at least 1, got 0"
    with pytest.raises(ConfigurationError, match=message):
        resolve(replace(asked(prepared, devices="cpu"), output=tmp_path / "run", **{name: 0}))
    assert not (tmp_path / "run").exists()


def test_the_default_folder_is_checked_before_the_data_are_prepared(class_folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").touch()
    with pytest.raises(ConfigurationError, match="runs is in the way of runs: it is not a folder; choose an --output"):
        resolve(asked(class_folders))
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_images_that_are_smaller_than_a_crop_are_refused(class_folders, tmp_path):
    small = dataloading.prepare_dataset(class_folders, tmp_path / "small", size=64, workers=0, progress=False)
    with pytest.raises(ConfigurationError, match=r"has images of 64 pixels, but krizhevsky takes crops of 224; name"):
        resolve(replace(asked(Path(small.root), devices="cpu"), output=tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("init", "init_from", "advised"), [(None, False, 1), ("scaled", False, 0), (None, True, 0)])
def test_a_new_narrow_run_is_advised_of_its_initial_weights(prepared, tmp_path, capsys, init, init_from, advised):
    options = replace(asked(prepared, devices="cpu"), network=NetworkOptions(width=1 / 16, lrn=False, init=init))
    if init_from:
        start = RecipeOptions(init_from=save_run(tmp_path / "other", prepared))
        options = replace(options, training=start)
    resolve(replace(options, output=tmp_path / "run"))
    assert capsys.readouterr().out.count("note: width=0.0625: ") == advised
    resolve(TrainOptions(resume=tmp_path / "run"))
    assert capsys.readouterr().out == ""


def test_a_run_with_a_damaged_log_is_not_resumed(prepared, tmp_path):
    run = save_run(tmp_path / "run", prepared)
    before = (run / "config.json").read_bytes()
    (run / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(ConfigurationError, match=r"metrics.jsonl is damaged in line 1: there is no kind; correct or r"):
        resolve(TrainOptions(resume=run, training=RecipeOptions(epochs=2)))
    assert (run / "config.json").read_bytes() == before


def test_a_longer_run_without_a_drop_ahead_says_how_to_add_one(prepared, tmp_path, capsys):
    run = save_run(tmp_path / "run", prepared)
    config = RunConfig.load(run)
    replace(config, recipe=replace(build_recipe("small"), batch_size=8).for_data(32, 1)).save()

    def said(epochs: int | None, *edits: str) -> str:
        before = (run / "config.json").read_bytes()
        with suppress(ConfigurationError):
            resolve(TrainOptions(resume=run, training=RecipeOptions(epochs=epochs, edits=edits)))
        (run / "config.json").write_bytes(before)
        return capsys.readouterr().out

    note = (
        "note: the learning rate will not drop again, because a resumed run keeps its schedule; to drop it as a new "
        "run of 60 epochs would, add --set epoch=44:lr=0.0002\n"
    )
    assert said(60) == note
    assert said(60, "epoch=30:lr=1e-4") == ""
    assert said(60, "epoch=30:color_noise=0") == note
    resolve(TrainOptions(resume=run, training=RecipeOptions(epochs=60)))
    capsys.readouterr()
    assert said(None) == ""  # as long as it was


def test_a_run_that_goes_on_with_other_images_says_so(prepared, tmp_path, capsys):
    """The same classes, another folder: nothing told that errors before and after cannot be compared."""
    run = save_run(tmp_path / "run", prepared)
    others = dataloading.prepare_dataset(
        write_images(tmp_path / "images", train=9, val=2), tmp_path / "others", progress=False, workers=0
    )

    def said(data: Path | None) -> str:
        resolve(TrainOptions(data, resume=run, training=RecipeOptions(epochs=2)))
        return capsys.readouterr().out

    assert said(prepared) == ""
    copy = shutil.copytree(prepared, tmp_path / "copy")
    assert said(copy) == ""
    before = RunConfig.load(run)
    assert said(Path(others.root)) == (
        f"note: the run goes on with other data: {others.root} (27 training and 6 validation images) instead of {copy} "
        "(32 training and 7 validation images); errors before and after, and so the best one, are on different images; "
        "the mean image differs, and from now on the new one is subtracted; for a new run from the weights "
        f"instead, leave --resume out and give --init-from {run / 'last.safetensors'}\n"
    )
    assert said(None) == ""  # they are its data now
    # The old data are gone: only the mean image tells.
    before.save()
    shutil.rmtree(copy)
    assert said(prepared) == ""
    before.save()
    assert f"instead of {copy}, which are gone or have changed; errors before" in said(Path(others.root))


def test_other_validation_images_are_other_data(prepared, tmp_path):
    """Their mean image is that of the same training images."""
    images = write_images(tmp_path / "images", train=9, val=2)
    first = dataloading.prepare_dataset(images, tmp_path / "first", progress=False, workers=0)
    (images / "val" / "red" / "000.jpg").unlink()
    second = dataloading.prepare_dataset(images, tmp_path / "second", progress=False, workers=0)
    mean = mean_image_hash(first.mean_image)
    assert other_data(str(first.root), mean, first) is None
    assert other_data(str(first.root), mean, second) == (
        f"{second.root} (27 training and 5 validation images) instead of {first.root} (27 training and 6 validation "
        "images); errors before and after, and so the best one, are on different images"
    )
    assert other_data(str(first.root), None, second) is not None  # a run of an earlier version
    assert other_data("synthetic", None, dataloading.SyntheticDataset(train=12_800, val=1_280)) is None

"""``config.json``, of this version and of earlier ones."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fastalex.errors import ConfigurationError
from fastalex.network.variation import Variation
from fastalex.network.weights import NetworkSpec
from fastalex.parallel.layout import Layout, ParallelPlan
from fastalex.parallel.partition import parse_split, partition
from fastalex.recipes.edits import Edit
from fastalex.training.config import RunConfig

DATA = Path(__file__).parents[1] / "data"
CPUS = (torch.device("cpu"),) * 2


def test_a_run_is_read_as_it_was_written(config):
    architecture = config.network.build_architecture()
    plan = ParallelPlan(CPUS, 1, Layout(1, 2, 2), partition(architecture, 2), "eager-1f1b", 4)
    config = replace(config, parallel=plan, edits=(Edit(3, "epoch=1:lr=0.1"),), cuda_graphs=True, measure_split=True)
    config.save()
    assert RunConfig.load(config.folder) == config
    text = json.loads((config.folder / "config.json").read_text())
    assert text["parallel"]["devices"] == ["cpu", "cpu"]
    assert text["parallel"]["split"][0] == list(plan.split[0])


def test_a_run_may_move(config, tmp_path):
    shutil.copytree(config.folder, tmp_path / "moved")
    assert RunConfig.load(tmp_path / "moved") == replace(config, output=str(tmp_path / "moved"))


@pytest.mark.parametrize(
    "damage",
    [
        lambda values: values.pop("recipe"),
        lambda values: values.update(parallel={"devices": 5}),
        lambda values: values["parallel"].update(devices=["tpu:0"]),
        lambda values: values["parallel"].update(schedule="zero-bubble"),
        lambda values: values.update(unknown=1),
        lambda values: values["network"].update(variation=None),
    ],
)
def test_a_damaged_configuration_is_named(config, damage):
    path = config.folder / "config.json"
    values = json.loads(path.read_text())
    damage(values)
    path.write_text(json.dumps(values))
    with pytest.raises(ConfigurationError, match=r"config.json is damaged or of another version"):
        RunConfig.load(config.folder)


def test_one_wrong_bit_is_named(config):
    path = config.folder / "config.json"
    text = path.read_text()
    assert '"lr": 0.002' in text
    path.write_text(text.replace('"lr": 0.002', '"lr": 0.003'))
    with pytest.raises(ConfigurationError, match=r"config.json is damaged .*: its content has another SHA-256"):
        RunConfig.load(config.folder)


def test_white_space_may_change_and_edits_may_be_kept(config):
    path = config.folder / "config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps(dict(reversed(values.items()))))
    assert RunConfig.load(config.folder) == config
    del values["sha256"]
    path.write_text(json.dumps(values | {"seed": 4}))
    assert RunConfig.load(config.folder) == replace(config, seed=4)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda values: values["parallel"].update(devices=5), "parallel.devices must be a list, got 5"),
        (lambda values: values["parallel"].update(devices="cpu"), "parallel.devices must be a list, got 'cpu'"),
        (lambda values: values["parallel"].update(devices=[]), "parallel has 1 x 1 workers on 0 devices"),
        (lambda values: values["parallel"].update(machines="1"), "parallel.machines must be an integer, got '1'"),
        (lambda values: values["parallel"].update(replicas=3), "parallel has 3 x 1 workers on 1 devices"),
        (lambda values: values["parallel"].update(micro_batches=0), "parallel.micro_batches must be at least 1, got 0"),
        (lambda values: values["parallel"].update(split=[["conv1"]]), "parallel.split must cut conv1, .*, fc8 into"),
        (lambda values: values.update(parallel=[1]), "parallel must be an object"),
        (lambda values: values.update(data=5), "data must be text, got 5"),
        (lambda values: values.update(seed=None), "seed must be an integer, got None"),
        (lambda values: values.update(seed=1.5), "seed must be an integer, got 1.5"),
        (lambda values: values.update(precision="fp8"), "precision must be one of .*, got 'fp8'"),
        (lambda values: values.update(on_bad_sample="ignore"), "on_bad_sample must be one of stop, skip"),
        (lambda values: values.update(measure_split="no"), "measure_split must be true or false, got 'no'"),
        (lambda values: values.update(fraction="1"), "fraction must be a finite number, got '1'"),
        (lambda values: values.update(edits=[{"step": "3", "text": "lr=1"}]), r"edits\[0\].step must be an integer"),
        (lambda values: values["recipe"].update(epochs="5"), "recipe.epochs must be an integer, got '5'"),
        (lambda values: values["recipe"].update(lr=float("inf")), "recipe.lr must be a finite number, got inf"),
        (
            lambda values: values["recipe"]["changes"][0].update(from_epoch=1.5),
            r"recipe.changes\[0\].from_epoch must be an integer, got 1.5",
        ),
        (
            lambda values: values["recipe"]["changes"][0].update(epoch="3"),  # the name in earlier versions
            "the epoch of a change must be an integer, got '3'",
        ),
        (
            lambda values: (values["recipe"]["changes"][0].update(epoch=3), values.update(edits=[{"text": 5}])),
            r"edits\[0\].text must be text, got 5",
        ),
        (lambda values: values["recipe"].update(order="sorted"), "recipe.order must be one of fixed, shuffled"),
        (lambda values: values["network"].update(num_classes=2), "num_classes is 2, but 3 classes are named"),
        (lambda values: values["network"].update(architecture="alexnet"), "unknown architecture 'alexnet'"),
        (lambda values: values.pop("data"), "missing 1 required positional argument: 'data'"),
        (lambda values: values.pop("recipe"), "there is no 'recipe'"),
    ],
)
def test_what_is_wrong_is_named(config, damage, message):
    path = config.folder / "config.json"
    values = json.loads(path.read_text())
    damage(values)
    path.write_text(json.dumps(values))
    with pytest.raises(ConfigurationError, match=f"config.json is damaged or of another version: .*{message}") as error:
        RunConfig.load(config.folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "[]", "5", "null", "[" * 10**5, "{", '{"devices": 5}', "\xff"])
def test_what_is_no_configuration_at_all(tmp_path, text):
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigurationError, match=r"config.json is damaged or of another version"):
        RunConfig.load(tmp_path)


def test_devices_of_version_0_1_that_are_no_text(tmp_path):
    values = json.loads((DATA / "run-of-0.1" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(values | {"devices": 5}))
    with pytest.raises(ConfigurationError, match=r"config.json is damaged .*: devices must be text, got 5"):
        RunConfig.load(tmp_path)


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(ConfigurationError, match=r"is not a run folder: it has no config\.json"):
        RunConfig.load(tmp_path)


def test_a_run_of_version_0_1():
    config = RunConfig.load(DATA / "run-of-0.1")
    classes = ("blue", "green", "red")
    assert config.network == NetworkSpec("four-layer", 3, Variation(width=0.25, init="scaled"), classes)
    names = config.network.build_architecture().block_names
    assert config.parallel == ParallelPlan(CPUS, 1, Layout(1, 2, 2), parse_split("conv3", names, 2), "1f1b", 2)
    # It counted epochs from 0: its changes came after two finished epochs, and do so still.
    assert config.edits == (Edit(0, "epoch=3:conv1.lr=0.001"),)
    assert [change.from_epoch for change in config.recipe.changes] == [3, 3, 3]
    assert [config.recipe.lr_scale_at(epoch, "conv1", "weights") for epoch in (1, 2, 3)] == [1.0, 1.0, 0.5]
    assert (config.recipe.order, config.recipe.rescale_velocity) == ("shuffled", False)


def test_a_run_from_before_epochs_counted_from_1_keeps_its_schedule(config):
    """Such runs have the parallel plan of today, and none of the fields that came later."""
    path = config.folder / "config.json"
    replace(config, edits=(Edit(0, "lr=0.002"), Edit(3, "epoch=2:lr=0.0002"))).save()
    values = json.loads(path.read_text())
    for change in values["recipe"]["changes"]:
        change["epoch"] = change.pop("from_epoch") - 1
    values["edits"][1]["text"] = "epoch=1:lr=0.0002"
    for name in ("order", "resized_crops", "channel_means", "decay_biases", "rescale_velocity", "drops_left_out"):
        del values["recipe"][name]
    del values["network"]["channel_means"], values["sha256"]
    path.write_text(json.dumps(values))
    loaded = RunConfig.load(config.folder)
    assert loaded == replace(config, edits=(Edit(0, "lr=0.002"), Edit(3, "epoch=2:lr=0.0002")))
    loaded.save()
    assert RunConfig.load(config.folder) == loaded


def test_a_schedule_that_is_gone_becomes_the_default(tmp_path):
    shutil.copyfile(DATA / "zero-bubble-of-0.1.json", tmp_path / "config.json")
    plan = RunConfig.load(tmp_path).parallel
    assert (plan.layout, plan.schedule, plan.micro_batches) == (Layout(1, 2, 2), "eager-1f1b", 4)
    assert plan.split == partition(RunConfig.load(tmp_path).network.build_architecture(), 2)


@pytest.mark.parametrize(
    ("fields", "layout", "schedule", "devices"),
    [
        ({"devices": "0,1", "split": "auto"}, Layout(1, 2, 2), "eager-1f1b", ["cuda:0", "cuda:1"]),
        ({"devices": "97", "micro_batches": None}, Layout(1, 1, 1), "eager-1f1b", ["cuda:97"]),
        ({"devices": "cpu,cpu", "replicas": 2, "schedule": "1f1b"}, Layout(2, 1, 1), "1f1b", ["cpu", "cpu"]),
        ({"devices": "0,1", "machines": 2, "stages": 2}, Layout(2, 2, 2), "eager-1f1b", ["cuda:0", "cuda:1"]),
    ],
)
def test_open_fields_of_version_0_1(tmp_path, fields, layout, schedule, devices):
    values = json.loads((DATA / "run-of-0.1" / "config.json").read_text())
    for name in ("stages", "replicas", "schedule", "split", "machines"):
        del values[name]
    (tmp_path / "config.json").write_text(json.dumps(values | fields))
    plan = RunConfig.load(tmp_path).parallel
    assert (plan.layout, plan.schedule) == (layout, schedule)
    assert [str(device) for device in plan.devices] == devices

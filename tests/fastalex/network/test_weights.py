"""Weight files: the network described in their header, loading, and starting from another network's weights."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fastalex import AlexNet
from fastalex.errors import ConfigurationError
from fastalex.network.variation import Variation
from fastalex.network.weights import (
    NetworkSpec,
    find_weights,
    load_first_layer,
    load_header,
    load_model,
    load_parameters,
    load_spec,
    load_tensors,
    start_from,
    with_sums,
)

VARIATION = Variation(width=1 / 16, lrn=False, conv6=True, bottleneck=8, without=("conv3", "conv4"))
SPEC = NetworkSpec("krizhevsky", 3, VARIATION, ("blue", "green", "red"))


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """The weights of an untrained network of three classes."""
    return write(tmp_path / "last.safetensors", SPEC.build(seed=1), SPEC)


def write(path: Path, model: AlexNet, spec: NetworkSpec) -> Path:
    tensors = {name: parameter.detach().contiguous() for name, parameter in model.named_parameters()}
    save_file(tensors, path, {"fastalex": spec.to_json()})
    return path


def test_the_header_stays_readable():
    """What earlier versions wrote, character by character, and what came later."""
    text = (
        '{"architecture": "krizhevsky", "num_classes": 3, "variation": {"width": 0.0625, "lrn": false, "overlapping": '
        'true, "activation": null, "dropout": null, "without": ["conv3", "conv4"], "conv6": true, "bottleneck": 8, '
        '"init": null}, "classes": ["blue", "green", "red"]}'
    )
    assert NetworkSpec.from_json(text) == SPEC
    assert SPEC.to_json() == text.removesuffix("}") + ', "channel_means": false}'
    by_channel = replace(SPEC, channel_means=True)
    assert NetworkSpec.from_json(by_channel.to_json()) == by_channel


def test_the_architecture_is_built_once():
    assert SPEC.build_architecture() is NetworkSpec.from_json(SPEC.to_json()).build_architecture()
    assert replace(SPEC, num_classes=4).build_architecture().num_classes == 4


def test_the_variation_in_words():
    assert SPEC.summary() == "krizhevsky width=0.0625 lrn=False without=conv3+conv4 conv6=True bottleneck=8"
    assert NetworkSpec("paper", 1000).summary() == "paper"


@pytest.mark.parametrize(
    ("other", "fits"),
    [
        (replace(SPEC, num_classes=7, classes=()), True),
        (replace(SPEC, variation=replace(VARIATION, bottleneck=None, dropout=0.1, init="text")), True),
        (replace(SPEC, architecture="paper"), False),
        (replace(SPEC, variation=replace(VARIATION, conv6=False)), False),
    ],
)
def test_only_the_head_may_differ(other, fits):
    assert SPEC.can_start_from(other) == fits


def test_a_network_is_loaded_with_its_description(weights):
    model, spec = load_model(weights)
    assert spec == load_spec(weights) == SPEC
    assert not model.training
    for (name, found), expected in zip(model.named_parameters(), SPEC.build(seed=1).parameters(), strict=True):
        assert torch.equal(found, expected), name


def test_a_run_folder_stands_for_its_best_weights(weights, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    with pytest.raises(ConfigurationError, match=r"run is not a run folder: it has no config\.json"):
        load_model(run)
    (run / "config.json").touch()
    with pytest.raises(ConfigurationError, match=r"run has no best\.safetensors yet: it has not saved a checkpoint$"):
        load_model(str(run))
    write(run / "last.safetensors", SPEC.build(seed=2), SPEC)
    with pytest.raises(ConfigurationError, match=r"yet: its first epoch is not finished; use its last weights instead"):
        load_model(run)
    (run / "best.safetensors").symlink_to(weights)
    model, spec = load_model(str(run))
    assert spec == SPEC
    assert torch.equal(model.conv1.weight, SPEC.build(seed=1).conv1.weight)
    assert find_weights(run, "last") == run / "last.safetensors"
    assert find_weights(weights, "last") == weights


def test_the_first_layer_is_loaded_alone(weights, tmp_path):
    layer = load_first_layer(weights)
    assert (layer.name, layer.towers) == ("conv1", 2)
    assert torch.equal(layer.weights, SPEC.build(seed=1).conv1.weight)
    without = replace(SPEC, variation=replace(VARIATION, without=("conv1",)))
    layer = load_first_layer(write(tmp_path / "other.safetensors", without.build(seed=1), without))
    assert (layer.name, tuple(layer.weights.shape)) == ("conv2", (16, 3, 11, 11))
    save_file({"conv1.weight": torch.zeros(8, 1, 11, 11)}, tmp_path / "grey.safetensors", {"fastalex": SPEC.to_json()})
    with pytest.raises(
        ConfigurationError, match=r"conv1.weight has shape \(8, 1, 11, 11\), the network needs \(8, 3, "
    ):
        load_first_layer(tmp_path / "grey.safetensors")


def test_a_stage_is_loaded_alone(weights):
    stage = SPEC.build(seed=2).stage(["conv5", "conv6"])
    load_parameters(stage, weights)
    assert torch.equal(stage.conv6.weight, SPEC.build(seed=1).conv6.weight)
    assert list(load_tensors(weights, ["fc8.bias"])) == ["fc8.bias"]


@pytest.mark.parametrize(
    ("changes", "new"),
    [
        ({}, ()),
        ({"num_classes": 2, "classes": ("cat", "dog")}, ("bottleneck", "fc8")),
        ({"classes": ("red", "green", "blue")}, ("bottleneck", "fc8")),
        ({"variation": replace(VARIATION, bottleneck=None)}, ("fc8",)),
    ],
)
def test_the_head_is_new_unless_classes_and_bottleneck_are_the_same(weights, changes, new):
    spec = replace(SPEC, **changes)
    model, initial = spec.build(seed=2), spec.build(seed=2)
    start_from(model, spec, weights)
    for name, tensor in model.state_dict().items():
        expected = initial.state_dict()[name] if name.split(".")[0] in new else load_tensors(weights, [name])[name]
        assert torch.equal(tensor, expected), name


def test_missing_and_damaged_files_are_named(weights, tmp_path):
    with pytest.raises(ConfigurationError, match=r"no such run folder or weights file: .*none\.safetensors"):
        load_model(tmp_path / "none.safetensors")
    with pytest.raises(ConfigurationError, match=r"is a folder; name a file of weights, such as .*best\.safetensors"):
        load_spec(tmp_path)
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ConfigurationError, match=r"last\.safetensors is damaged"):
        load_model(weights)


def test_files_of_others_are_refused(weights, tmp_path):
    save_file({"conv1.weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(ConfigurationError, match="was not written by fastalex: its header has no 'fastalex'"):
        load_spec(tmp_path / "other.safetensors")
    with pytest.raises(ConfigurationError, match="its header has no 'progress'"):
        load_header(weights, "progress")
    assert json.loads(load_header(weights, "fastalex"))["num_classes"] == 3


def test_weights_are_found_in_a_run_folder_and_by_name(tmp_path: Path):
    with pytest.raises(ConfigurationError, match=r"no such run folder or weights file: .*run"):
        find_weights(tmp_path / "run")
    run = tmp_path / "run"
    run.mkdir()
    with pytest.raises(ConfigurationError, match=r"run is not a run folder: it has no config.json"):
        find_weights(run)
    (run / "config.json").touch()
    with pytest.raises(ConfigurationError, match=r"run has no best.safetensors yet: it has not saved a checkpoint"):
        find_weights(run)
    (run / "last.safetensors").touch()
    with pytest.raises(ConfigurationError, match="its first epoch is not finished; use its last weights instead"):
        find_weights(run)
    (run / "best.safetensors").touch()
    assert find_weights(run) == run / "best.safetensors"
    assert find_weights(run, "last") == find_weights(run / "last.safetensors") == run / "last.safetensors"


def test_weights_of_another_architecture_are_refused(weights):
    with pytest.raises(ConfigurationError, match=r"has no conv4.weight, conv4.bias: it holds weights of another arch"):
        load_parameters(replace(SPEC, variation=replace(VARIATION, without=("conv3",))).build(seed=0), weights)
    with pytest.raises(ConfigurationError, match=r"conv1.weight has shape \(8, .*another architecture"):
        load_parameters(replace(SPEC, variation=replace(VARIATION, width=1 / 8)).build(seed=0), weights)


@pytest.fixture
def summed(tmp_path: Path) -> Path:
    """Weights as training writes them, with SHA-256 sums in the header."""
    tensors = {name: p.detach().contiguous() for name, p in SPEC.build(seed=1).named_parameters()}
    path = tmp_path / "summed.safetensors"
    save_file(tensors, path, with_sums(tensors, {"fastalex": SPEC.to_json()}))
    return path


def test_one_wrong_bit_of_a_tensor_is_named(summed: Path):
    intact, _ = load_model(summed)
    data = bytearray(summed.read_bytes())
    data[-1] ^= 1
    summed.write_bytes(data)
    length = 8 + int.from_bytes(data[:8], "little")
    last = max(json.loads(data[8:length]).items(), key=lambda item: item[1].get("data_offsets", [0])[0])[0]
    with pytest.raises(ConfigurationError, match=rf"summed.safetensors is damaged: the SHA-256 of {last} is not"):
        load_model(summed)
    # Tensors that were not asked for are not read.
    others = [name for name, _ in intact.named_parameters() if name != last]
    assert load_tensors(summed, others).keys() == set(others)


@pytest.mark.parametrize(("old", "new"), [(b"blue", b"blud"), (b'\\"num_classes\\": 3', b'\\"num_classes\\": 2')])
def test_one_wrong_bit_of_the_header_is_named(summed: Path, old: bytes, new: bytes):
    data = summed.read_bytes()
    assert old in data
    summed.write_bytes(data.replace(old, new))
    with pytest.raises(ConfigurationError, match=r"summed.safetensors is damaged: the SHA-256 of its header"):
        load_spec(summed)
    with pytest.raises(ConfigurationError, match=r"summed.safetensors is damaged: the SHA-256 of its header"):
        load_tensors(summed, ["conv1.bias"])


@pytest.mark.parametrize("sums", ["", "5", "[]", "{}", '{"": 1}'])
def test_sums_that_are_none_are_damage(tmp_path: Path, sums: str):
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors", {"fastalex": SPEC.to_json(), "sha256": sums})
    with pytest.raises(ConfigurationError, match=r"a.safetensors is damaged: the SHA-256 of its header"):
        load_spec(tmp_path / "a.safetensors")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3)])
def test_sums_of_any_tensor(tmp_path: Path, dtype: torch.dtype, shape: tuple[int, ...]):
    tensors = {"a": torch.ones(shape, dtype=dtype)}
    save_file(tensors, tmp_path / "a.safetensors", with_sums(tensors, {}))
    assert torch.equal(load_tensors(tmp_path / "a.safetensors", ["a"])["a"], tensors["a"])

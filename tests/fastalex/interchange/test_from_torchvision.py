"""torchvision's alexnet as our owt."""

import os

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from fastalex.errors import ConfigurationError
from fastalex.interchange.conversion import convert
from fastalex.interchange.from_torchvision import read_torchvision
from fastalex.network.weights import load_spec
from fastalex.network.weights_record import load_record
from tests.fastalex.interchange.networks import NARROW, normalised, our_scores, torchvision_alexnet


def state(classes: int = 7) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in torchvision_alexnet(classes).state_dict().items()}


@pytest.mark.parametrize(("suffix", "classes"), [(".pth", 7), (".safetensors", 1000)])
def test_the_scores_are_torchvisions(tmp_path, suffix, classes):
    """Of an image that each prepares in its own way."""
    path, output = tmp_path / f"alexnet{suffix}", tmp_path / "w.safetensors"
    model = torchvision_alexnet(classes)
    torch.save(model.state_dict(), path) if suffix == ".pth" else save_file(state(classes), path)
    made = convert(path, output, variation=NARROW)
    with torch.no_grad():
        expected = model(normalised())[0]
    assert (expected.max() - expected.min()) > 1
    # Sums of 864 products or fewer, in another order, and images divided in another one.
    assert torch.allclose(our_scores(output), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    assert load_spec(output) == made.network
    assert (made.network.architecture, made.network.num_classes, made.network.channel_means) == ("owt", classes, True)
    record = load_record(output)
    assert np.allclose(record.mean, [123.675, 116.28, 103.53])
    assert (record.stored_size, record.crop_size, record.resize, record.origin) == (256, 224, "shorter", None)


def test_a_checkpoint_of_the_imagenet_example_is_read(tmp_path):
    """Its weights lie beside the optimizer's state, and DataParallel wraps the features."""
    named = {name.replace("features.", "features.module."): value for name, value in state().items()}
    torch.save({"epoch": 3, "arch": "alexnet", "state_dict": named}, tmp_path / "model.pth.tar.pth")
    found = read_torchvision(tmp_path / "model.pth.tar.pth", NARROW).weights
    assert all(
        torch.equal(one, other)
        for one, other in zip(found.values(), torchvision_alexnet().state_dict().values(), strict=True)
    )


def test_half_precision_becomes_fp32(tmp_path):
    torch.save({name: value.half() for name, value in state().items()}, tmp_path / "a.pth")
    found = read_torchvision(tmp_path / "a.pth", NARROW)
    assert {tensor.dtype for tensor in found.weights.values()} == {torch.float32}


class Code:
    """A pickle that runs a command when it is loaded."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (self.command,)


def test_code_is_not_run(tmp_path):
    torch.save({"a": Code(f"touch {tmp_path / 'ran'}")}, tmp_path / "a.pth")
    with pytest.raises(ConfigurationError, match=r"a.pth holds posix.system, and may run code .*; save model.state"):
        read_torchvision(tmp_path / "a.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop("features.8.bias"), r"of owt width=0.1: conv4.bias: missing, wanted \(24,\)$"),
        (
            lambda weights: weights.update({"classifier.4.weight": torch.zeros(408, 9)}),
            r"fc7.weight: \(408, 9\), wanted \(408, 408\)$",
        ),
        (
            lambda weights: weights.update({"layer1.0.bn1.bias": torch.zeros(3)}),
            r"layer1.0.bn1.bias: \(3,\), wanted no",
        ),
        (lambda weights: weights.clear(), r"conv1.weight: missing, .*conv3.weight: missing.*, and 11 more$"),
        (lambda weights: weights["features.0.bias"].fill_(np.nan), "conv1.bias has values that are not finite"),
        (
            lambda weights: weights.update({"features.0.bias": torch.zeros(8, dtype=torch.int8)}),
            "conv1.bias is torch.int8, torch.strided; dense floats are wanted",
        ),
        (
            lambda weights: weights.update({"classifier.6.bias": torch.zeros(7).to_sparse()}),
            "fc8.bias is torch.float32, torch.sparse_coo; dense floats are wanted",
        ),
    ],
)
def test_other_networks_are_refused(tmp_path, change, message):
    weights = state()
    change(weights)
    torch.save(weights, tmp_path / "a.pth")
    with pytest.raises(ConfigurationError, match=rf"^{tmp_path}/a.pth: .*{message}"):
        read_torchvision(tmp_path / "a.pth", NARROW)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-3000]), "is damaged: PytorchStreamReader failed"),
        (lambda path: path.write_bytes(b"hello"), "is damaged: .*; copy or download it again"),
        (lambda path: path.write_bytes(bytes(range(256)) * 9), "is damaged, or no PyTorch file"),
        (lambda path: path.write_bytes(b"<!DOCTYPE html><html>"), "is a web page, not the file itself"),
        (lambda path: path.write_bytes(b""), "is empty: copy or download"),
        (lambda path: torch.save([1, 2], path), "holds list, not the weights by name"),
        (lambda path: torch.save({"epoch": 3}, path), "holds dict, not the weights by name"),
        (lambda path: path.unlink(), None),
    ],
)
def test_damaged_files_are_named(tmp_path, write, message):
    path = tmp_path / "a.pth"
    torch.save(state(), path)
    write(path)
    with pytest.raises(ConfigurationError, match=f"^{path} {message}" if message else f"no such file: {path}") as error:
        read_torchvision(path, NARROW)
    assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # TorchScript's
def test_a_torchscript_program_is_named(tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.ReLU()), tmp_path / "a.pt")
    with pytest.raises(ConfigurationError, match=r"a.pt holds a TorchScript program; save model.state_dict"):
        read_torchvision(tmp_path / "a.pt", NARROW)


def test_our_own_weights_need_no_conversion(tmp_path):
    torch.save(state(), tmp_path / "a.pth")
    convert(tmp_path / "a.pth", tmp_path / "w.safetensors", variation=NARROW)
    with pytest.raises(ConfigurationError, match="was written by fastalex; use it as it is"):
        read_torchvision(tmp_path / "w.safetensors", NARROW)

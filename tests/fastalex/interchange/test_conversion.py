"""The mean, the classes and the file of a conversion."""

import numpy as np
import pytest
import torch

from fastalex.errors import ConfigurationError
from fastalex.interchange.conversion import convert, read_classes, read_network
from fastalex.network.weights import load_spec
from fastalex.network.weights_record import load_record
from tests.fastalex.interchange.networks import NARROW, torchvision_alexnet

SEVEN = "n01440764 tench, Tinca tinca\nn02012849 crane\nn03126707 crane\nn1 d\n\u00e9 e\nf\ng\n"


@pytest.fixture(scope="module")
def alexnet(tmp_path_factory):
    path = tmp_path_factory.mktemp("other") / "alexnet.pth"
    torch.save(torchvision_alexnet().state_dict(), path)
    return path


def test_classes_are_written(alexnet, tmp_path):
    (tmp_path / "classes.txt").write_text(SEVEN, encoding="utf-8")
    made = convert(alexnet, tmp_path / "w.safetensors", classes=tmp_path / "classes.txt", variation=NARROW)
    assert made.network.classes[::4] == ("n01440764 tench, Tinca tinca", "é e")
    assert load_spec(tmp_path / "w.safetensors").classes == made.network.classes


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ("cat\ndog", ("cat", "dog")),
        ("n01440764 tench, Tinca tinca\r\nn01443537\tgoldfish\r\n\r\n", ("tench, Tinca tinca", "goldfish")),
        ("n01440764\nn01443537\n", ("n01440764", "n01443537")),
        ("n01440764 tench\ngoldfish\n", ("n01440764 tench", "goldfish")),
        ("n02012849 crane\nn03126707 crane\n", ("crane (n02012849)", "crane (n03126707)")),
        ("\ufeffcat\n dog \n", ("cat", "dog")),
    ],
)
def test_names_of_classes(tmp_path, content, names):
    (tmp_path / "c.txt").write_bytes(content.encode())
    assert read_classes(tmp_path / "c.txt") == names


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"cat\n\ndog\n", ": line 2 is empty; give one name a line"),
        (b"cat\ndog\ncat\n", " has 'cat' 2 times; give each class a name of its own"),
        (b"\xff\xfe\x00", " is no text in UTF-8"),
        (b"", " is empty"),
        (None, ""),
    ],
)
def test_what_names_no_classes(tmp_path, content, message):
    path = tmp_path / "c.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=f"{path}{message}"):
        read_classes(path)


def test_every_class_needs_a_name(alexnet, tmp_path):
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    with pytest.raises(
        ConfigurationError, match=rf"classes.txt names 2 classes, {alexnet} has 7; give one name a line"
    ):
        convert(alexnet, tmp_path / "w.safetensors", classes=tmp_path / "classes.txt", variation=NARROW)
    assert not (tmp_path / "w.safetensors").exists()


def test_a_mean_image_replaces_torchvisions_colour(alexnet, tmp_path):
    mean = np.random.default_rng(0).uniform(90, 130, (240, 240, 3)).astype(np.float32)
    np.save(tmp_path / "mean.npy", mean)
    made = convert(alexnet, tmp_path / "w.safetensors", mean=str(tmp_path / "mean.npy"), variation=NARROW)
    record = load_record(tmp_path / "w.safetensors")
    assert np.array_equal(record.mean, mean)
    assert (record.stored_size, made.network.channel_means) == (240, False)
    np.save(tmp_path / "mean.npy", mean[:200, :200])
    with pytest.raises(ConfigurationError, match=r"the mean image has 200 x 200 pixels, the network takes 224 x 224"):
        convert(alexnet, tmp_path / "v.safetensors", mean=str(tmp_path / "mean.npy"), variation=NARROW)


def test_a_file_is_only_replaced_if_asked(alexnet, tmp_path):
    output = tmp_path / "w.safetensors"
    output.write_text("precious")
    with pytest.raises(ConfigurationError, match=r"w.safetensors exists already"):
        convert(alexnet, output, variation=NARROW)
    assert output.read_text() == "precious"
    convert(alexnet, output, overwrite=True, variation=NARROW)
    assert load_spec(output).architecture == "owt"
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]


def test_an_unknown_format_is_named(tmp_path):
    (tmp_path / "weights.h5").write_bytes(b"\x89HDF")
    with pytest.raises(ConfigurationError, match=r"weights.h5 ends with '.h5'; the networks that can be converted end"):
        read_network(tmp_path / "weights.h5")
    with pytest.raises(ConfigurationError, match="no such file"):
        read_network(tmp_path / "nothing.h5")

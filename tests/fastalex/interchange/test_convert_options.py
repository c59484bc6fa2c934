"""``python -m fastalex.convert`` as a user types it."""

import torch

from fastalex.interchange import conversion
from fastalex.network.weights import load_spec
from tests.fastalex.commands import command, refused
from tests.fastalex.interchange.networks import NARROW, TorchvisionAlexNet, caffemodel, random_weights


def test_torchvisions_network_in_full_size(tmp_path):
    with torch.device("meta"):
        model = TorchvisionAlexNet((64, 192, 384, 256, 256), 4096, 3)
    # A file of one stored zero per weight, which saves seconds.
    weights = {name: torch.zeros(()).expand(value.shape) for name, value in model.state_dict().items()}
    torch.save(weights, tmp_path / "a.pth")
    (tmp_path / "classes.txt").write_text("blue\ngreen\nred\n")
    code, out, err = command(tmp_path, "fastalex.convert", "a.pth", "w.safetensors", "--classes", "classes.txt")
    assert (code, err) == (0, "")
    lines = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert lines["weights"] == "w.safetensors, from torchvision's alexnet"
    assert lines["network"] == "owt"
    assert lines["classes"] == "3, from blue to red"
    assert lines["colours"] == "red, green, blue"
    assert lines["mean"] == "colour 123.7, 116.3, 103.5 (red, green, blue)"
    assert lines["images"] == "the shorter side becomes 256 pixels, the network sees 224 x 224 of them"
    assert lines["evaluate"].endswith("-m fastalex.evaluate w.safetensors DATA")
    assert load_spec(tmp_path / "w.safetensors").classes == ("blue", "green", "red")
    assert (tmp_path / "w.safetensors").stat().st_mode & 0o777 == 0o644


def test_bad_input_is_one_line(tmp_path):
    """And no file is written or lost."""
    (tmp_path / "a.pth").write_bytes(b"PK\x03\x04 and not much else")
    (tmp_path / "old.safetensors").write_text("precious")
    narrow = caffemodel(random_weights("caffe"))
    (tmp_path / "narrow.caffemodel").write_bytes(narrow.SerializeToString())
    for words, message in (
        (("a.pth", "w.safetensors"), "a.pth is damaged"),
        (("b.pth", "w.safetensors"), "no such file: b.pth"),
        (("a.pth", "w.pth"), "w.pth must end with .safetensors, got '.pth'"),
        (("a.pth", "old.safetensors"), "old.safetensors exists already; choose another file, or add --force"),
        (("a.pth", "no/w.safetensors"), "no/w.safetensors: the folder no does not exist; create it first"),
        (("old.safetensors", "old.safetensors", "--force"), "is the file to convert; choose another name"),
        (("a.pth", "w.safetensors", "--mean", "1,2"), "the mean colour 1,2 has 2 numbers; give red, green and blue"),
        (("a.pth", "w.safetensors", "--mean", "red"), "no such file: red; give a mean as a file"),
        (("a.pth", "w.safetensors", "--classes", "c.txt"), "no such file: c.txt"),
        (("a.pth",), "missing OUT.safetensors"),
        (
            ("narrow.caffemodel", "w.safetensors", "--mean", "123,117,104"),
            "narrow.caffemodel: these are not the weights of caffe: conv1.weight: (8, 3, 11, 11), wanted (96, 3, 11,",
        ),
    ):
        assert message in refused(tmp_path, "fastalex.convert", *words)
        assert not (tmp_path / "w.safetensors").exists()
    assert (tmp_path / "old.safetensors").read_text() == "precious"


def test_what_to_give_as_a_mean(tmp_path, monkeypatch):
    """Only the weights tell which network it is; here a narrow one is taken for Caffe's."""
    (tmp_path / "a.caffemodel").write_bytes(caffemodel(random_weights("caffe")).SerializeToString())
    read = conversion.read_network
    monkeypatch.setattr(conversion, "read_network", lambda path, variation: read(path, NARROW))
    message = refused(tmp_path, "fastalex.convert", "a.caffemodel", "w.safetensors")
    assert message.endswith(
        "a.caffemodel does not hold the mean of its training images, which the network needs; give Caffe's "
        "mean.binaryproto or ilsvrc_2012_mean.npy with --mean FILE, or the mean colour with --mean 123,117,104"
    )

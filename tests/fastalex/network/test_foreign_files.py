"""Files that are given in place of weights."""

import gzip
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from fastalex.errors import ConfigurationError
from fastalex.network.foreign_files import check_file
from fastalex.network.weights import NetworkSpec, load_model, load_spec

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22ead\nsize 244408911\n"
PAGE = b"\n<!DOCTYPE html>\n<html><head><title>Sign in</title></head><body>403</body></html>\n"


def write_tar(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        archive.add(__file__, "weights.safetensors")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: path.write_bytes(POINTER), "is a Git LFS pointer, not the file itself: fetch .* git lfs pull"),
        (
            lambda path: torch.save({"a": torch.zeros(3)}, path),
            r"is a PyTorch file \(.pth, .pt\) or another zip archive: .*: .*python3? -m fastalex.convert FILE OUT.safe",
        ),
        (
            lambda path: torch.save({"a": torch.zeros(3)}, path, _use_new_zipfile_serialization=False),
            "is a PyTorch file or another pickle: fastalex reads only .safetensors .*python3? -m fastalex.convert FILE",
        ),
        (lambda path: path.write_bytes(pickle.dumps({"a": 1})), "is a pickle: fastalex reads only .safetensors"),
        (lambda path: path.write_bytes(PAGE), "is a web page, not the file itself: the download failed"),
        (lambda path: path.write_bytes(gzip.compress(b"weights")), "is compressed by gzip: unpack it first"),
        (
            lambda path: Image.new("RGB", (9, 9)).save(path, "JPEG"),
            "is a JPEG image: a run folder or a .safetensors file of weights comes first, then the images",
        ),
        (lambda path: Image.new("RGB", (9, 9)).save(path, "PNG"), "is a PNG image: a run folder or"),
        (write_tar, "is a tar archive: unpack it first"),
        (lambda path: np.save(path.open("wb"), np.zeros(3)), "is a NumPy array"),
        (lambda path: path.write_text('{"architecture": "krizhevsky"}'), "is a text file"),
        (lambda path: path.touch(), "is empty: copy or download the file again"),
        (lambda path: path.write_bytes(bytes(5000)), "is full of zeros"),
        (lambda path: path.write_bytes(bytes(range(256)) * 9), "is damaged: .*; restore the file from a copy"),
    ],
)
def test_what_a_foreign_file_is_and_what_to_do(tmp_path, write, message):
    path = tmp_path / "best.safetensors"
    write(path)
    with pytest.raises(ConfigurationError, match=f"^{path} {message}") as error:
        load_model(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("name", "kind"), [("a.onnx", "an ONNX file"), ("a.caffemodel", "Caffe's weights")])
def test_files_that_can_be_converted_are_known_by_their_suffix(tmp_path, name, kind):
    (tmp_path / name).write_bytes(b"\x0a\x07AlexNet\x12\x00")
    with pytest.raises(
        ConfigurationError, match=rf"{name} is {kind}: .*, convert it with: .*python3? -m fastalex.convert"
    ):
        load_model(tmp_path / name)
    (tmp_path / name).write_bytes(gzip.compress(b"weights"))
    with pytest.raises(ConfigurationError, match=rf"{name} is compressed by gzip: unpack it first"):
        load_model(tmp_path / name)


def test_a_file_to_read_is_checked(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "pointer").write_bytes(POINTER)
    (tmp_path / "good").write_bytes(b"anything else")
    os.mkfifo(tmp_path / "pipe")
    check_file(tmp_path / "good")
    for name, message in (
        ("folder", "folder is a folder; name a file"),
        ("pipe", "pipe is not a regular file; name a file"),
        ("none", "no such file: .*none"),
        ("n" * 300, "cannot read .*: File name too long"),
        ("pointer", "pointer is a Git LFS pointer"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            check_file(tmp_path / name)


def test_a_damaged_file_of_ours_is_called_damaged(tmp_path):
    """Whatever the length of its header, which is its first bytes."""
    spec = NetworkSpec("four-layer", 3)
    weights = {name: tensor.contiguous() for name, tensor in spec.build(seed=0).state_dict().items()}
    for padding in range(0, 512, 8):  # header lengths are multiples of 8
        path = tmp_path / f"{padding}.safetensors"
        save_file(weights, path, {"fastalex": spec.to_json(), "padding": "." * padding})
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(ConfigurationError, match=r"is damaged: .*; restore the file from a copy"):
            load_spec(path)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (
            {},
            "was not written by fastalex: .* 'fastalex'; name the weights of a run, or convert torchvision's with: ",
        ),
        ({"fastalex": ""}, "is damaged: its header does not describe a network"),
        ({"fastalex": "{}"}, r"is damaged: .*\(there is no network.architecture\)"),
        ({"fastalex": "[" * 10**5}, "is damaged: "),
        (
            {"fastalex": '{"architecture": "krizhevskx", "num_classes": 3, "variation": {}, "classes": []}'},
            "is damaged: .*unknown architecture 'krizhevskx'",
        ),
        (
            {"fastalex": '{"architecture": "caffe", "num_classes": "3", "variation": {}, "classes": []}'},
            "is damaged: .*network.num_classes must be an integer, got '3'",
        ),
        (
            {"fastalex": '{"architecture": "caffe", "num_classes": 3, "variation": {"width": "1"}, "classes": []}'},
            "is damaged: .*network.variation.width must be a finite number, got '1'",
        ),
        (
            {"fastalex": '{"architecture": "caffe", "num_classes": 3, "variation": {}, "classes": ["a"]}'},
            "is damaged: .*num_classes is 3, but 1 classes are named",
        ),
    ],
)
def test_headers_of_others_and_damaged_ones(tmp_path, header, message):
    path = tmp_path / "other.safetensors"
    save_file({"conv1.weight": torch.zeros(3)}, path, header)
    with pytest.raises(ConfigurationError, match=f"^{path} {message}"):
        load_spec(path)


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(ConfigurationError, match=r"pipe.safetensors is not a regular file"):
        load_spec(tmp_path / "pipe.safetensors")

"""Means as users have them."""

import os
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fastalex.errors import ConfigurationError
from fastalex.network.means import mean_colour, read_mean, read_mean_image
from fastalex.network.weights_record import WeightsRecord

IMAGE = np.random.default_rng(0).uniform(60, 180, (8, 8, 3)).astype(np.float32)


def binaryproto(planes: np.ndarray) -> bytes:
    """A ``BlobProto`` with num, channels, height and width."""
    values = planes.astype(np.float32).tobytes()
    shape = b"".join(bytes([8 * number, size]) for number, size in enumerate((1, *planes.shape), 1))
    return shape + b"\x2a" + bytes([len(values) % 128 | 128, len(values) // 128]) + values


@pytest.mark.parametrize("given", ["123,117.5,104", " 123, 117.5 ,104.0"])
def test_a_colour(given):
    found = read_mean(given)
    assert found.dtype == np.float32
    assert found.tolist() == [123.0, 117.5, 104.0]
    assert np.array_equal(read_mean_image(given, 4), np.broadcast_to(found, (4, 4, 3)))


def test_files_of_every_kind(tmp_path):
    """Caffe's layout, planes first, has Caffe's order of colours, blue first."""
    planes = IMAGE[..., ::-1].transpose(2, 0, 1)
    np.save(tmp_path / "ours.npy", IMAGE)
    np.save(tmp_path / "caffes.npy", planes.astype(np.float64))
    np.save(tmp_path / "batch.npy", planes[None])
    (tmp_path / "mean.binaryproto").write_bytes(binaryproto(planes))
    record = WeightsRecord(IMAGE, 8, 6)
    save_file(record.tensors(), tmp_path / "w.safetensors", record.header())
    for name in ("ours.npy", "caffes.npy", "batch.npy", "mean.binaryproto", "w.safetensors"):
        found = read_mean(str(tmp_path / name))
        assert found.dtype == np.float32
        assert np.array_equal(found, IMAGE), name
        assert np.array_equal(read_mean_image(str(tmp_path / name), 5), IMAGE)


def test_the_average_colour():
    assert np.allclose(mean_colour(IMAGE), IMAGE.mean((0, 1)))
    assert mean_colour(IMAGE[0, 0]).tolist() == IMAGE[0, 0].tolist()


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (IMAGE[:, :7], "has 8 x 7 pixels; a mean image of squares is wanted"),
        (IMAGE[..., :2], r"has shape \(8, 8, 2\); a mean image has S x S x 3, or 3 x S x S"),
        (IMAGE[0, 0], r"has shape \(3,\)"),
        (IMAGE / 255, "goes from 0.2.* to 0.7.*, not to 255: multiply it by 255"),
        (IMAGE * 2, "goes from .* to 35.*; it must lie between 0 and 255"),
        (IMAGE - 100, "goes from -3.* it must lie between"),
        (IMAGE * np.nan, "goes from nan to nan; it must lie between"),
        (np.zeros((0, 0, 3)), "goes from nan to nan"),
        (np.array([["a"]]), "holds <U1 in place of numbers"),
    ],
)
def test_other_arrays_are_refused(tmp_path, array, message):
    np.save(tmp_path / "mean.npy", array)
    with pytest.raises(ConfigurationError, match=f"mean.npy {message}"):
        read_mean(str(tmp_path / "mean.npy"))


@pytest.mark.parametrize("given", ["0.485,0.456,0.406", "123,117,300", "-1,0,0"])
def test_other_colours_are_refused(given):
    with pytest.raises(ConfigurationError, match=f"^the mean {given} goes from"):
        read_mean(given)
    assert read_mean("0,0,0").tolist() == [0, 0, 0]


@pytest.mark.parametrize("given", ["123", "123,117", "123,117,104,99"])
def test_a_colour_has_three_numbers(given):
    count = given.count(",") + 1
    with pytest.raises(
        ConfigurationError, match=f"the mean colour {given} has {count} numbers; give red, green and blue"
    ):
        read_mean(given)


class Code:
    def __reduce__(self):
        return os.system, ("true",)


def test_other_files_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", IMAGE)
    whole = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "a.npy").write_bytes(whole[:-9])
    np.save(tmp_path / "code.npy", np.array([Code()], dtype=object), allow_pickle=True)
    (tmp_path / "b.npy").write_bytes(pickle.dumps(Code()))
    (tmp_path / "c.binaryproto").write_bytes(binaryproto(IMAGE.transpose(2, 0, 1))[:-9])
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    (tmp_path / "folder.npy").mkdir()
    save_file({"a": torch.zeros(2)}, tmp_path / "w.safetensors")
    (tmp_path / "x.safetensors").write_bytes((tmp_path / "w.safetensors").read_bytes()[:-1])
    for name, message in (
        ("a.npy", "is damaged or no .npy file: .*; copy or download it again"),
        ("code.npy", "is damaged or no .npy file: Object arrays cannot be loaded"),
        ("b.npy", "is damaged or no .npy file"),
        ("c.binaryproto", "is damaged or no .binaryproto file: "),
        ("picture.png", "is no mean: give a file"),
        ("folder.npy", "is a folder; name a file"),
        ("w.safetensors", "does not record the mean of its images; give the mean itself"),
        ("x.safetensors", "is damaged"),
    ):
        with pytest.raises(ConfigurationError, match=f"{name} {message}") as error:
            read_mean(str(tmp_path / name))
        assert "\n" not in str(error.value)
    with pytest.raises(ConfigurationError, match=r"no such file: .*/none.npy; give a mean as a file \(.npy"):
        read_mean(str(tmp_path / "none.npy"))

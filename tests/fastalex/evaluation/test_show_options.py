"""Pictures of a network's first kernels, from the command line."""

import numpy as np
from PIL import Image

from fastalex.network.weights import load_model
from fastalex.pictures import kernel_picture
from tests.fastalex.commands import command_here, refused


def test_the_best_weights_of_a_run_are_drawn(runs, tmp_path):
    code, out, err = command_here(tmp_path, "fastalex.show", runs[0])
    weights = runs[0] / "best.safetensors"
    assert (code, err) == (0, "")
    assert out == f"8 kernels of 11 x 11 x 3 (conv1 of {weights}, 2 towers): {runs[0] / 'conv1-best.png'}\n"
    assert list(tmp_path.iterdir()) == []
    with Image.open(runs[0] / "conv1-best.png") as picture:
        assert np.array_equal(np.array(picture), np.array(kernel_picture(load_model(runs[0])[0].conv1.weight, 2)))


def test_an_existing_picture_is_replaced_only_if_asked(runs, tmp_path):
    picture = tmp_path / "a.png"
    picture.write_bytes(b"mine")
    arguments = ("fastalex.show", runs[0] / "last.safetensors", "-o", "a.png")
    assert "a.png exists already; choose another file, or add --force" in refused(tmp_path, *arguments)
    assert picture.read_bytes() == b"mine"
    assert command_here(tmp_path, *arguments, "--force")[0] == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_what_is_refused(runs, tmp_path):
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        (("empty",), "empty is not a run folder: it has no config.json"),
        (("nowhere",), "no such run folder or weights file: nowhere"),
        ((runs[0] / "config.json",), "config.json is a text file"),
        ((runs[0], "-o", "a.jpg"), "a.jpg must end with .png, got '.jpg'"),
        ((runs[0], "-o", "no/a.png"), "the folder no does not exist; create it first"),
    ):
        assert message in refused(tmp_path, "fastalex.show", *arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]

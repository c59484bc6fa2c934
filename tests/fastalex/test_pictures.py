"""Pictures of kernels, pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from fastalex.errors import ConfigurationError
from fastalex.pictures import kernel_picture, write_png

GAP, TOWER_GAP = 4, 24
WHITE = [255, 255, 255]


def kernels(count: int, size: int) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def place(index: int, towers: int, per_tower: int, side: int) -> tuple[int, int]:
    """The top left pixel of a kernel, where each tower has rows of 16."""
    rows_of_a_tower = -(-per_tower // 16)
    tower, within = index // per_tower, index % per_tower
    row = tower * rows_of_a_tower + within // 16
    return GAP + row * (side + GAP) + tower * (TOWER_GAP - GAP), GAP + within % 16 * (side + GAP)


@pytest.mark.parametrize(
    ("count", "size", "towers", "zoom", "shape"),
    [
        (96, 11, 2, 6, (6 * 70 + 4 + 20, 16 * 70 + 4)),  # 2012: three rows above, three below
        (64, 11, 1, 6, (4 * 70 + 4, 16 * 70 + 4)),
        (20, 5, 1, 13, (2 * 69 + 4, 16 * 69 + 4)),  # the last row is not full
        (12, 3, 2, 21, (2 * 67 + 4 + 20, 6 * 67 + 4)),  # fewer than a row
        (3, 1, 3, 64, (3 * 68 + 4 + 2 * 20, 68 + 4)),
        (1, 200, 1, 1, (208, 208)),
    ],
)
def test_every_kernel_has_its_place_and_the_rest_is_white(count, size, towers, zoom, shape):
    weights = kernels(count, size)
    picture = kernel_picture(weights, towers)
    pixels = np.array(picture)
    assert picture.mode == "RGB"
    assert pixels.shape == (*shape, 3)
    side = size * zoom
    for index, kernel in enumerate(weights):
        top, left = place(index, towers, count // towers, side)
        drawn = pixels[top : top + side, left : left + side].copy()
        scaled = 127.5 + 127.5 * kernel.double() / kernel.double().abs().max()
        # Red, green and blue of every weight, as a square of pixels.
        expected = scaled.permute(1, 2, 0).round().numpy().repeat(zoom, 0).repeat(zoom, 1)
        assert np.array_equal(drawn, expected), index
        pixels[top : top + side, left : left + side] = WHITE
    assert (pixels == 255).all()


def test_each_kernel_has_its_own_scale_and_zero_is_grey():
    weights = torch.zeros(4, 3, 1, 1)
    weights[0] = torch.tensor([1.0, 0.0, -0.5]).view(3, 1, 1)
    weights[1] = weights[0] * 1e-37
    weights[2] = -weights[0] * 3e38
    pixels = np.array(kernel_picture(weights))[GAP, GAP :: 64 + GAP]
    assert pixels[:4].tolist() == [[255, 128, 64], [255, 128, 64], [0, 128, 191], [128, 128, 128]]
    halves = kernel_picture(weights[:1].bfloat16().requires_grad_())
    assert np.array_equal(np.array(halves)[GAP, GAP], [255, 128, 64])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value):
    weights = kernels(4, 3)
    weights[2, 1, 0, 0] = value
    with pytest.raises(ConfigurationError, match="cannot be drawn: some of their weights are infinite or NaN"):
        kernel_picture(weights)


@pytest.mark.parametrize(
    ("shape", "towers", "message"),
    [
        ((4, 1, 3, 3), 1, "K x 3 x S x S, got 4 x 1 x 3 x 3"),
        ((4, 3, 3, 5), 1, "got 4 x 3 x 3 x 5"),
        ((4, 3), 1, "got 4 x 3"),
        ((0, 3, 3, 3), 1, "got 0 x 3 x 3 x 3"),
        ((4, 3, 3, 3), 3, "towers must divide the 4 kernels, got 3"),
        ((4, 3, 3, 3), 0, "towers must divide the 4 kernels, got 0"),
    ],
)
def test_other_shapes_and_towers_are_refused(shape, towers, message):
    with pytest.raises(ValueError, match=message):
        kernel_picture(torch.ones(shape), towers)


def test_a_picture_is_written_without_loss_over_an_older_one(tmp_path):
    picture, path = kernel_picture(kernels(4, 3)), tmp_path / "kernels.png"
    path.write_bytes(b"older")
    write_png(picture, path)
    with Image.open(path) as stored:
        assert stored.format == "PNG"
        assert np.array_equal(np.array(stored), np.array(picture))
    assert [found.name for found in tmp_path.iterdir()] == ["kernels.png"]

"""Single images are prepared as the loader prepares those of a data set."""

import io
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from dataloading.preparation.images import ImageOptions, prepare_image
from fastalex.errors import ConfigurationError
from fastalex.evaluation.trained_network import open_loader
from fastalex.network.weights_record import WeightsRecord, load_record
from fastalex.prediction.preprocessing import Preprocessing, UnusableImage
from tests.fastalex.evaluation.conftest import HERE

GENERATOR = np.random.default_rng(5)


def small(**changes: object) -> Preprocessing:
    """Stored images of 20 pixels, crops of 16; the mean colour is 1, 2, 3."""
    values = {"mean": np.array([1, 2, 3], np.float32), "stored_size": 20, "crop_size": 16, **changes}
    return Preprocessing(WeightsRecord(**values))


def noise(height: int, width: int) -> np.ndarray:
    return GENERATOR.integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("views", [1, 10])
def test_stored_images_give_the_batches_of_the_loader(runs, prepared, stored, views):
    preprocess = Preprocessing(load_record(runs[0] / "best.safetensors"))
    with closing(open_loader(HERE, str(prepared), None, "val", 7, 224, views)) as loader:
        batch = next(loader.epoch(0)).images
    for number, expected in enumerate(batch):
        found = preprocess.views(stored / f"{number}.jpg", views)
        assert torch.equal(found, expected.reshape(views, 3, 224, 224)), number


def test_an_image_that_has_its_size_goes_through_unchanged(tmp_path):
    pixels, preprocess = noise(20, 20), small()
    Image.fromarray(pixels).save(tmp_path / "a.png")
    crop = torch.from_numpy(pixels[2:18, 2:18].astype(np.float32) - [1, 2, 3]).permute(2, 0, 1).float()
    for image in (tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(pixels), pixels):
        assert torch.equal(preprocess(image), crop)
        assert preprocess(image).dtype == torch.float32


def test_it_says_what_it_does():
    said = "Preprocessing(shorter side to 20, centre of 16 x 16, minus the mean colour)"
    assert repr(small()) == said
    assert (
        repr(replace(small(), resize="squash", crop=False)) == "Preprocessing(both sides to 16, minus the mean colour)"
    )
    exact = replace(small(mean=np.zeros((20, 20, 3), np.float32)), resize="none")
    assert repr(exact) == "Preprocessing(centre of 16 x 16, minus the mean image)"


def test_other_images_are_resized_as_a_preparation_does(tmp_path):
    pixels = noise(37, 61)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    expected = prepare_image(buffer.getvalue(), ImageOptions(size=20)).square
    assert np.array_equal(small().stored(pixels), expected)
    squashed = small(resize="squash").stored(np.repeat(np.repeat(pixels[:20, :20], 2, 0), 3, 1))
    assert np.array_equal(squashed, pixels[:20, :20])


def test_the_centre_of_the_mean_image_is_subtracted_from_every_view():
    pixels, mean = noise(20, 20), GENERATOR.random((20, 20, 3), dtype=np.float32)
    views = small(mean=mean).views(pixels, 10).permute(0, 2, 3, 1).numpy()
    centre = mean[2:18, 2:18]
    places = [(0, 0), (0, 4), (4, 0), (4, 4), (2, 2)]
    for number, (top, left) in enumerate(places):
        crop = pixels[top : top + 16, left : left + 16]
        assert np.array_equal(views[number], crop - centre)
        assert np.array_equal(views[number + 5], crop[:, ::-1] - centre)


def test_orientation_and_transparency(tmp_path):
    pixels = noise(20, 20)
    turned = Image.Exif()
    turned[0x0112] = 3  # upside down
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=turned)
    record = small().record
    assert np.array_equal(Preprocessing(record).stored(tmp_path / "turned.png"), pixels)
    assert np.array_equal(Preprocessing(record, exif=True).stored(tmp_path / "turned.png"), pixels[::-1, ::-1])
    clear = np.dstack([pixels, np.zeros((20, 20), np.uint8)])
    Image.fromarray(clear).save(tmp_path / "clear.png")
    for image in (tmp_path / "clear.png", Image.fromarray(clear)):
        assert np.array_equal(Preprocessing(record).stored(image), pixels)
        assert (Preprocessing(record, background=(9, 8, 7)).stored(image) == [9, 8, 7]).all()


def test_what_cannot_be_used_is_named(tmp_path):
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.png").write_text("no image")
    Image.fromarray(noise(1, 200)).save(tmp_path / "narrow.png")
    whole = io.BytesIO()
    Image.fromarray(noise(64, 64)).save(whole, "JPEG")
    (tmp_path / "cut.jpg").write_bytes(whole.getvalue()[:700])
    for image, message in (
        (tmp_path / "none.jpg", "none.jpg cannot be read: No such file or directory"),
        (tmp_path, "is a folder; name an image"),
        (tmp_path / "empty.jpg", "empty.jpg is no image that can be used: empty file"),
        (tmp_path / "text.png", "text.png is no image that can be used: not an image: starts with b'no image'"),
        (tmp_path / "cut.jpg", "cut.jpg is no image that can be used: does not decode"),
        (tmp_path / "narrow.png", "narrow.png is too narrow: 200 x 1 pixels"),
        (noise(4, 4).astype(np.float32), r"pixels must be uint8, height x width x 3, got float32 of shape \(4, 4, 3\)"),
        (noise(4, 4)[..., 0], r"got uint8 of shape \(4, 4\)"),
        (torch.zeros(3, 4, 4), "must be a path, a PIL image or a uint8 array, got Tensor"),
        (Image.fromarray(np.full((4, 4), 3.5, np.float32)), "floating-point pixels from 3.5 to 3.5"),
    ):
        with pytest.raises(UnusableImage, match=message):
            small()(image)
    with pytest.raises(ConfigurationError, match="views must be 1 or 10, got 5"):
        small().views(noise(20, 20), 5)

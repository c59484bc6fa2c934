"""Readers that the loader is compared with do the same work: every image is one of the data set, mirrored or not."""

import io
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image
from preparation import rivals

import dataloading
from tests.fastalex.conftest import write_images


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A data set of 32-pixel images in three colours, and the pixels of its training images."""
    folder = tmp_path_factory.mktemp("rivals")
    write_images(folder / "images", train=10, val=1)
    dataset = dataloading.prepare_dataset(folder / "images", folder / "small", size=40, progress=False, workers=0)
    images = [Image.open(io.BytesIO(dataset.read("train", row))) for row in range(dataset.count("train"))]
    square = [np.asarray(image.crop((0, 0, dataset.size, dataset.size)), dtype=np.float32) for image in images]
    return dataset, square


def nearest(image, candidates):
    """The smallest mean difference from a stored image or its mirror image, in grey levels."""
    return min(np.abs(image - found).mean() for pixels in candidates for found in (pixels, pixels[:, ::-1]))


def test_dali_alone_delivers_the_stored_images(stored):
    dataset, square = stored
    batches = list(islice(rivals.dali_batches(dataset, 8, 1, 32, 0.0), 2))
    assert [batch.shape for batch in batches] == [(8, 3, 32, 32)] * 2
    assert not torch.equal(*batches)
    border = (dataset.size - 32) // 2
    mean = dataset.mean_image[border : border + 32, border : border + 32]
    # The images of a class have one colour, so a small crop tells the class of its image.
    colours = np.array([pixels.mean((0, 1)) for pixels in square])
    for image in torch.cat(batches).permute(0, 2, 3, 1).numpy() + mean:
        assert 0 <= image.min() <= image.max() <= 255
        assert np.abs(colours - image.mean((0, 1))).mean(1).min() < 12


def test_webdataset_delivers_the_stored_images(stored):
    dataset, square = stored

    def prepare(data):
        pixels = np.asarray(Image.open(io.BytesIO(data)), dtype=np.float32)[: dataset.size, : dataset.size]
        return torch.from_numpy(pixels.copy())

    (batch,) = islice(rivals.webdataset_batches(dataset, prepare, 8, 0), 1)
    assert batch.shape == (8, 3, dataset.size, dataset.size)
    for image in batch.permute(0, 2, 3, 1).numpy():
        assert nearest(image, square) == 0

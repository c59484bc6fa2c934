"""Loading from a synthetic data set."""

import pytest
import torch

from dataloading import DatasetError, SyntheticDataset
from tests.dataloading.loading.loaders import evaluating, loader, samples


def test_synthetic_data_look_like_a_data_set():
    dataset = SyntheticDataset(classes=10, train=25, val=7)
    source = loader(dataset, batch_size=10, crop_size=224)
    batches = list(source.epoch(0))
    assert [batch.images.shape for batch in batches] == [(10, 3, 224, 224), (10, 3, 224, 224), (5, 3, 224, 224)]
    assert batches[0].images.is_contiguous(memory_format=torch.channels_last)
    assert sorted(samples(batches)) == list(range(25))
    assert batches[0].labels.tolist() == [sample % 10 for sample in batches[0].samples]
    assert batches[0].images.data_ptr() == batches[1].images.data_ptr()
    ten = next(evaluating(dataset, views=10, dtype="float16", crop_size=224).epoch(0))
    assert (ten.images.shape, ten.images.dtype) == ((5, 10, 3, 224, 224), torch.float16)
    assert ten.images.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)
    with pytest.raises(DatasetError, match=r"has no split 'test'; it has train, val"):
        dataset.count("test")


def test_synthetic_images_are_uniform_noise_that_depends_on_the_seed():
    dataset = SyntheticDataset(classes=10, train=100, val=7)
    pixels, again, other, large = (
        next(loader(dataset, batch_size=10, dtype="uint8", augment=None, seed=seed).epoch(0)).images
        for seed in (1, 1, 2, 2**64 - 1)
    )
    assert torch.equal(pixels, again)
    assert not torch.equal(pixels, other)
    assert not torch.equal(pixels, large)
    assert torch.bincount(pixels.flatten().int(), minlength=256).min() > 0
    scaled = next(loader(dataset, batch_size=10, augment=None, seed=1).epoch(0)).images
    assert torch.equal(scaled, pixels.float() - 127.5)


def test_a_synthetic_data_set_is_known_by_its_numbers():
    dataset = SyntheticDataset(classes=10, train=25, val=7, size=64)
    assert [dataset.count(split) for split in dataset.splits] == [25, 7]
    assert dataset.labels("val").tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert dataset.labels("train")[9:12].tolist() == [9, 0, 1]
    others = [{"classes": 11}, {"train": 26}, {"val": 8}, {"size": 65}]
    numbers = {"classes": 10, "train": 25, "val": 7, "size": 64}
    assert len({dataset.fingerprint, *(SyntheticDataset(**(numbers | other)).fingerprint for other in others)}) == 5

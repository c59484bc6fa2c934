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

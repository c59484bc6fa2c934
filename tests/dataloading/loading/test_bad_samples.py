"""Samples that are damaged or do not decode."""

import errno
import os

import numpy as np
import pytest
import torch

from dataloading import Dataset, DatasetError
from dataloading.errors import DamagedSample
from tests.dataloading.damage import copied, overwritten, undecodable
from tests.dataloading.loading.loaders import loader, same


@pytest.fixture
def damaged(small, tmp_path) -> Dataset:
    """Sample 13 has a flipped byte."""
    root = copied(small.root, tmp_path / "copy")
    overwritten(root, "train", 13, b"?")
    return Dataset(root)


@pytest.fixture
def with_undecodable(small, tmp_path) -> Dataset:
    """Sample 13 has the right checksum but does not decode."""
    root = copied(small.root, tmp_path / "copy")
    undecodable(root, "train", 13)
    return Dataset(root)


@pytest.mark.parametrize("kind", ["damaged", "with_undecodable"])
def test_a_bad_sample_is_reported_in_its_own_batch_and_no_other(kind, small, request):
    dataset = request.getfixturevalue(kind)
    wanted = list(loader(small, batch_size=4).epoch(0))
    bad = next(number for number, batch in enumerate(wanted) if 13 in batch.samples)
    source = loader(dataset, batch_size=4)
    batches = source.epoch(0)
    for number in range(bad):
        assert same(next(batches), wanted[number])
    with pytest.raises(
        DatasetError, match=r"sample 13 of train \(000000013-0005.jpg in .*train-000001.tar, offset \d+\)"
    ):
        next(batches)
    rest = list(source.epoch(0, 4 * (bad + 1)))
    assert len(rest) == 5 - bad
    assert all(same(one, other) for one, other in zip(rest, wanted[bad + 1 :], strict=True))


@pytest.mark.parametrize("kind", ["damaged", "with_undecodable"])
def test_a_bad_sample_can_be_replaced_and_counted(kind, small, request, caplog):
    dataset = request.getfixturevalue(kind)
    source = loader(dataset, batch_size=4, on_bad_sample="skip")
    for epoch in range(2):
        for one, other in zip(source.epoch(epoch), loader(small, batch_size=4).epoch(epoch), strict=True):
            assert np.array_equal(one.samples, other.samples)
            assert torch.equal(one.labels, other.labels)
            for i, sample in enumerate(one.samples):
                assert torch.equal(one.images[i], other.images[i]) == (sample != 13)
    assert source.replaced == {13: 14}
    assert small.labels("train")[14] == small.labels("train")[13]
    named = [record.getMessage() for record in caplog.records]
    assert len(named) == 1
    assert "replaced by sample 14: sample 13 of train (000000013-0005.jpg in" in named[0]
    source.close()
    assert source.replaced == {13: 14}


def test_a_class_without_any_good_sample_stops_the_loader(small, tmp_path):
    root = copied(small.root, tmp_path / "copy")
    for sample in range(8):
        overwritten(root, "train", sample, b"??", at=60 + sample)
    # opening a data set verifies the first sample of each shard: give that one a valid checksum for an invalid image
    undecodable(root, "train", 0)
    source = loader(Dataset(root), batch_size=24, on_bad_sample="skip")
    with pytest.raises(DatasetError, match=r"its class has no good sample left to replace it"):
        next(source.epoch(0))


def test_a_shard_that_cannot_be_read_is_not_a_damaged_sample(small, tmp_path, monkeypatch):
    dataset = Dataset(copied(small.root, tmp_path / "copy"))
    real, broken = os.preadv, (dataset.root / "train-000001.tar").stat().st_ino

    def failing(descriptor: int, *arguments: object) -> int:
        if os.fstat(descriptor).st_ino == broken:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(descriptor, *arguments)

    source = loader(dataset, batch_size=24, on_bad_sample="skip")
    with monkeypatch.context() as patched:
        patched.setattr(os, "preadv", failing)
        with pytest.raises(
            DatasetError, match=r"cannot read .*train-000001.tar: Input/output error; check the disk"
        ) as caught:
            next(source.epoch(0))
    assert not isinstance(caught.value, DamagedSample)
    assert source.replaced == {}
    assert same(next(source.epoch(0)), next(loader(small, batch_size=24).epoch(0)))
    source.close()


@pytest.mark.parametrize("wanted", ["stop", "skip"])
def test_a_shard_that_is_cut_off_while_it_is_read_is_named(small, tmp_path, wanted):
    dataset = Dataset(copied(small.root, tmp_path / "copy"))
    os.truncate(dataset.root / "train-000001.tar", 19 * 512)
    source = loader(dataset, batch_size=24, on_bad_sample=wanted)
    with pytest.raises(
        DatasetError, match=r"train-000001.tar has been cut off: it ends at byte 9,728, before byte 1\d,\d+"
    ):
        next(source.epoch(0))
    assert source.replaced == {}
    source.close()

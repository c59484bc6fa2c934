"""Samples that are damaged or do not decode."""

import errno
import os

import numpy as np
import pytest
import torch

from dataloading import Augmentation, Dataset, DatasetError, prepare_dataset
from dataloading.errors import DamagedSample
from dataloading.loading.batch_feeder import BatchFeeder
from dataloading.loading.order import EpochBatches
from tests.dataloading.damage import copied, overwritten, undecodable
from tests.dataloading.loading.loaders import by_hand, loader, same
from tests.dataloading.small_sources import class_folders, jpeg


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
    for epoch in (2, 0):
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


def test_what_was_replaced_is_remembered_when_a_closed_loader_is_used_again(damaged, small):
    source = loader(damaged, batch_size=24, on_bad_sample="skip")
    next(source.epoch(0))
    source.close()
    with (damaged.root / "train-000001.tar").open("r+b") as file:  # the disk is well again
        file.write((small.root / "train-000001.tar").read_bytes())
    assert same(next(source.epoch(0)), next(loader(small, batch_size=24).epoch(0)))
    assert source.replaced == {13: 14}


def test_the_replacement_is_a_good_sample_and_the_search_begins_anew_at_the_end_of_the_class(small, tmp_path):
    root = copied(small.root, tmp_path / "copy")
    overwritten(root, "train", 13, b"?")
    undecodable(root, "train", 14)
    overwritten(root, "train", 15, b"?")
    dataset = Dataset(root)
    batches = EpochBatches(24, seed=7, shuffle=True, batch_size=4)
    feeder = BatchFeeder(dataset, "train", batches, crop_size=24, augment=None, skip=True)
    feeder.unusable.add(14)  # as the stream does when it does not decode
    assert feeder._files(np.array([12, 13, 14, 15]))[1].tolist() == [12, 8, 8, 8]
    source = loader(dataset, batch_size=4, on_bad_sample="skip")
    for epoch in (2, 0):  # in epoch 2, sample 14 comes before sample 13, which it would replace, and not first
        for batch in source.epoch(epoch):
            delivered = np.where(np.isin(batch.samples, [13, 14, 15]), 8, batch.samples)
            wanted = by_hand(dataset, batch.samples, Augmentation(), epoch=epoch, crop=24, delivered=delivered)
            assert np.abs(batch.images.permute(0, 2, 3, 1).numpy() - wanted).max() < 1e-3
    assert source.replaced == {13: 8, 14: 8, 15: 8}


def test_a_replacement_of_another_size_is_cropped_over_its_own_area(tmp_path):
    source = class_folders(tmp_path / "in", classes=2, train=4, val=1)
    for number, width in enumerate((60, 150, 48, 100)):
        (source / f"train/class1/{number:04d}.jpg").write_bytes(jpeg(number, width, 48))
    root = prepare_dataset(source, tmp_path / "out", size=32, keep_aspect=True, workers=0, progress=False).root
    for bad in (5, 7):
        overwritten(root, "train", bad, b"?")
    dataset = Dataset(root)
    for epoch in range(3):
        batch = next(loader(dataset, batch_size=8, on_bad_sample="skip").epoch(epoch))
        delivered = np.array([{5: 6, 7: 4}.get(sample, sample) for sample in batch.samples.tolist()])
        wanted = by_hand(dataset, batch.samples, Augmentation(), epoch=epoch, crop=24, delivered=delivered)
        assert np.abs(batch.images.permute(0, 2, 3, 1).numpy() - wanted).max() < 1e-3


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


def test_a_shard_that_cannot_be_read_ends_the_search_for_a_replacement(small, tmp_path, monkeypatch):
    root = copied(small.root, tmp_path / "copy")
    for sample in (13, 14, 15):  # then comes sample 8, in the shard before
        overwritten(root, "train", sample, b"?")
    dataset = Dataset(root)
    real, broken = os.preadv, (root / "train-000000.tar").stat().st_ino

    def failing(descriptor: int, *arguments: object) -> int:
        if os.fstat(descriptor).st_ino == broken:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(descriptor, *arguments)

    batches = EpochBatches(24, seed=7, shuffle=True, batch_size=4)
    feeder = BatchFeeder(dataset, "train", batches, crop_size=24, augment=None, skip=True)
    monkeypatch.setattr(os, "preadv", failing)
    with pytest.raises(DatasetError, match=r"cannot read .*train-000000.tar: Input/output error") as caught:
        feeder._files(np.array([13]))
    assert not isinstance(caught.value, DamagedSample)
    assert feeder.replaced == {}


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

import io
import os
import resource
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from dataloading import Augmentation, Batch, Dataset, DatasetError, Loader, SyntheticDataset
from dataloading.augment import draw
from dataloading.order import epoch_order
from tests.dataloading.damage import copied, overwritten, undecodable


def loader(
    dataset: Dataset | SyntheticDataset, split: str = "train", batch_size: int = 10, **options: object
) -> Loader:
    defaults = {
        "crop_size": 24,
        "seed": 7,
        "shuffle": True,
        "augment": Augmentation(),
        "drop_last": False,
        "threads": 1,
    }
    return Loader(dataset, split, batch_size, **(defaults | options))


def evaluating(
    dataset: Dataset | SyntheticDataset, split: str = "val", batch_size: int = 5, **options: object
) -> Loader:
    return loader(dataset, split, batch_size, **({"shuffle": False, "augment": None} | options))


def samples(batches) -> list[int]:
    return [sample for batch in batches for sample in batch.samples.tolist()]


def same(one: Batch, other: Batch) -> bool:
    return (
        np.array_equal(one.samples, other.samples)
        and torch.equal(one.images, other.images)
        and torch.equal(one.labels, other.labels)
    )


def stored(dataset: Dataset, split: str, sample: int) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(dataset.read(split, sample)))).astype(np.float32)


def by_hand(
    dataset: Dataset, batch: Batch, augmentation: Augmentation, *, seed: int, epoch: int, crop: int
) -> np.ndarray:
    """The images of a batch in plain NumPy, N x H x W x C."""
    rows = dataset.index("train")[batch.samples]
    found = draw(
        augmentation,
        seed=seed,
        epoch=epoch,
        samples=batch.samples,
        positions=np.arange(len(rows)),
        heights=rows["height"].astype(np.int64),
        widths=rows["width"].astype(np.int64),
        crop_size=crop,
        color_deviations=dataset.color_deviations,
        color_vectors=dataset.color_vectors,
    )
    border = (dataset.size - crop) // 2
    mean = dataset.mean_image[border : border + crop, border : border + crop]
    images = []
    for i, sample in enumerate(batch.samples):
        image = stored(dataset, "train", sample)[found.top[i] :, found.left[i] :][:crop, :crop]
        if found.flip[i]:
            image = image[:, ::-1]
        images.append((image - mean + found.shift[i]) / found.divisor[i])
    return np.stack(images)


# --- what a batch is --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("augmentation", [Augmentation(), Augmentation(color_noise=0), Augmentation(crops_shared_by=4)])
def test_batches_are_what_the_recipe_says(full_size, augmentation):
    source = loader(full_size, batch_size=12, crop_size=224, augment=augmentation)
    for epoch in range(2):
        batch = next(source.epoch(epoch))
        wanted = by_hand(full_size, batch, augmentation, seed=7, epoch=epoch, crop=224)
        assert np.abs(batch.images.permute(0, 2, 3, 1).numpy() - wanted).max() < 1e-3


def test_whole_images_are_cropped_over_their_whole_area(folders, tmp_path):
    from dataloading import prepare_dataset

    dataset = prepare_dataset(folders, tmp_path / "whole", size=32, keep_aspect=True, workers=0, progress=False)
    batch = next(loader(dataset, batch_size=24).epoch(0))
    wanted = by_hand(dataset, batch, Augmentation(), seed=7, epoch=0, crop=24)
    assert np.abs(batch.images.permute(0, 2, 3, 1).numpy() - wanted).max() < 1e-3
    ten = next(evaluating(dataset, views=10).epoch(0))
    centre = stored(dataset, "val", 0)[4:28, 8:32] - dataset.mean_image[4:28, 4:28]
    assert np.abs(ten.images[0, 4].permute(1, 2, 0).numpy() - centre).max() < 1e-3


def test_images_are_channels_last_float32_and_labels_int64(small):
    batch = next(loader(small).epoch(0))
    assert batch.images.shape == (10, 3, 24, 24)
    assert batch.images.dtype == torch.float32
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert batch.labels.dtype == torch.int64
    assert batch.samples.dtype == np.int64
    assert batch.labels.tolist() == small.labels("train")[batch.samples].tolist()


def test_half_precision_is_the_rounded_single_precision(small):
    half, single = (next(loader(small, dtype=dtype).epoch(0)) for dtype in ("float16", "float32"))
    assert half.images.dtype == torch.float16
    assert (half.images.float() - single.images).abs().max() < 0.07


def test_bytes_are_the_pixels_as_stored(small):
    batch = next(evaluating(small, dtype="uint8").epoch(0))
    assert batch.images.dtype == torch.uint8
    assert np.array_equal(batch.images[2].permute(1, 2, 0).numpy(), stored(small, "val", 2)[4:28, 4:28])


def test_ten_views_are_corners_and_centre_then_the_same_mirrored(full_size):
    batch = next(evaluating(full_size, views=10, batch_size=3, crop_size=224).epoch(0))
    assert batch.images.shape == (3, 10, 3, 224, 224)
    assert batch.images.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)
    mean = full_size.mean_image[16:240, 16:240]
    for i in range(3):
        image = stored(full_size, "val", i)
        crops = [image[y : y + 224, x : x + 224] for y, x in ((0, 0), (0, 32), (32, 0), (32, 32), (16, 16))]
        wanted = np.stack([*(crop - mean for crop in crops), *(crop[:, ::-1] - mean for crop in crops)])
        assert np.abs(batch.images[i].permute(0, 2, 3, 1).numpy() - wanted).max() < 1e-3


def test_images_or_labels_alone(small):
    both, images, labels = (
        next(loader(small, **which).epoch(0)) for which in ({}, {"labels": False}, {"images": False})
    )
    assert images.labels is None
    assert labels.images is None
    assert torch.equal(images.images, both.images)
    assert torch.equal(labels.labels, both.labels)


def test_labels_alone_need_no_dali(small):
    import subprocess
    import sys

    script = (
        "import sys; from dataloading import Dataset, Loader\n"
        "source = Loader(Dataset(sys.argv[1]), 'train', 5, shuffle=True, augment=None, drop_last=False, crop_size=24, "
        "images=False)\n"
        "print(sum(len(batch.labels) for batch in source.epoch(0)), 'nvidia.dali' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(small.root)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["24", "False"]


def test_earlier_batches_are_not_overwritten(small):
    source = loader(small, batch_size=4)
    kept = [(batch, batch.images.clone()) for epoch in range(4) for batch in source.epoch(epoch)]
    assert all(torch.equal(batch.images, copy) for batch, copy in kept)


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def test_memory_does_not_grow_over_epochs(awkward):
    source = loader(awkward, batch_size=50)
    for epoch in range(3):
        list(source.epoch(epoch))
    before = resident_bytes()
    for epoch in range(3, 15):
        for batch in source.epoch(epoch):
            del batch
    assert resident_bytes() - before < 16e6


# --- on a GPU ---------------------------------------------------------------------------------------------------------

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@needs_gpu
@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8"])
def test_a_gpu_delivers_what_the_cpu_delivers(full_size, dtype):
    options = {"crop_size": 224, "dtype": dtype, "augment": Augmentation(color_noise=0.0 if dtype == "uint8" else 0.1)}
    on_cpu = list(loader(full_size, **options).epoch(1))
    on_gpu = list(loader(full_size, **options, device=0, hardware_decoder_load=0).epoch(1))
    for one, other in zip(on_cpu, on_gpu, strict=True):
        assert other.images.device.type == other.labels.device.type == "cuda"
        assert other.images.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(one.labels, other.labels.cpu())
        # decoders round and enlarge colours differently, by a few of 255 grey levels at most places
        assert (one.images.float() - other.images.cpu().float()).abs().mean() < 2


@needs_gpu
def test_a_gpu_without_its_jpeg_hardware_repeats_every_bit(full_size):
    runs = [list(loader(full_size, crop_size=224, device=0, hardware_decoder_load=0).epoch(0)) for _ in range(2)]
    assert all(torch.equal(one.images, other.images) for one, other in zip(*runs, strict=True))


@needs_gpu
def test_gpu_memory_does_not_grow_over_epochs(full_size):
    source = loader(full_size, batch_size=8, crop_size=224, device=0)
    list(source.epoch(0))
    list(source.epoch(1))
    free, _ = torch.cuda.mem_get_info()
    for epoch in range(2, 12):
        list(source.epoch(epoch))
    assert free - torch.cuda.mem_get_info()[0] < 64e6


# --- every sample once, in an order that nothing changes --------------------------------------------------------------


@pytest.mark.parametrize("replicas", [1, 2, 4])
def test_every_sample_comes_exactly_once_each_epoch(awkward, replicas):
    parts = [
        loader(awkward, batch_size=50, replica=replica, replicas=replicas, crop_size=16) for replica in range(replicas)
    ]
    for epoch in range(3):
        batches = [list(part.epoch(epoch)) for part in parts]
        assert {len(found) for found in batches} == {len(parts[0])} == {-(-1005 // (50 * replicas))}
        everything = [sample for found in batches for sample in samples(found)]
        assert sorted(everything) == list(range(1005))
        assert all(len(batch.images) == len(batch.labels) == len(batch.samples) for found in batches for batch in found)


def test_dropping_and_carrying(awkward):
    dropping = loader(awkward, batch_size=50, drop_last=True, images=False)
    for epoch in range(2):
        batches = list(dropping.epoch(epoch))
        assert [len(batch.samples) for batch in batches] == [50] * 20
    carrying = loader(awkward, batch_size=50, drop_last="carry", crop_size=16)
    found = [batch for epoch in range(3) for batch in carrying.epoch(epoch)]
    assert {len(batch.images) for batch in found} == {50}
    wanted = [sample for epoch in range(4) for sample in epoch_order(1005, seed=7, epoch=epoch)]
    assert samples(found) == wanted[: 50 * len(found)]
    assert len(found) == -(-3 * 1005 // 50)


def test_a_carried_sample_is_augmented_as_in_its_own_epoch(small):
    carrying, plain = loader(small, batch_size=10, drop_last="carry"), loader(small, batch_size=24)
    mixed = list(carrying.epoch(0))[-1]
    assert (len(mixed.samples), carrying.state_dict()) == (10, {"epoch": 1, "samples": 6})
    first, second = next(plain.epoch(0)), next(plain.epoch(1))
    assert torch.equal(mixed.images, torch.cat([first.images[20:], second.images[:6]]))
    assert next(carrying.epoch(1)).samples.tolist() == second.samples[6:16].tolist()


def test_replicas_threads_and_batch_sizes_change_no_image(small):
    whole = list(loader(small, batch_size=8).epoch(3))
    images, labels = torch.cat([batch.images for batch in whole]), torch.cat([batch.labels for batch in whole])
    for options in ({"threads": 2}, {"batch_size": 5}, {"batch_size": 24}):
        other = list(loader(small, **({"batch_size": 8} | options)).epoch(3))
        assert samples(other) == samples(whole)
        assert torch.equal(torch.cat([batch.images for batch in other]), images)
        assert torch.equal(torch.cat([batch.labels for batch in other]), labels)
    for replicas in (2, 4):
        parts = [
            list(loader(small, batch_size=8 // replicas, replica=r, replicas=replicas).epoch(3))
            for r in range(replicas)
        ]
        for batch, *pieces in zip(whole, *parts, strict=True):
            assert torch.equal(torch.cat([piece.images for piece in pieces]), batch.images)
            assert samples(pieces) == batch.samples.tolist()


def test_a_replica_can_have_no_sample_in_the_last_batch(small):
    parts = [list(loader(small, "val", 1, replica=r, replicas=8, views=10, augment=None).epoch(0)) for r in range(8)]
    assert {len(part) for part in parts} == {2}
    last = [part[-1] for part in parts]
    assert sorted(len(batch.samples) for batch in last) == [0, 0, 0, 0, 1, 1, 1, 1]
    assert {batch.images.shape[1:] for batch in last} == {(10, 3, 24, 24)}
    assert sorted(samples(batch for part in parts for batch in part)) == list(range(12))


# --- resuming ---------------------------------------------------------------------------------------------------------


def test_resuming_at_every_batch_boundary_gives_the_very_next_batch(small):
    straight = loader(small, batch_size=7)
    batches, states = [], [straight.state_dict()]
    for epoch in range(3):
        for batch in straight.epoch(epoch):
            batches.append(batch)
            states.append(straight.state_dict())
    assert states[4] == {"epoch": 1, "samples": 0}
    resumed = loader(small, batch_size=7)
    for number, state in enumerate(states[:-1]):
        resumed.load_state_dict(state)
        rest = resumed.epoch()
        assert same(next(rest), batches[number])
        after = next(rest, None) or next(resumed.epoch())
        assert number + 1 == len(batches) or same(after, batches[number + 1])


def test_a_resumed_run_may_have_another_batch_size(small):
    first = loader(small, batch_size=4)
    begun = first.epoch(2)
    seen = samples([next(begun), next(begun)])
    second = loader(small, batch_size=2, replicas=3)
    second.load_state_dict(first.state_dict())
    parts = [loader(small, batch_size=2, replica=r, replicas=3) for r in range(3)]
    for part in parts:
        part.load_state_dict(first.state_dict())
    rest = [sample for batch in zip(*(part.epoch() for part in parts), strict=True) for sample in samples(batch)]
    assert seen + rest == epoch_order(24, seed=7, epoch=2).tolist()


def test_an_epoch_can_be_left_and_another_one_begun(small):
    source, fresh = loader(small, batch_size=5), loader(small, batch_size=5)
    wanted = {epoch: list(fresh.epoch(epoch)) for epoch in (0, 1, 5)}
    for epoch, start, number in ((0, 0, 0), (5, 10, 2), (1, 0, 0), (0, 20, 4), (0, 0, 0), (1, 15, 3)):
        left = source.epoch(epoch, start)
        assert same(next(left), wanted[epoch][number])
        if number < 3:
            assert same(next(left), wanted[epoch][number + 1])
    newer = source.epoch(1)
    next(newer)
    with pytest.raises(RuntimeError, match=r"ended by a later call"):
        next(left)
    assert same(next(newer), wanted[1][1])


def test_the_next_epoch_is_prefetched(small):
    source = loader(small, batch_size=8)
    list(source.epoch(0))
    fed = source._stream._plan_number
    for epoch in (1, 2):
        assert len(list(source.epoch(epoch))) == 3
    assert source._stream._plan_number == fed, "a new plan was made although the next epoch simply followed"
    validating = evaluating(small)
    for _ in range(3):
        assert samples(validating.epoch(0)) == list(range(12))
    assert validating._stream._plan_number == 1


def test_files_are_read_by_a_thread_of_the_loader(small, monkeypatch):
    readers = []
    view = Dataset.view
    monkeypatch.setattr(Dataset, "view", lambda *a: readers.append(threading.get_ident()) or view(*a))
    source = loader(small, batch_size=4)
    for epoch in (0, 5):  # the second one is not what was being made
        list(source.epoch(epoch))
    assert len(set(readers)) == 1
    assert threading.get_ident() not in readers


def thread_count() -> int:
    return len(os.listdir("/proc/self/task"))


def test_a_closed_loader_gives_its_threads_back_and_can_be_used_again(small):
    source = loader(small, threads=4)
    first = next(source.epoch(0))
    running = thread_count()
    source.close()
    assert thread_count() <= running - 4
    assert not any(thread.name.startswith("feed") for thread in threading.enumerate())
    assert same(next(source.epoch(0)), first)
    del source
    assert thread_count() <= running - 4, "a loader that is dropped keeps its threads"


# --- damaged samples --------------------------------------------------------------------------------------------------


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
def test_a_bad_sample_is_named_in_its_turn_and_harms_no_other_batch(kind, small, request):
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


def test_a_class_without_any_good_sample_stops_even_then(small, tmp_path):
    root = copied(small.root, tmp_path / "copy")
    for sample in range(8):
        overwritten(root, "train", sample, b"??", at=60 + sample)
    # opening looks at the first sample of each shard; repair that one's checksum, and break its picture
    undecodable(root, "train", 0)
    source = loader(Dataset(root), batch_size=24, on_bad_sample="skip")
    with pytest.raises(DatasetError, match=r"no good sample of its class is left to take its place"):
        next(source.epoch(0))


# --- synthetic data ---------------------------------------------------------------------------------------------------


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
    with pytest.raises(DatasetError, match=r"no split 'test'"):
        dataset.count("test")


# --- wrong arguments --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"threads": 0}, "threads is 0"),
        ({"crop_size": 33}, "crop_size is 33; the images have 32 pixels: 1 to 32"),
        ({"views": 5}, "views is 5"),
        ({"views": 10}, "ten views are for evaluation"),
        ({"dtype": "bfloat16"}, "dtype is 'bfloat16'; it must be one of float32, float16, uint8"),
        ({"dtype": "uint8"}, "uint8 images carry no colour noise"),
        ({"replica": 2, "replicas": 2}, "replica is 2 of 2; it must be 0 to 1"),
        ({"hardware_decoder_load": 1.5}, "hardware_decoder_load is 1.5"),
        ({"on_bad_sample": "ignore"}, "on_bad_sample is 'ignore'"),
        ({"device": 99}, r"device is 99; this machine has \d+ CUDA devices"),
        ({"split": "test"}, "has no split 'test'"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(small, options, message):
    with pytest.raises(DatasetError, match=message):
        loader(small, **options)


def test_a_place_that_is_not_there_is_refused(small):
    with pytest.raises(DatasetError, match=r"cannot start epoch 0 at sample 25; train has 24 samples"):
        loader(small).epoch(0, 25)
    with pytest.raises(DatasetError, match=r"cannot start epoch -1"):
        loader(small).epoch(-1)

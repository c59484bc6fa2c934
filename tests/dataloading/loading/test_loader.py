"""What batches contain, which samples come when, and resuming."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from dataloading import Augmentation, Dataset, DatasetError, SyntheticDataset, prepare_dataset
from dataloading.loading.order import epoch_order
from tests.dataloading.loading.loaders import by_hand, evaluating, loader, same, samples, stored
from tests.dataloading.small_sources import class_folders


@pytest.mark.parametrize(
    "augmentation",
    [
        Augmentation(),
        Augmentation(color_noise=0),
        Augmentation(color_noise=lambda epoch: 0.1 if epoch < 1 else 0.0),
        Augmentation(crops_shared_by=4),
    ],
)
def test_batches_are_what_the_recipe_says(full_size, augmentation):
    source = loader(full_size, batch_size=7, crop_size=224, augment=augmentation)
    for epoch in range(2):
        start = 0
        for batch in source.epoch(epoch):
            wanted = by_hand(full_size, batch.samples, augmentation, epoch=epoch, start=start, crop=224)
            assert np.abs(batch.images.permute(0, 2, 3, 1).numpy() - wanted).max() < 1e-3
            start += len(batch.samples)
        assert start == 24


@pytest.mark.parametrize("color_noise", [0.0, 0.1])
def test_resized_crops_are_those_of_pillow(full_size, color_noise):
    """Up to the rounding of two programs that resize to integers."""
    augmentation = Augmentation(color_noise=color_noise, resized_crop=True)
    batch = next(loader(full_size, batch_size=12, crop_size=224, augment=augmentation).epoch(0))
    wanted = by_hand(full_size, batch.samples, augmentation, epoch=0, crop=224)
    assert np.abs(batch.images.permute(0, 2, 3, 1).numpy() - wanted).max() < 2.01


def test_a_fixed_order_repeats_batches_and_shares_crops_within_them(small):
    """The same images share a crop in every epoch, and the crop is another one in each."""
    augmentation = Augmentation(color_noise=0, crops_shared_by=4)
    fixed = {"batch_size": 8, "augment": augmentation, "reshuffle": False}
    straight = loader(small, **fixed)
    epochs = [list(straight.epoch(epoch)) for epoch in range(3)]
    assert samples(epochs[0]) == samples(epochs[1]) == samples(epochs[2])
    assert not any(torch.equal(a.images, b.images) for a, b in zip(epochs[0], epochs[1], strict=True))
    assert same(next(loader(small, **fixed).epoch(2, 16)), epochs[2][2])
    parts = [next(loader(small, **(fixed | {"batch_size": 4}), replica=r, replicas=2).epoch(2, 16)) for r in range(2)]
    assert torch.equal(torch.cat([part.images for part in parts]), epochs[2][2].images)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Dataset:
    """Whole images of 32 x 41 pixels. Odd margins on both sides of a crop tell rounding from truncation."""
    root = tmp_path_factory.mktemp("whole")
    class_folders(root / "in", width=61)
    return prepare_dataset(root / "in", root / "out", size=32, keep_aspect=True, workers=0, progress=False)


def test_whole_images_are_cropped_over_their_whole_area(whole):
    batch = next(loader(whole, batch_size=24, crop_size=23).epoch(0))
    wanted = by_hand(whole, batch.samples, Augmentation(), epoch=0, crop=23)
    assert np.abs(batch.images.permute(0, 2, 3, 1).numpy() - wanted).max() < 1e-3


def test_the_centre_is_the_same_wherever_margins_are_odd(whole):
    image, mean = stored(whole, "val", 0), whole.mean_image[4:27, 4:27]
    assert image.shape == (32, 41, 3)
    one, ten = (next(evaluating(whole, crop_size=23, views=views).epoch(0)).images[0] for views in (1, 10))
    assert np.abs(one.permute(1, 2, 0).numpy() - (image[4:27, 9:32] - mean)).max() < 1e-3
    # ten views lie in the centre square, columns 4 to 36 of 41
    assert np.abs(ten[4].permute(1, 2, 0).numpy() - (image[4:27, 8:31] - mean)).max() < 1e-3
    assert np.abs(ten[1].permute(1, 2, 0).numpy() - (image[:23, 13:36] - mean)).max() < 1e-3


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
    script = (
        "import sys; from dataloading import Dataset, Loader\n"
        "source = Loader(Dataset(sys.argv[1]), 'train', 5, shuffle=True, augment=None, drop_last=False, crop_size=24, "
        "images=False)\n"
        "print(sum(len(batch.labels) for batch in source.epoch(0)), 'nvidia.dali' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(small.root)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["24", "False"]


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


def test_the_last_batch_can_be_dropped(awkward):
    dropping = loader(awkward, batch_size=50, drop_last=True, images=False)
    for epoch in range(2):
        batches = list(dropping.epoch(epoch))
        assert [len(batch.samples) for batch in batches] == [50] * 20


@pytest.mark.parametrize("shared", [1, 4])
def test_replicas_threads_and_batch_sizes_change_no_image(small, shared):
    augmentation = Augmentation(crops_shared_by=shared)
    whole = list(loader(small, batch_size=8, augment=augmentation).epoch(3))
    images, labels = torch.cat([batch.images for batch in whole]), torch.cat([batch.labels for batch in whole])
    for options in ({"threads": 2}, {"batch_size": 5}, {"batch_size": 24}):
        other = list(loader(small, augment=augmentation, **({"batch_size": 8} | options)).epoch(3))
        assert samples(other) == samples(whole)
        assert torch.equal(torch.cat([batch.images for batch in other]), images)
        assert torch.equal(torch.cat([batch.labels for batch in other]), labels)
    for replicas in (2, 4):
        parts = [
            list(loader(small, batch_size=8 // replicas, augment=augmentation, replica=r, replicas=replicas).epoch(3))
            for r in range(replicas)
        ]
        for batch, *pieces in zip(whole, *parts, strict=True):
            assert torch.equal(torch.cat([piece.images for piece in pieces]), batch.images)
            assert samples(pieces) == batch.samples.tolist()


def test_a_replica_may_have_no_sample_in_the_last_batch(small):
    parts = [list(loader(small, "val", 1, replica=r, replicas=8, views=10, augment=None).epoch(0)) for r in range(8)]
    assert {len(part) for part in parts} == {2}
    last = [part[-1] for part in parts]
    assert sorted(len(batch.samples) for batch in last) == [0, 0, 0, 0, 1, 1, 1, 1]
    assert {batch.images.shape[1:] for batch in last} == {(10, 3, 24, 24)}
    assert sorted(samples(batch for part in parts for batch in part)) == list(range(12))


def test_resuming_at_every_batch_boundary_gives_the_very_next_batch(small):
    straight = loader(small, batch_size=7)
    batches, positions = [], []
    for epoch in range(3):
        for number, batch in enumerate(straight.epoch(epoch)):
            batches.append(batch)
            positions.append((epoch, 7 * number))
    assert positions[4] == (1, 0)
    resumed = loader(small, batch_size=7)
    for number, (epoch, start) in enumerate(positions):
        rest = resumed.epoch(epoch, start)
        assert same(next(rest), batches[number])
        after = next(rest, None) or next(resumed.epoch(epoch + 1))
        assert number + 1 == len(batches) or same(after, batches[number + 1])


def test_a_resumed_run_may_have_another_batch_size(small):
    begun = loader(small, batch_size=4).epoch(2)
    seen = samples([next(begun), next(begun)])
    parts = [loader(small, batch_size=2, replica=r, replicas=3).epoch(2, len(seen)) for r in range(3)]
    rest = [sample for batch in zip(*parts, strict=True) for sample in samples(batch)]
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
    source.close()
    with pytest.raises(RuntimeError, match=r"ended by a later call of epoch\(\) or close\(\)"):
        next(newer)


@pytest.mark.parametrize("options", [{"shuffle": False}, {"augment": None}, {"shuffle": False, "augment": None}])
def test_an_epoch_that_was_not_expected_is_delivered(small, options):
    """What is prefetched may serve for another epoch only if all epochs are the same."""
    source = loader(small, **options)
    list(source.epoch(0))
    assert all(same(*pair) for pair in zip(source.epoch(5), loader(small, **options).epoch(5), strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"threads": 0}, "threads must be at least 1, got 0"),
        ({"crop_size": 0}, "crop_size must be 1 to 32, the size of the images in pixels, got 0"),
        ({"crop_size": 33}, "crop_size must be 1 to 32, the size of the images in pixels, got 33"),
        ({"views": 5}, "views must be 1 or 10, got 5"),
        ({"views": 10}, "ten views are for evaluation"),
        ({"dtype": "bfloat16"}, "dtype must be one of float32, float16, uint8, got 'bfloat16'"),
        ({"dtype": "uint8"}, "uint8 images cannot have colour noise"),
        ({"replica": 2, "replicas": 2}, "replica must be 0 to 1, got 2"),
        ({"replica": -1, "replicas": 2}, "replica must be 0 to 1, got -1"),
        ({"hardware_decoder_load": -0.1}, "hardware_decoder_load must be 0 to 1, got -0.1"),
        ({"hardware_decoder_load": 1.5}, "hardware_decoder_load must be 0 to 1, got 1.5"),
        ({"on_bad_sample": "ignore"}, "on_bad_sample must be stop or skip, got 'ignore'"),
        ({"device": 99}, r"device must be None for the CPU or one of this machine's \d+ CUDA devices, got 99"),
        ({"device": -1}, r"one of this machine's \d+ CUDA devices, got -1"),
        ({"split": "test"}, "has no split 'test'"),
        ({"seed": -1}, "seed must be an integer from 0 .* got -1"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(small, options, message):
    with pytest.raises(DatasetError, match=message):
        loader(small, **options)


def test_a_split_without_samples_is_refused():
    with pytest.raises(DatasetError, match=r"val of synthetic has no samples"):
        loader(SyntheticDataset(val=0), "val")
    assert len(loader(SyntheticDataset(val=1), "val")) == 1


def test_the_ends_of_ranges_are_accepted(small):
    whole = loader(small, batch_size=24, crop_size=32, hardware_decoder_load=1.0, replica=1, replicas=2)
    assert next(whole.epoch(0)).images.shape == (12, 3, 32, 32)
    assert list(whole.epoch(0, 24)) == []
    assert next(loader(small, crop_size=1, hardware_decoder_load=0.0).epoch(0)).images.shape == (10, 3, 1, 1)


def test_a_position_out_of_range_is_refused(small):
    with pytest.raises(DatasetError, match=r"cannot start epoch 0 at sample 25; train has 24 samples"):
        loader(small).epoch(0, 25)
    with pytest.raises(DatasetError, match=r"cannot start epoch 0 at sample -1"):
        loader(small).epoch(0, -1)
    with pytest.raises(DatasetError, match=r"cannot start epoch -1"):
        loader(small).epoch(-1)

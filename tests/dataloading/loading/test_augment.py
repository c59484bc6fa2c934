"""Crops, flips and colour noise."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from dataloading import Augmentation, DatasetError
from dataloading.loading import augment
from dataloading.loading.augment import Draws, draw, normals, philox4x32

DEVIATIONS = np.array([19.72083305, 37.09388853, 121.78006099])
VECTORS = np.array(
    [
        [0.41795513, -0.71257945, -0.56351045],
        [-0.81698062, -0.02354167, -0.5761844],
        [0.39731118, 0.70119634, -0.59200296],
    ]
)


def draws(
    augmentation: Augmentation | None,
    samples,
    *,
    seed=0,
    epoch=0,
    positions=None,
    side=256,
    height=None,
    width=None,
    crop_size=224,
) -> Draws:
    samples = np.asarray(samples, dtype=np.int64)
    return draw(
        augmentation,
        seed=seed,
        epoch=epoch,
        samples=samples,
        positions=samples if positions is None else np.asarray(positions),
        heights=np.full(len(samples), height or side),
        widths=np.full(len(samples), width or side),
        crop_size=crop_size,
        color_deviations=DEVIATIONS,
        color_vectors=VECTORS,
    )


# "kat_vectors" of the Random123 library, philox4x32 with 10 rounds: counter, key, result.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


@pytest.mark.parametrize(("counter", "key", "wanted"), KNOWN_ANSWERS)
def test_philox_gives_the_published_answers(counter, key, wanted):
    low, high = (int(word, 16) for word in key.split())
    words = np.array([[int(word, 16)] for word in counter.split()], dtype=np.uint64)
    assert [f"{word:08x}" for word in philox4x32(words, high << 32 | low)[:, 0]] == wanted.split()


def test_draws_are_the_same_on_every_machine():
    """Other numbers here would give every seed another meaning."""
    samples = np.array([0, 1, 2**33, 1_281_166])
    found = draw(
        Augmentation(),
        seed=2012 << 40,
        epoch=89,
        samples=samples,
        positions=samples,
        heights=np.array([256, 300, 256, 256]),
        widths=np.array([256, 256, 400, 256]),
        crop_size=224,
        color_deviations=DEVIATIONS,
        color_vectors=VECTORS,
    )
    assert found.top.tolist() == [24, 3, 27, 19]
    assert found.left.tolist() == [11, 2, 159, 2]
    assert found.flip.tolist() == [False, True, False, False]
    wanted = [[-1.34355, -4.11315, -10.07881], [-11.48014, -12.31320, -16.17497]]
    wanted += [[-8.93142, -7.28720, -7.52740], [10.54268, 7.43262, 12.92561]]
    assert np.abs(found.shift - wanted).max() < 1e-4  # float32


@given(
    seed=st.integers(0, 2**64 - 1),
    epoch=st.integers(0, 2**20),
    first=st.integers(0, 2**40),
    count=st.integers(1, 40),
    side=st.integers(224, 700),
)
def test_crops_lie_inside_the_image(seed, epoch, first, count, side):
    found = draws(Augmentation(), np.arange(first, first + count), seed=seed, epoch=epoch, side=side)
    for offsets in (found.top, found.left):
        assert offsets.min() >= 0
        assert offsets.max() <= side - 224
    assert np.isfinite(found.shift).all()


@given(
    seed=st.integers(0, 2**64 - 1),
    epoch=st.integers(0, 100),
    cut=st.integers(0, 30),
    shared=st.sampled_from([1, 4, 32]),
)
def test_no_draw_depends_on_which_samples_come_together(seed, epoch, cut, shared):
    augmentation, samples = Augmentation(crops_shared_by=shared), np.random.default_rng(seed).permutation(1000)[:30]
    places = np.arange(500, 530)
    whole = draws(augmentation, samples, seed=seed, epoch=epoch, positions=places)
    parts = [
        draws(augmentation, samples[p], seed=seed, epoch=epoch, positions=places[p])
        for p in (slice(cut), slice(cut, None))
    ]
    for one, *both in zip(whole, *parts, strict=True):
        assert np.array_equal(one, np.concatenate(both))


def test_all_33_by_33_places_are_equally_likely():
    found = draws(Augmentation(), np.arange(400_000))
    counts = np.bincount(found.top * 33 + found.left, minlength=33 * 33)
    assert len(counts) == 33 * 33
    assert stats.chisquare(counts).pvalue > 1e-4


def test_flips_are_fair_and_have_nothing_to_do_with_the_place():
    found = draws(Augmentation(), np.arange(100_000), seed=1)
    assert abs(found.flip.mean() - 0.5) < 0.006
    assert abs(np.corrcoef(found.flip, found.top)[0, 1]) < 0.013
    assert abs(np.corrcoef(found.top, found.left)[0, 1]) < 0.013


def test_epochs_samples_and_seeds_draw_independently():
    base = draws(Augmentation(), np.arange(20_000), seed=1, epoch=1)
    others = [
        draws(Augmentation(), np.arange(20_000), seed=1, epoch=2),
        draws(Augmentation(), np.arange(20_000), seed=2, epoch=1),
        draws(Augmentation(), np.arange(1, 20_001), seed=1, epoch=1),
    ]
    for other in others:
        assert abs((base.top == other.top).mean() - 1 / 33) < 0.006
        assert abs(np.corrcoef(base.shift[:, 0], other.shift[:, 0])[0, 1]) < 0.03


def test_normal_numbers_are_normal_and_independent():
    found = normals(np.arange(50_000), seed=3, epoch=0)
    for column in found.T:
        assert stats.kstest(column, "norm").pvalue > 1e-4
    assert np.abs(np.corrcoef(found.T) - np.eye(3)).max() < 0.02
    assert np.abs(np.corrcoef((found**2).T) - np.eye(3)).max() < 0.02


@pytest.mark.parametrize("word", [0, 2**32 - 1])
def test_normal_numbers_are_finite_for_every_word(monkeypatch, word):
    monkeypatch.setattr(augment, "philox4x32", lambda counter, key: np.full_like(counter, word))
    assert np.isfinite(normals(np.arange(3), seed=0, epoch=0)).all()


def test_colour_noise_is_that_of_2012():
    samples = np.arange(100)
    found = draws(Augmentation(color_noise=0.1), samples, seed=4, epoch=7)
    wanted = np.stack([0.1 * VECTORS @ (z * DEVIATIONS) for z in normals(samples, seed=4, epoch=7)])
    assert np.abs(found.shift - wanted).max() < 1e-5
    assert np.allclose(found.divisor, 1.1)


def test_colour_noise_spreads_along_the_principal_axes():
    shift = draws(Augmentation(color_noise=0.1), np.arange(200_000)).shift.astype(np.float64) @ VECTORS
    assert np.allclose(shift.std(axis=0), 0.1 * DEVIATIONS, rtol=0.01)


def test_without_colour_noise_nothing_is_added_and_nothing_divided():
    for augmentation in (Augmentation(color_noise=0), None):
        found = draws(augmentation, np.arange(50))
        assert not found.shift.any()
        assert (found.divisor == 1).all()


def test_colour_noise_can_be_a_function_of_the_epoch():
    augmentation = Augmentation(color_noise=lambda epoch: 0.1 if epoch < 67 else 0.0)
    assert np.allclose(draws(augmentation, [0], epoch=66).divisor, 1.1)
    assert draws(augmentation, [0], epoch=67).divisor.tolist() == [1.0]


def test_switching_colour_noise_off_changes_no_crop():
    noisy, plain = draws(Augmentation(), np.arange(50)), draws(Augmentation(color_noise=0), np.arange(50))
    for which in ("top", "left", "flip"):
        assert np.array_equal(getattr(noisy, which), getattr(plain, which))


def test_32_consecutive_images_can_share_one_crop_and_flip():
    samples = np.random.default_rng(0).permutation(320)
    found = draws(Augmentation(crops_shared_by=32), samples, positions=np.arange(320))
    for which in (found.top, found.left, found.flip):
        assert (which.reshape(10, 32) == which.reshape(10, 32)[:, :1]).all()
    assert len(set(zip(found.top, found.left, strict=True))) == 10
    assert len(np.unique(found.shift[:, 0])) == 320


def one_by_one(generator: np.random.Generator, height: int, width: int, attempts: int = 10) -> tuple[int, ...]:
    """Top, left, height and width of one random resized crop, by the published algorithm, with ordinary randomness."""
    for _ in range(attempts):
        area = height * width * generator.uniform(0.08, 1.0)
        ratio = math.exp(generator.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(generator.integers(height - h + 1)), int(generator.integers(width - w + 1)), h, w
    w, h = width, height
    if width / height < 3 / 4:
        h = round(width / (3 / 4))
    elif width / height > 4 / 3:
        w = round(height * (4 / 3))
    return (height - h) // 2, (width - w) // 2, h, w


RESIZED = Augmentation(resized_crop=True)


@pytest.mark.parametrize(("height", "width"), [(256, 256), (256, 341), (500, 256), (256, 2000)])
def test_resized_crops_are_distributed_as_published(height, width):
    count, generator = 4000, np.random.default_rng(1)
    found = draws(RESIZED, np.arange(count), height=height, width=width)
    ours = np.stack([found.top, found.left, found.height, found.width], axis=1)
    theirs = np.array([one_by_one(generator, height, width) for _ in range(count)])
    for name, values in {
        "area": lambda crop: crop[:, 2] * crop[:, 3],
        "ratio": lambda crop: np.round(crop[:, 3] / crop[:, 2], 6),
        "top": lambda crop: crop[:, 0],
        "left": lambda crop: crop[:, 1],
        "bottom": lambda crop: crop[:, 0] + crop[:, 2],
        "right": lambda crop: crop[:, 1] + crop[:, 3],
    }.items():
        assert stats.ks_2samp(values(ours), values(theirs)).pvalue > 1e-4, name
    # Where nothing fitted: the largest central part, about as often.
    fallback = one_by_one(generator, height, width, attempts=0)
    shares = [(crops == fallback).all(axis=1).mean() for crops in (ours, theirs)]
    assert abs(shares[0] - shares[1]) < 0.04
    assert (shares[0] > 0.3) == (width == 2000)


@given(
    seed=st.integers(0, 2**64 - 1),
    cut=st.integers(0, 30),
    height=st.integers(24, 700),
    width=st.integers(24, 700),
    shared=st.sampled_from([1, 4]),
)
def test_resized_crops_lie_in_the_image_and_depend_on_counters_alone(seed, cut, height, width, shared):
    augmentation = replace(RESIZED, crops_shared_by=shared)
    samples, places = np.random.default_rng(seed).permutation(1000)[:30], np.arange(500, 530)
    options = {"seed": seed, "height": height, "width": width, "crop_size": 24}
    whole = draws(augmentation, samples, positions=places, **options)
    assert min(whole.top.min(), whole.left.min()) >= 0
    assert min(whole.height.min(), whole.width.min()) >= 1
    assert (whole.top + whole.height).max() <= height
    assert (whole.left + whole.width).max() <= width
    parts = [
        draws(augmentation, samples[part], positions=places[part], **options) for part in (slice(cut), slice(cut, None))
    ]
    for one, *both in zip(whole, *parts, strict=True):
        assert np.array_equal(one, np.concatenate(both))


def test_resized_crops_change_neither_flips_nor_colours():
    plain, resized = draws(Augmentation(), np.arange(50)), draws(RESIZED, np.arange(50))
    for which in ("flip", "shift", "divisor"):
        assert np.array_equal(getattr(plain, which), getattr(resized, which))
    assert (plain.height == 224).all()
    assert (plain.width == 224).all()


def test_resized_crops_without_random_crops_are_refused():
    with pytest.raises(DatasetError, match=r"resized_crop needs random_crop; switch both on, or resized_crop off"):
        Augmentation(random_crop=False, resized_crop=True)


def test_without_augmentation_the_crop_is_the_centre():
    found = draws(None, [3, 4])
    assert found.top.tolist() == found.left.tolist() == [16, 16]
    assert not found.flip.any()
    assert draws(None, [3], crop_size=227).top.tolist() == [14]  # as in `Dataset.mean_image` and DALI: rounded down


def test_parts_can_be_switched_off_one_by_one():
    found = draws(Augmentation(flip=False, random_crop=False, color_noise=0.1), np.arange(100))
    assert (found.top == 16).all()
    assert not found.flip.any()
    assert found.shift.all()


@pytest.mark.parametrize("noise", [-0.1, float("inf"), float("nan")])
def test_a_senseless_colour_noise_is_refused(noise):
    with pytest.raises(DatasetError, match=r"color_noise must be finite and at least 0, got"):
        Augmentation(color_noise=noise)
    with pytest.raises(DatasetError, match=r"epoch 3"):
        Augmentation(color_noise=lambda _: noise).color_noise_at(3)


def test_a_senseless_sharing_is_refused():
    with pytest.raises(DatasetError, match=r"crops_shared_by must be at least 1, got 0"):
        Augmentation(crops_shared_by=0)


def test_rows_and_columns_of_an_image_have_their_own_limits():
    samples = np.arange(2000)
    options = {
        "seed": 0, "epoch": 0, "samples": samples, "positions": samples, "crop_size": 224,
        "heights": np.full(2000, 230), "widths": np.full(2000, 300),
        "color_deviations": DEVIATIONS, "color_vectors": VECTORS,
    }  # fmt: skip
    found = draw(Augmentation(), **options)
    assert (set(found.top.tolist()), set(found.left.tolist())) == (set(range(7)), set(range(77)))
    centre = draw(None, **options)
    assert (centre.top[0], centre.left[0]) == (3, 38)


def test_draws_are_the_same_in_every_version():
    found = draws(Augmentation(), [0, 1, 2**40], seed=2012, epoch=89)
    assert found.top.tolist() == [27, 17, 3]
    assert found.left.tolist() == [5, 22, 32]
    assert found.flip.tolist() == [True, False, False]
    assert np.allclose(
        found.shift,
        [[-1.256329, 2.696985, -5.189934], [1.377028, 4.201144, 4.21442], [4.962298, 0.013727, 2.233179]],
        atol=1e-5,
    )


def test_images_vary_as_in_2012_unless_told_otherwise():
    assert Augmentation() == Augmentation(flip=True, color_noise=0.1, random_crop=True, crops_shared_by=1)

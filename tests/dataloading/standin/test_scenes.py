"""Pictures vary in everything but what their class shows."""

import io

import numpy as np
from PIL import Image

from dataloading.standin import scenes
from dataloading.standin.classes import CLASSES
from dataloading.standin.scenes import draw_scene, jpeg_of


def test_pictures_vary_in_size_and_a_few_are_grey(monkeypatch):
    monkeypatch.setattr(scenes, "GREY_SHARE", 0.2)
    drawn = [draw_scene(CLASSES[0], np.random.default_rng(seed)) for seed in range(40)]
    sizes = [picture.size for picture in drawn]
    assert all(256 <= min(size) <= 320 and max(size) <= 427 for size in sizes)
    assert len(set(sizes)) > 35
    assert {width > height for width, height in sizes} == {True, False}
    assert {picture.mode for picture in drawn} == {"RGB", "L"}


def test_a_picture_shows_its_class():
    """With the same random numbers, pictures of two classes differ where the class is seen, and not in the corners."""
    stars, hearts = (np.asarray(draw_scene(CLASSES[n], np.random.default_rng(1))).astype(int) for n in (1, 3))
    assert {CLASSES[n].words.split(",")[0] for n in (1, 3)} == {"star", "heart"}
    stripes, checks = (np.asarray(draw_scene(CLASSES[n], np.random.default_rng(1))).astype(int) for n in (0, 2))
    for a, b in ((stars, hearts), (stripes, checks)):
        middle = tuple(slice(side // 4, -side // 4) for side in a.shape[:2])
        assert np.mean(np.abs(a - b)[middle].max(axis=-1) > 60) > 0.05


def test_a_mean_colour_does_not_tell_the_class():
    """Between classes, mean colours vary no more than the few pictures of each class explain."""
    means = np.array(
        [
            [draw_scene(chosen, np.random.default_rng((label, n))).convert("RGB").resize((1, 1), Image.Resampling.BOX)
             .getpixel((0, 0)) for n in range(6)]
            for label, chosen in enumerate(CLASSES[:10])
        ],
        dtype=float,
    )  # fmt: skip
    between = means.mean(axis=1).var(axis=0, ddof=1)
    expected = means.var(axis=1, ddof=1).mean(axis=0) / means.shape[1]
    assert (between < 3 * expected).all()  # F(9, 50) exceeds 3 once in 150 times


def test_a_picture_is_a_jpeg_file():
    picture = draw_scene(CLASSES[0], np.random.default_rng(0))
    read = Image.open(io.BytesIO(jpeg_of(picture, np.random.default_rng(0))))
    assert (read.format, read.size, read.mode) == ("JPEG", picture.size, picture.mode)
    assert np.abs(np.asarray(read).astype(int) - np.asarray(picture)).mean() < 12


def test_every_class_has_a_pattern_or_a_shape_of_its_own():
    looks = [chosen.pattern or chosen.shape for chosen in CLASSES]
    assert len(set(looks)) == len(CLASSES) >= 20
    assert all((chosen.pattern is None) != (chosen.shape is None) for chosen in CLASSES)
    assert len({chosen.words for chosen in CLASSES}) == len(CLASSES)

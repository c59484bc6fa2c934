"""Hand-crafted features and classifiers together, on small real JPEG files."""

import shutil
import sys
from types import SimpleNamespace

import pytest

import dataloading
from fastalex.errors import ConfigurationError
from fastalex.handcrafted.classify import HandcraftedMethod, check_method, classify
from fastalex.handcrafted.descriptors import HOG_LENGTH


@pytest.mark.parametrize("features", ["sift", "hog"])
def test_textures_are_told_apart_with_any_number_of_threads(features, textures, tmp_path):
    dataset = dataloading.Dataset(textures)
    results = [
        classify(dataset, HandcraftedMethod(features, gaussians=4, threads=threads), "val", tmp_path, shown=False)
        for threads in (1, 3)
    ]
    assert results[0] == results[1]
    assert results[0].metrics.top1_error <= 10  # chance is 67
    assert results[0].metrics.images == 18
    assert list(tmp_path.iterdir()) == []


def test_sift_needs_images_of_two_patches(textures):
    dataset = dataloading.Dataset(textures)
    dataset.size = 48
    check_method(dataset, HandcraftedMethod("sift", gaussians=45), "val")  # and an image for each Gaussian
    dataset.size = 47
    with pytest.raises(ConfigurationError, match="has images of 47 pixels, but dense SIFT needs at least 48"):
        check_method(dataset, HandcraftedMethod("sift", gaussians=4), "val")
    check_method(dataset, HandcraftedMethod("hog"), "val")


def test_features_need_room_on_the_disk(textures, tmp_path, monkeypatch):
    """Four bytes for each of 8100 values, of 45 training and 18 validation images."""
    needed = 4 * HOG_LENGTH * (45 + 18)
    for free in (needed, needed - 1):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        if free == needed:
            monkeypatch.setattr(sys.modules[classify.__module__], "train_linear", lambda *_, **__: 1 // 0)
        with pytest.raises(ZeroDivisionError if free == needed else ConfigurationError):  # it goes on to the classifier
            classify(dataloading.Dataset(textures), HandcraftedMethod("hog"), "val", tmp_path, shown=False)
    assert list(tmp_path.iterdir()) == []

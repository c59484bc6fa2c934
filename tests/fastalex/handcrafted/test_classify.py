"""Hand-crafted features and classifiers together, on small real JPEG files."""

import pytest

import dataloading
from fastalex.handcrafted.classify import HandcraftedMethod, classify


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

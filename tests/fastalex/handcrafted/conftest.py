"""Striped images of three directions: hand-crafted features tell them apart."""

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dataloading


def texture(kind: int, random: np.random.Generator, size: int = 64) -> np.ndarray:
    """Stripes of a class's direction, of random phase and width, under noise: grey, size x size."""
    y, x = np.mgrid[:size, :size]
    angle, width = math.pi * kind / 3, random.uniform(6, 9)
    waves = np.sin(2 * math.pi * (x * math.cos(angle) + y * math.sin(angle)) / width + random.uniform(0, 6))
    return np.clip(128 + 60 * waves + random.normal(0, 25, (size, size)), 0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def textures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of striped JPEG files, 15 for training and 6 for validation each, prepared at 64 pixels."""
    folder, random = tmp_path_factory.mktemp("textures"), np.random.default_rng(5)
    for split, count in (("train", 15), ("val", 6)):
        for kind, name in enumerate(("flat", "steep", "upright")):
            (folder / "in" / split / name).mkdir(parents=True)
            for number in range(count):
                Image.fromarray(texture(kind, random)).save(folder / "in" / split / name / f"{number}.jpg")
    dataloading.prepare_dataset(folder / "in", folder / "out", size=64, workers=0, progress=False)
    return folder / "out"

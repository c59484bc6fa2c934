"""The bundled data set: 1,797 handwritten digits, written as class folders of JPEG files.

``digits.npz`` holds the test set of "Optical Recognition of Handwritten Digits" [Alpaydin and Kaynak, UCI Machine
Learning Repository, 1998; CC BY 4.0] as scikit-learn's ``load_digits`` returns it: 8 x 8 pixels with 17 grey levels.
They are enlarged to 256 x 256 so that they can be prepared like any folder of photographs.
"""

from importlib.resources import files
from pathlib import Path

import numpy as np
from PIL import Image

VALIDATION_EVERY = 5  # every fifth image of each digit is for validation


def write_digits(folder: Path, *, size: int = 256) -> Path:
    """Write ``train/<digit>/*.jpg`` and ``val/<digit>/*.jpg`` in `folder` and return it. The bytes never vary."""
    with files("dataloading.sources").joinpath("digits.npz").open("rb") as file, np.load(file) as digits:
        images, labels = digits["images"], digits["labels"]
    for label in range(10):
        for number, i in enumerate(np.flatnonzero(labels == label)):
            split = "val" if number % VALIDATION_EVERY == VALIDATION_EVERY // 2 else "train"
            path = folder / split / str(label) / f"{i:04d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            grey = np.round(images[i] * (255 / 16)).astype(np.uint8)
            Image.fromarray(grey).resize((size, size), Image.Resampling.BICUBIC).save(path, quality=95)
    return folder

"""The bundled data set: scikit-learn's 1,797 handwritten digits, written as class folders of JPEG files.

The digits are 8 x 8 pixels with 17 grey levels [Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI
1998]. They are enlarged to 256 x 256 so that they can be prepared like any folder of photographs.
"""

from pathlib import Path

import numpy as np
from PIL import Image

VALIDATION_EVERY = 5  # every fifth image of each digit is for validation


def write_digits(folder: Path, *, size: int = 256) -> Path:
    """Write ``train/<digit>/*.jpg`` and ``val/<digit>/*.jpg`` in `folder` and return it. The bytes never vary."""
    from sklearn.datasets import load_digits  # imported here because it takes seconds, and only the digits need it

    digits = load_digits()
    for label in range(10):
        for number, i in enumerate(np.flatnonzero(digits.target == label)):
            split = "val" if number % VALIDATION_EVERY == VALIDATION_EVERY // 2 else "train"
            path = folder / split / str(label) / f"{i:04d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            grey = np.round(digits.images[i] * (255 / 16)).astype(np.uint8)
            Image.fromarray(grey).resize((size, size), Image.Resampling.BICUBIC).save(path, quality=95)
    return folder

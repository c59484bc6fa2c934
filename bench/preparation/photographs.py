"""Synthetic photographs, of which nothing has to be downloaded."""

import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def synthetic_photograph(seed: int, width: int, height: int) -> NDArray[np.uint8]:
    """Noise with the spectrum, contrast and correlated colours of photographs: uint8, height x width x 3."""
    generator = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    frequency[0, 0] = np.inf

    def layer() -> NDArray[np.float64]:
        phases = np.exp(2j * np.pi * generator.random(frequency.shape))
        pixels = np.fft.irfft2(phases / frequency**1.5, s=(height, width))
        return pixels / pixels.std()

    shared = layer()
    return np.clip(np.stack([118 + 58 * (0.93 * shared + 0.37 * layer()) for _ in range(3)], -1), 0, 255).astype(
        np.uint8
    )


def write_photographs(root: Path, count: int) -> Path:
    """Write `count` photographs of ImageNet's typical size, 500 x 375, into class folders."""
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(pool.map(partial(_write_photograph, root), range(count), chunksize=20))
    return root


def _write_photograph(root: Path, i: int) -> None:
    path = root / ("val" if i % 20 == 19 else "train") / f"class{i // 20 % 5}" / f"{i:05d}.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = (375, 500) if i % 4 == 3 else (500, 375)
    Image.fromarray(synthetic_photograph(i, width, height)).save(path, quality=92)

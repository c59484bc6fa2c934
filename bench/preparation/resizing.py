"""What exact resizing costs: beside Pillow's box filter, which is fast and nearly the mean of areas."""

import io
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dataloading.preparation.images import ImageOptions, centre_square, decode, prepare_image, resize_shorter_side
from preparation.photographs import synthetic_photograph

OPTIONS = ImageOptions()
ORIGINALS = ((500, 375), (640, 480), (2000, 1500))  # width, height


@dataclass
class Comparison:
    """Milliseconds of processor time per image, and the quartiles of the ratio to the same with Pillow's filter."""

    work: str
    original: str
    ms: float
    pillow_ms: float
    ratio_p25: float
    ratio_p50: float
    ratio_p75: float


def compare(repetitions: int) -> Iterator[Comparison]:
    """Resize originals, and prepare them (decode, resize, encode), in both ways in turns."""
    for width, height in ORIGINALS:
        Image.fromarray(synthetic_photograph(0, width, height)).save(file := io.BytesIO(), "JPEG", quality=92)
        data = file.getvalue()
        image = decode(data)
        ways: dict[str, tuple[Callable[[], object], ...]] = {
            "resize": (partial(resize_shorter_side, image, OPTIONS.size, square=True), partial(_by_box, image)),
            "prepare": (partial(prepare_image, data, OPTIONS), partial(_prepared_by_box, data)),
        }
        for work, pair in ways.items():
            times = np.array([[_milliseconds(way) for way in pair] for _ in range(repetitions)])
            ratios = np.percentile(times[:, 0] / times[:, 1], [25, 50, 75])
            row = Comparison(work, f"{width} x {height}", *np.median(times, axis=0).tolist(), *ratios.tolist())
            print(f"   {row.work:8} {row.original:12} {row.ms:6.2f} ms, Pillow {row.pillow_ms:6.2f} ms: ", end="")
            print(f"{row.ratio_p50:.2f} times ({row.ratio_p25:.2f} to {row.ratio_p75:.2f})", flush=True)
            yield row


def _by_box(image: Image.Image) -> Image.Image:
    width, height = (round(side * OPTIONS.size / min(image.size)) for side in image.size)
    return centre_square(image.resize((width, height), Image.Resampling.BOX), OPTIONS.size)


def _prepared_by_box(data: bytes) -> tuple[bytes, NDArray[np.uint8]]:
    image = _by_box(decode(data))
    image.save(file := io.BytesIO(), "JPEG", quality=OPTIONS.quality)
    return file.getvalue(), np.asarray(image)


def _milliseconds(work: Callable[[], object]) -> float:
    """Processor time of this thread: other processes disturb it less than the time on the clock."""
    began = time.thread_time()
    work()
    return (time.thread_time() - began) * 1e3

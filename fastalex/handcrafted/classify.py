"""Image classification as it was before 2012: fixed features of every image, and linear classifiers over them.

The images of a prepared data set are decoded by Pillow, in threads; their features lie in a temporary file, so that
memory does not grow with the data. The same seed gives the same result for any number of threads.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from threadpoolctl import threadpool_limits

from dataloading import Dataset, DatasetError
from dataloading.images import Rejected, centre_square, decode
from dataloading.order import epoch_order
from dataloading.progress import ProgressReport
from fastalex.errors import ConfigurationError
from fastalex.handcrafted.descriptors import HOG_LENGTH, PATCH, SIFT_LENGTH, dense_sift, hog, opencv
from fastalex.handcrafted.fisher_vectors import FisherEncoder
from fastalex.handcrafted.linear_svm import train_linear
from fastalex.metrics import Metrics

Floats = NDArray[np.float32]


Item = TypeVar("Item")


Value = TypeVar("Value")


FEATURES = ("sift", "hog")


_DESCRIPTORS_PER_GAUSSIAN = 2_000


_SAMPLED_IMAGES = 1_000


@dataclass(frozen=True)
class Traditional:
    """Which features, and how they are made.

    Args:
        features: ``sift``: dense SIFT and Fisher vectors; ``hog``: histograms of oriented gradients.
        gaussians: of the Fisher vectors.
        stripes: Fisher vectors of the image and its thirds, instead of the image alone.
        seed: of all that is random: which descriptors the Gaussians are fitted to, from where, and the order of images.
        threads: how many work at a time.
    """

    features: str = "sift"
    gaussians: int = 64
    stripes: bool = True
    seed: int = 0
    threads: int = 1


@dataclass(frozen=True)
class Result:
    """Error rates, the regularisation that was chosen, and the features' length."""

    metrics: Metrics
    alpha: float
    length: int


def check_traditional(dataset: Dataset, method: Traditional, split: str) -> None:
    """Refuse what could not be done, before it takes its time.

    Raises:
        ConfigurationError: an option, or the data set, does not fit; or OpenCV is missing.
    """
    opencv()
    if method.features not in FEATURES:
        raise ConfigurationError(f"--features is {method.features!r}; {' or '.join(FEATURES)} is wanted")
    if not 1 <= method.gaussians <= 4096:
        raise ConfigurationError(f"--gaussians is {method.gaussians}; 1 to 4096 is wanted")
    if method.threads < 1:
        raise ConfigurationError(f"--threads is {method.threads}; 1 or more is wanted")
    if not 0 <= method.seed < 2**32:
        raise ConfigurationError(f"--seed is {method.seed}; 0 to 2**32 - 1 is wanted")
    others = [name for name in dataset.splits if name != "train"]
    if split not in others:
        raise ConfigurationError(
            f"{dataset.root} has no part {split!r} to measure errors on; it has {', '.join(others) or 'none'}"
        )
    if len(dataset.classes) < 2:
        raise ConfigurationError(f"{dataset.root} has {len(dataset.classes)} class; a classifier needs 2 or more")
    for name, least in (("train", 2), (split, 1)):  # one of them is held out to choose the regularisation
        if dataset.count(name) < least:
            raise ConfigurationError(
                f"{dataset.root} has {dataset.count(name)} images in its part {name!r}; {least} or more are wanted"
            )
    if method.features == "sift" and dataset.count("train") < method.gaussians:
        raise ConfigurationError(
            f"{dataset.root} has {dataset.count('train')} training images, fewer than {method.gaussians} Gaussians; "
            "lower --gaussians"
        )
    if method.features == "sift" and dataset.size < 2 * PATCH:
        raise ConfigurationError(
            f"{dataset.root} has images of {dataset.size} pixels; dense SIFT wants {2 * PATCH} or more: prepare it "
            "with another --size, or take --features hog"
        )


def classify(dataset: Dataset, method: Traditional, split: str, scratch: Path, *, shown: bool = True) -> Result:
    """Train on the training images and return the errors on `split`.

    Args:
        scratch: a folder for temporary files: 4 bytes times the features' length for each image.
        shown: report progress on stderr.

    Raises:
        ConfigurationError: as `check_traditional`, or there is not enough room.
        dataloading.DatasetError: an image is damaged.
    """
    check_traditional(dataset, method, split)
    opencv().setNumThreads(1)  # images are worked on in threads of ours
    with threadpool_limits(1), tempfile.TemporaryDirectory(dir=scratch) as folder:  # nor does their sum depend on them
        extract, length = _extractor(dataset, method, shown)
        # Images lie in the file in an order without meaning, so that any part of it is a sample of all.
        order = epoch_order(dataset.count("train"), seed=method.seed, epoch=0)
        splits = {"train": order, split: np.arange(dataset.count(split))}
        _check_room(Path(folder), sum(len(samples) for samples in splits.values()) * length)
        features = {
            name: _features(dataset, name, samples, extract, length, Path(folder), method.threads, shown)
            for name, samples in splits.items()
        }
        labels = dataset.labels("train")[order]
        classifier = train_linear(
            features["train"], labels, len(dataset.classes), seed=method.seed, threads=method.threads, shown=shown
        )
        return Result(classifier.errors(features[split], dataset.labels(split)), classifier.alpha, length)


def _extractor(dataset: Dataset, method: Traditional, shown: bool) -> tuple[Callable[[Image.Image], Floats], int]:
    """The function from an image to its features, and how many values these are."""
    if method.features == "hog":
        return lambda image: hog(np.asarray(image)), HOG_LENGTH
    encoder = _fit_encoder(dataset, method, shown)
    return lambda image: encoder.encode(*dense_sift(np.asarray(image.convert("L")))), encoder.length


def _fit_encoder(dataset: Dataset, method: Traditional, shown: bool) -> FisherEncoder:
    """Fit the Gaussians to some descriptors each of some training images."""
    images = epoch_order(dataset.count("train"), seed=method.seed, epoch=1)[:_SAMPLED_IMAGES]
    each = math.ceil(method.gaussians * _DESCRIPTORS_PER_GAUSSIAN / len(images))

    def some(sample: int) -> Floats:
        descriptors, _ = dense_sift(np.asarray(_image(dataset, "train", sample).convert("L")))
        random = np.random.default_rng([method.seed, sample])
        return descriptors[random.permutation(len(descriptors))[:each]]

    found = np.empty((len(images) * each, SIFT_LENGTH), dtype=np.float32)
    filled = 0
    with ProgressReport("sampling descriptors", len(images), shown=shown) as report:
        for part in _in_order(some, images.tolist(), method.threads):
            found[filled : filled + len(part)] = part
            filled += len(part)
            report.update(report.done + 1)
    if shown:
        print(f"fitting {method.gaussians} Gaussians to {filled:,} descriptors", flush=True)
    return FisherEncoder.fit(found[:filled], method.gaussians, seed=method.seed, stripes=method.stripes)


def _features(
    dataset: Dataset,
    split: str,
    samples: NDArray[np.int64],
    extract: Callable[[Image.Image], Floats],
    length: int,
    folder: Path,
    threads: int,
    shown: bool,
) -> Floats:
    """The features of the samples, in their order: float32, shape (N, length), in a file."""
    path = folder / f"{split}.npy"
    features: Floats = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(len(samples), length))
    with ProgressReport(f"describing the images of {split}", len(samples), shown=shown) as report:
        found = _in_order(lambda sample: extract(_image(dataset, split, sample)), samples.tolist(), threads)
        for number, values in enumerate(found):
            features[number] = values
            report.update(number + 1)
    return features


def _image(dataset: Dataset, split: str, sample: int) -> Image.Image:
    """The centre square of an image, in RGB."""
    try:
        return centre_square(decode(dataset.read(split, sample).tobytes()), dataset.size)
    except Rejected as reason:
        raise DatasetError(f"{dataset.describe(split, sample)}: {reason}; prepare the data set anew") from None


def _in_order(work: Callable[[Item], Value], items: Iterable[Item], threads: int) -> Iterator[Value]:
    """Do the work in threads and yield the results in order, with only a few items under way."""
    with ThreadPoolExecutor(threads) as pool:
        under_way: deque[Future[Value]] = deque()
        for item in items:
            under_way.append(pool.submit(work, item))
            if len(under_way) > 4 * threads:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()


def _check_room(folder: Path, values: int) -> None:
    needed, free = 4 * values, shutil.disk_usage(folder).free
    if needed > free:
        raise ConfigurationError(
            f"not enough room in {folder.parent}: the features need {needed / 1e9:,.1f} GB for a while, "
            f"{free / 1e9:,.1f} GB are free; free some, choose another --output, or lower --gaussians"
        )

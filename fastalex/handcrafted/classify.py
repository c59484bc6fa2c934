"""Train and evaluate a classifier on hand-crafted features of a prepared data set.

Images are decoded by Pillow, in threads. Features are kept in a temporary file, so memory does not grow with the data
set. A seed gives the same result for any number of threads.
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

from dataloading import Dataset, DatasetError
from dataloading.loading.order import epoch_order
from dataloading.preparation.images import Rejected, centre_square, decode
from dataloading.progress_bar import ProgressBar
from fastalex.errors import ConfigurationError
from fastalex.handcrafted.descriptors import HOG_LENGTH, PATCH, SIFT_LENGTH, dense_sift, hog, opencv
from fastalex.handcrafted.fisher_vectors import FisherEncoder
from fastalex.handcrafted.linear_svm import train_linear
from fastalex.metrics import Metrics
from fastalex.optional_packages import require

Floats = NDArray[np.float32]
Item = TypeVar("Item")
Value = TypeVar("Value")

FEATURES = ("sift", "hog")

_DESCRIPTORS_PER_GAUSSIAN = 2_000
_SAMPLED_IMAGES = 1_000  # at most; the Gaussians are fitted to descriptors of these


@dataclass(frozen=True)
class HandcraftedMethod:
    """The features and their parameters.

    Args:
        features: ``sift``: dense SIFT encoded as Fisher vectors; ``hog``: histograms of oriented gradients.
        gaussians: number of Gaussians of the Fisher vectors.
        stripes: encode the whole image and its three horizontal stripes instead of the whole image alone.
        seed: determines the descriptors that the Gaussians are fitted to, and the order of the images.
        threads: images processed at a time.
    """

    features: str = "sift"
    gaussians: int = 64
    stripes: bool = True
    seed: int = 0
    threads: int = 1


@dataclass(frozen=True)
class ClassificationResult:
    """Error rates, the chosen regularisation strength, and the length of a feature vector."""

    metrics: Metrics
    alpha: float
    length: int


def check_method(dataset: Dataset, method: HandcraftedMethod, split: str) -> None:
    """Check that a method can run on a data set.

    Raises:
        ConfigurationError: a parameter is out of range, the data set does not suit the method, or a package is missing.
    """
    opencv()
    for package in ("threadpoolctl", "sklearn"):
        require(package, "baseline")
    if method.features not in FEATURES:
        raise ConfigurationError(f"features must be {' or '.join(FEATURES)}, got {method.features!r}")
    for name, least, most in (("gaussians", 1, 4096), ("threads", 1, None), ("seed", 0, 2**32 - 1)):
        value = getattr(method, name)
        if value < least or (most is not None and value > most):
            wanted = f"at least {least}" if most is None else f"from {least} to {most:,}"
            raise ConfigurationError(f"{name} must be {wanted}, got {value}")
    _check_dataset(dataset, split)
    if method.features == "sift" and dataset.count("train") < method.gaussians:
        raise ConfigurationError(
            f"{dataset.root} has {dataset.count('train')} training images, fewer than {method.gaussians} Gaussians; "
            "lower the number of Gaussians"
        )
    if method.features == "sift" and dataset.size < 2 * PATCH:
        raise ConfigurationError(
            f"{dataset.root} has images of {dataset.size} pixels, but dense SIFT needs at least {2 * PATCH}; prepare "
            "the images in a larger size, or choose hog features"
        )


def _check_dataset(dataset: Dataset, split: str) -> None:
    others = [name for name in dataset.splits if name != "train"]
    if split not in others:
        raise ConfigurationError(
            f"{dataset.root} has no split {split!r} to measure errors on; choose from {', '.join(others) or 'none'}"
        )
    if len(dataset.classes) < 2:
        raise ConfigurationError(f"{dataset.root} has {len(dataset.classes)} class, but a classifier needs at least 2")
    for name, least in (("train", 2), (split, 1)):  # one training image is held out to choose the regularisation
        if dataset.count(name) < least:
            raise ConfigurationError(
                f"{dataset.root} needs at least {least} images in split {name!r}, got {dataset.count(name)}"
            )


def classify(
    dataset: Dataset, method: HandcraftedMethod, split: str, scratch: Path, *, shown: bool = True
) -> ClassificationResult:
    """Train on the training images and return the errors on ``split``.

    Args:
        scratch: a folder for temporary files: 4 bytes per feature value and image.
        shown: report progress on stderr.

    Raises:
        ConfigurationError: as :func:`check_method`, or the disk is too full.
        dataloading.DatasetError: an image is damaged.
    """
    check_method(dataset, method, split)
    # Images are processed in our own threads. One thread per library call makes sums independent of their number.
    opencv().setNumThreads(1)
    threadpool_limits = require("threadpoolctl", "baseline").threadpool_limits
    with threadpool_limits(1), tempfile.TemporaryDirectory(dir=scratch) as folder:
        extract, length = _extractor(dataset, method, shown)
        # Features are stored in random order, so any contiguous part of the file is a random sample.
        order = epoch_order(dataset.count("train"), seed=method.seed, epoch=0)
        splits = {"train": order, split: np.arange(dataset.count(split))}
        _check_disk_space(Path(folder), sum(len(samples) for samples in splits.values()) * length)
        features = {
            name: _features(dataset, name, samples, extract, length, Path(folder), method.threads, shown)
            for name, samples in splits.items()
        }
        labels = dataset.labels("train")[order]
        classifier = train_linear(
            features["train"], labels, len(dataset.classes), seed=method.seed, threads=method.threads, shown=shown
        )
        metrics = classifier.errors(features[split], dataset.labels(split))
        return ClassificationResult(metrics, classifier.alpha, length)


def _extractor(dataset: Dataset, method: HandcraftedMethod, shown: bool) -> tuple[Callable[[Image.Image], Floats], int]:
    """The function from an image to its features, and their number."""
    if method.features == "hog":
        return lambda image: hog(np.asarray(image)), HOG_LENGTH
    encoder = _fit_encoder(dataset, method, shown)
    return lambda image: encoder.encode(*dense_sift(np.asarray(image.convert("L")))), encoder.length


def _fit_encoder(dataset: Dataset, method: HandcraftedMethod, shown: bool) -> FisherEncoder:
    """Fit the Gaussians to a random sample: some descriptors from each of some training images."""
    images = epoch_order(dataset.count("train"), seed=method.seed, epoch=1)[:_SAMPLED_IMAGES]
    per_image = math.ceil(method.gaussians * _DESCRIPTORS_PER_GAUSSIAN / len(images))

    def sample_descriptors(sample: int) -> Floats:
        descriptors, _ = dense_sift(np.asarray(_image(dataset, "train", sample).convert("L")))
        random = np.random.default_rng([method.seed, sample])
        return descriptors[random.permutation(len(descriptors))[:per_image]]

    descriptors = np.empty((len(images) * per_image, SIFT_LENGTH), dtype=np.float32)
    filled = 0
    with ProgressBar("sampling descriptors", len(images), shown=shown) as report:
        for part in _map_in_order(sample_descriptors, images.tolist(), method.threads):
            descriptors[filled : filled + len(part)] = part
            filled += len(part)
            report.update(report.done + 1)
    if shown:
        print(f"fitting {method.gaussians} Gaussians to {filled:,} descriptors", flush=True)
    return FisherEncoder.fit(descriptors[:filled], method.gaussians, seed=method.seed, stripes=method.stripes)


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
    """The features of the samples, in their order, in a memory-mapped file: float32, N x length."""
    path = folder / f"{split}.npy"
    features: Floats = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(len(samples), length))
    with ProgressBar(f"extracting features of {split}", len(samples), shown=shown) as report:
        rows = _map_in_order(lambda sample: extract(_image(dataset, split, sample)), samples.tolist(), threads)
        for index, values in enumerate(rows):
            features[index] = values
            report.update(index + 1)
    return features


def _image(dataset: Dataset, split: str, sample: int) -> Image.Image:
    """The centre square of an image, in RGB."""
    try:
        return centre_square(decode(dataset.read(split, sample).tobytes()), dataset.size)
    except Rejected as reason:
        raise DatasetError(f"{dataset.describe(split, sample)}: {reason}; prepare the data set again") from None


def _map_in_order(work: Callable[[Item], Value], items: Iterable[Item], threads: int) -> Iterator[Value]:
    """Apply ``work`` in threads and yield results in order. At most 4 items per thread are pending."""
    with ThreadPoolExecutor(threads) as pool:
        pending: deque[Future[Value]] = deque()
        for item in items:
            pending.append(pool.submit(work, item))
            if len(pending) > 4 * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _check_disk_space(folder: Path, values: int) -> None:
    needed, free = 4 * values, shutil.disk_usage(folder).free
    if needed > free:
        raise ConfigurationError(
            f"{folder.parent} has {free / 1e9:,.1f} GB free, but the features need {needed / 1e9:,.1f} GB for a while; "
            "free some space, choose another folder, or lower the number of Gaussians"
        )

"""One-versus-rest linear support vector machines, trained by SGD on features that need not fit into memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import kernels
from dataloading.progress_bar import ProgressBar
from fastalex.metrics import Metrics
from fastalex.optional_packages import require

Floats = NDArray[np.float32]

ALPHAS = (1e-3, 1e-4, 1e-5, 1e-6)
"""The regularisation strengths to choose from."""

_CHUNK = 1024  # images read at a time

_LEAST_UPDATES = 20_000  # a small training set is visited more often

_MOST_HELD_OUT, _MOST_TRIED = 2_000, 10_000  # images for choosing alpha


class LinearClassifier:
    """One hinge-loss classifier per class, with averaged weights and the penalty alpha / 2 times the squared weights.

    Args:
        classes: number of classes.
        alpha: regularisation strength.
        seed: determines the order of the images.
        threads: number of classes trained at a time; the result does not depend on it.
    """

    def __init__(self, classes: int, alpha: float, *, seed: int, threads: int) -> None:
        self.classes, self.alpha = classes, alpha
        classifier = require("sklearn.linear_model", "baseline").SGDClassifier
        self._svm: Any = classifier(loss="hinge", alpha=alpha, average=True, random_state=seed, n_jobs=threads)
        self._random = np.random.default_rng(seed)

    def fit(self, features: Floats, labels: NDArray[np.int32], report: ProgressBar) -> LinearClassifier:
        """Train on features, N x D, in random order, and their labels, int32, N."""
        # Few images are repeated within a call: starting a call costs more than some steps.
        images, repeats = len(labels), _repeats(len(labels))
        for _ in range(passes(images) // repeats):
            for start in self._random.permutation(np.arange(0, images, _CHUNK)):
                rows = np.tile(np.arange(start, min(start + _CHUNK, images)), repeats)
                self._svm.partial_fit(features[rows], labels[rows], np.arange(self.classes))
                report.update(report.done + len(rows))
        return self

    def errors(self, features: Floats, labels: NDArray[np.int32]) -> Metrics:
        """Top-1 and top-5 error rates, counted as for the network. The loss is 0: these classifiers have none."""
        totals = torch.zeros(4, dtype=torch.float64)
        for start in range(0, len(labels), _CHUNK):
            scores = torch.from_numpy(self._scores(features[start : start + _CHUNK]))
            chunk_labels = torch.from_numpy(labels[start : start + _CHUNK].astype(np.int64))
            totals += kernels.cross_entropy(scores, chunk_labels)[1]
        totals[0] = 0
        return Metrics.from_counts(totals)

    def _scores(self, features: Floats) -> Floats:
        """N x classes."""
        scores = self._svm.decision_function(np.asarray(features))
        return np.stack([-scores, scores], 1) if scores.ndim == 1 else scores


def passes(images: int) -> int:
    """Number of passes over the training images, at least 5."""
    repeats = _repeats(images)
    return repeats * math.ceil(max(5, _LEAST_UPDATES / images) / repeats)


def _repeats(images: int) -> int:
    return max(1, _CHUNK // images)


def train_linear(
    features: Floats, labels: NDArray[np.int32], classes: int, *, seed: int, threads: int, shown: bool
) -> LinearClassifier:
    """Choose alpha by the error on up to a fifth of the images, held out, then train on all images."""
    held_out = min(max(len(labels) // 5, 1), _MOST_HELD_OUT)
    tried = slice(held_out, held_out + _MOST_TRIED)
    tried_images = len(labels[tried])
    total = len(ALPHAS) * passes(tried_images) * tried_images + passes(len(labels)) * len(labels)
    with ProgressBar("training the classifiers", total, unit="steps", shown=shown) as report:

        def candidates() -> Iterator[tuple[float, float]]:
            for alpha in ALPHAS:
                classifier = LinearClassifier(classes, alpha, seed=seed, threads=threads)
                classifier.fit(features[tried], labels[tried], report)
                yield classifier.errors(features[:held_out], labels[:held_out]).top1_error, alpha

        # Of equal errors, the stronger regularisation wins.
        _, alpha = min(candidates(), key=lambda candidate: (candidate[0], -candidate[1]))
        return LinearClassifier(classes, alpha, seed=seed, threads=threads).fit(features, labels, report)

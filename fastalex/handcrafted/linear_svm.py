"""Linear classifiers over features that may not fit into memory: one-versus-rest support vector machines by SGD."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import SGDClassifier

import kernels
from dataloading.progress import ProgressReport
from fastalex.metrics import Metrics

Floats = NDArray[np.float32]


REGULARISATIONS = (1e-3, 1e-4, 1e-5, 1e-6)


_BLOCK = 1024  # images at a time


_UPDATES = 20_000  # at least so many steps are made, however few the images are


_HELD_OUT, _TRIED = 2_000, 10_000  # at most so many images choose the regularisation


class LinearClassifier:
    """One hinge-loss classifier per class, regularised by alpha / 2 times the squared weights, with averaged weights.

    Args:
        classes: how many.
        alpha: strength of the regularisation.
        seed: of the order in which images are visited.
        threads: classes are trained in so many threads; the result does not depend on it.
    """

    def __init__(self, classes: int, alpha: float, *, seed: int, threads: int) -> None:
        self.classes, self.alpha = classes, alpha
        self._svm: Any = SGDClassifier(loss="hinge", alpha=alpha, average=True, random_state=seed, n_jobs=threads)
        self._random = np.random.default_rng(seed)

    def fit(self, features: Floats, labels: NDArray[np.int32], report: ProgressReport) -> LinearClassifier:
        """Train on N x D features, which lie in an order without meaning, and int32 labels of shape (N,)."""
        # Few images are given several times at once: starting costs more than a few steps.
        images, repeats = len(labels), _repeats(len(labels))
        for _ in range(passes(images) // repeats):
            for start in self._random.permutation(np.arange(0, images, _BLOCK)):
                rows = np.tile(np.arange(start, min(start + _BLOCK, images)), repeats)
                self._svm.partial_fit(features[rows], labels[rows], np.arange(self.classes))
                report.update(report.done + len(rows))
        return self

    def errors(self, features: Floats, labels: NDArray[np.int32]) -> Metrics:
        """Top-1 and top-5 error rates, counted as the network's are. There is no loss to speak of: 0."""
        totals = torch.zeros(4, dtype=torch.float64)
        for start in range(0, len(labels), _BLOCK):
            scores = torch.from_numpy(self._scores(features[start : start + _BLOCK]))
            wanted = torch.from_numpy(labels[start : start + _BLOCK].astype(np.int64))
            totals += kernels.cross_entropy(scores, wanted)[1]
        totals[0] = 0
        return Metrics.from_counts(totals)

    def _scores(self, features: Floats) -> Floats:
        """N x classes."""
        scores = self._svm.decision_function(np.asarray(features))
        return np.stack([-scores, scores], 1) if scores.ndim == 1 else scores


def passes(images: int) -> int:
    """How often all images are visited: 5 times or more."""
    repeats = _repeats(images)
    return repeats * math.ceil(max(5, _UPDATES / images) / repeats)


def _repeats(images: int) -> int:
    return max(1, _BLOCK // images)


def train_linear(
    features: Floats, labels: NDArray[np.int32], classes: int, *, seed: int, threads: int, shown: bool
) -> LinearClassifier:
    """Choose alpha by the errors on up to a fifth of the images, held out, then train on all of them."""
    held_out = min(max(len(labels) // 5, 1), _HELD_OUT)
    tried = slice(held_out, held_out + _TRIED)
    count_tried = len(labels[tried])
    total = len(REGULARISATIONS) * passes(count_tried) * count_tried + passes(len(labels)) * len(labels)
    with ProgressReport("training the classifiers", total, unit="steps", shown=shown) as report:

        def candidates() -> Iterator[tuple[float, float]]:
            for alpha in REGULARISATIONS:
                classifier = LinearClassifier(classes, alpha, seed=seed, threads=threads)
                classifier.fit(features[tried], labels[tried], report)
                yield classifier.errors(features[:held_out], labels[:held_out]).top1_error, alpha

        _, alpha = min(candidates(), key=lambda found: (found[0], -found[1]))
        return LinearClassifier(classes, alpha, seed=seed, threads=threads).fit(features, labels, report)

"""Linear classifiers on features whose classes are known."""

import numpy as np
import pytest

from dataloading.progress_bar import ProgressBar
from fastalex.handcrafted.linear_svm import LinearClassifier, train_linear


@pytest.mark.parametrize("classes", [2, 7])
def test_separable_classes_are_learnt(classes):
    random = np.random.default_rng(0)
    labels = random.integers(0, classes, 400).astype(np.int32)
    features = (np.eye(20)[labels] + 0.1 * random.normal(size=(400, 20))).astype(np.float32)
    classifier = train_linear(features[:300], labels[:300], classes, seed=0, threads=1, shown=False)
    metrics = classifier.errors(features[300:], labels[300:])
    assert (metrics.top1_error, metrics.top5_error, metrics.images) == (0, 0, 100)
    wrong = classifier.errors(features[300:], (labels[300:] + 1) % classes)
    assert wrong.top1_error == 100


def test_a_class_that_never_occurs_harms_no_other():
    labels = np.array([0, 2] * 20, dtype=np.int32)
    features = np.eye(3, dtype=np.float32)[labels]
    silent = ProgressBar("", None, shown=False)
    assert (
        LinearClassifier(3, 1e-4, seed=0, threads=1).fit(features, labels, silent).errors(features, labels).top1_error
        == 0
    )

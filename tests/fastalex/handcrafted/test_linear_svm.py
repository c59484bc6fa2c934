"""Linear classifiers on features whose classes are known, and which images they see."""

from types import SimpleNamespace

import numpy as np
import pytest

from dataloading.progress_bar import ProgressBar
from fastalex.handcrafted import linear_svm
from fastalex.handcrafted.linear_svm import LinearClassifier, passes, train_linear
from fastalex.metrics import Metrics


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


@pytest.mark.parametrize(("most_held_out", "most_tried", "held_out", "tried"), [(99, 99, 4, 23), (3, 5, 3, 8)])
def test_the_strength_is_chosen_on_images_that_were_held_out(monkeypatch, most_held_out, most_tried, held_out, tried):
    """Of equal errors the stronger one wins; what is returned has seen all images."""
    errors, seen = {1e-3: 30.0, 1e-4: 20.0, 1e-5: 20.0, 1e-6: 40.0}, []

    def fit(self, features, labels, report):
        assert labels.tolist() == (features[:, 0] % 3).tolist()
        seen.append((self.alpha, features[:, 0].tolist()))
        return self

    def judge(self, features, labels):
        assert features[:, 0].tolist() == list(range(held_out))
        assert labels.tolist() == (features[:, 0] % 3).tolist()
        return Metrics(0.0, errors[self.alpha], 100 - errors[self.alpha], len(labels))

    monkeypatch.setattr(LinearClassifier, "fit", fit)
    monkeypatch.setattr(LinearClassifier, "errors", judge)
    monkeypatch.setattr(linear_svm, "_MOST_HELD_OUT", most_held_out)
    monkeypatch.setattr(linear_svm, "_MOST_TRIED", most_tried)
    numbers = np.arange(23, dtype=np.float32)[:, None]
    chosen = train_linear(numbers, (numbers[:, 0] % 3).astype(np.int32), 3, seed=0, threads=1, shown=False)
    parts = [list(range(held_out, tried))] * 4 + [list(range(23))]
    assert seen == list(zip((*errors, 1e-4), parts, strict=True))
    assert chosen.alpha == 1e-4


@pytest.mark.parametrize("images", [2500, 300])
def test_every_pass_visits_every_image_in_a_new_order(images):
    visited: list[np.ndarray] = []
    classifier = LinearClassifier(2, 1e-4, seed=0, threads=1)
    classifier._svm = SimpleNamespace(partial_fit=lambda features, labels, classes: visited.append(features[:, 0]))
    numbers = np.arange(images, dtype=np.float32)[:, None]
    classifier.fit(numbers, np.zeros(images, dtype=np.int32), ProgressBar("", None, shown=False))
    assert np.bincount(np.concatenate(visited).astype(int)).tolist() == [passes(images)] * images
    if images > 1024:
        assert len({tuple(chunk[0] for chunk in visited[start : start + 3]) for start in range(0, 24, 3)}) > 1


def test_small_sets_are_visited_more_often():
    assert [passes(images) for images in (10**6, 5000, 2500, 1000, 300, 100)] == [5, 5, 8, 20, 69, 200]

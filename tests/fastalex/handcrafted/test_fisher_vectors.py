"""Fisher vectors against their formula."""

import math

import numpy as np
import pytest

from fastalex.handcrafted.fisher_vectors import FisherEncoder


def encoder(gaussians: int = 3, dimensions: int = 4, inputs: int = 6, *, stripes: bool) -> FisherEncoder:
    random = np.random.default_rng(3)
    weights = random.dirichlet(np.ones(gaussians))
    axes, _ = np.linalg.qr(random.normal(size=(inputs, dimensions)))
    means, deviations = random.normal(size=(2, gaussians, dimensions))
    arrays = random.normal(size=inputs), axes, weights, means, 0.5 + np.abs(deviations)
    return FisherEncoder(*(array.astype(np.float32) for array in arrays), stripes=stripes)


def by_the_formula(encoder: FisherEncoder, descriptors: np.ndarray) -> list[float]:
    """The Fisher vector in plain Python, in double precision."""
    weights, means, deviations = (
        array.astype(np.float64) for array in (encoder.weights, encoder.means, encoder.deviations)
    )
    points = [(descriptor - encoder.centre.astype(np.float64)) @ encoder.axes for descriptor in descriptors]
    gaussians, dimensions = means.shape
    gamma = []
    for x in points:
        density = [
            weights[k]
            * math.prod(
                math.exp(-((x[d] - means[k, d]) ** 2) / (2 * deviations[k, d] ** 2))
                / (math.sqrt(2 * math.pi) * deviations[k, d])
                for d in range(dimensions)
            )
            for k in range(gaussians)
        ]
        gamma.append([value / sum(density) for value in density])
    vector = []
    for power in (1, 2):
        for k in range(gaussians):
            for d in range(dimensions):
                total = 0.0
                for x, share in zip(points, gamma, strict=True):
                    z = (x[d] - means[k, d]) / deviations[k, d]
                    total += share[k] * (z if power == 1 else (z**2 - 1) / math.sqrt(2))
                vector.append(total / (len(points) * math.sqrt(weights[k])))
    rooted = [math.copysign(math.sqrt(abs(value)), value) for value in vector]
    length = math.sqrt(sum(value**2 for value in rooted))
    return [value / length for value in rooted]


def test_a_fisher_vector_is_that_of_the_formula():
    descriptors = np.random.default_rng(1).normal(size=(30, 6)).astype(np.float32)
    plain = encoder(stripes=False)
    found = plain.encode(descriptors, np.zeros(30, dtype=np.float32))
    assert found.dtype == np.float32
    assert found.shape == (plain.length,)
    assert found == pytest.approx(by_the_formula(plain, descriptors), abs=1e-5)


def test_stripes_are_fisher_vectors_of_the_thirds():
    descriptors = np.random.default_rng(1).normal(size=(30, 6)).astype(np.float32)
    heights = np.random.default_rng(2).random(30, dtype=np.float32)
    heights[0] = 1.0  # the lower edge belongs to the last stripe
    striped = encoder(stripes=True)
    found = striped.encode(descriptors, heights).reshape(4, -1) * 2
    assert found[0] == pytest.approx(by_the_formula(striped, descriptors), abs=1e-5)
    for number, (low, high) in enumerate(((0, 1 / 3), (1 / 3, 2 / 3), (2 / 3, 1.01))):
        here = descriptors[(heights >= low) & (heights < high)]
        assert found[1 + number] == pytest.approx(by_the_formula(striped, here), abs=1e-5)


def test_a_stripe_without_descriptors_is_zero():
    descriptors = np.random.default_rng(1).normal(size=(5, 6)).astype(np.float32)
    whole, upper, middle, lower = (
        encoder(stripes=True).encode(descriptors, np.zeros(5, dtype=np.float32)).reshape(4, -1)
    )
    assert np.array_equal(whole, upper)
    assert whole.any()
    assert not middle.any()
    assert not lower.any()


def test_gaussians_are_found_where_the_descriptors_are():
    random = np.random.default_rng(0)
    centres = random.normal(size=(3, 128)) * 5
    which = random.integers(0, 3, 3000)
    noise = 0.5 * random.normal(size=(3000, 128))
    fitted = FisherEncoder.fit((centres[which] + noise).astype(np.float32), 3, seed=0)
    assert fitted.axes.shape == (128, 64)
    assert np.sort(fitted.weights) == pytest.approx(np.sort(np.bincount(which) / 3000), abs=1e-3)
    assert np.median(fitted.deviations) == pytest.approx(0.5, abs=0.05)  # PCA keeps the axes with the most noise
    rebuilt = fitted.means @ fitted.axes.T + fitted.centre
    for centre in centres:
        assert np.linalg.norm(rebuilt - centre, axis=1).min() < 1

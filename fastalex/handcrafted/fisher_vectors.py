"""Fisher vectors: one vector for a set of local descriptors, after Sanchez, Perronnin, Mensink and Verbeek (IJCV 2013).

PCA projects descriptors to 64 dimensions. A mixture of K diagonal Gaussians with weights w_k, means mu_k and standard
deviations sigma_k models the descriptors of all images. Let gamma_t(k) be the posterior probability of Gaussian k given
descriptor x_t. An image with T descriptors has the gradients::

    g_mu_k    = 1 / (T sqrt(w_k))   sum_t gamma_t(k) (x_t - mu_k) / sigma_k
    g_sigma_k = 1 / (T sqrt(2 w_k)) sum_t gamma_t(k) ((x_t - mu_k)^2 / sigma_k^2 - 1)

Their signed square root (power normalisation), divided by its norm, is the Fisher vector.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DIMENSIONS = 64

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class FisherEncoder:
    """Encodes the descriptors of an image as a Fisher vector.

    Args:
        centre, axes: of the PCA: D, and D x 64 with one axis per column.
        weights, means, deviations: of the K Gaussians: K, K x 64, K x 64.
        stripes: also encode each third of the image's height (a spatial pyramid of 1 + 3 regions).
    """

    centre: Floats
    axes: Floats
    weights: Floats
    means: Floats
    deviations: Floats
    stripes: bool = True

    @classmethod
    def fit(cls, descriptors: Floats, gaussians: int, *, seed: int, stripes: bool = True) -> FisherEncoder:
        """Fit PCA and Gaussians to a sample of descriptors, S x D. EM starts from k-means."""
        # Slow imports, which hog does not need.
        from sklearn.decomposition import PCA
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.mixture import GaussianMixture

        pca = PCA(min(DIMENSIONS, *descriptors.shape), random_state=seed).fit(descriptors)
        mixture = GaussianMixture(gaussians, covariance_type="diag", reg_covar=1e-4, max_iter=50, random_state=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # 50 iterations are enough for an encoder
            mixture.fit(pca.transform(descriptors))
        arrays = {
            "centre": pca.mean_,
            "axes": pca.components_.T,
            "weights": mixture.weights_,
            "means": mixture.means_,
            "deviations": np.sqrt(mixture.covariances_),
        }
        return cls(**{name: array.astype(np.float32) for name, array in arrays.items()}, stripes=stripes)

    @property
    def length(self) -> int:
        """Length of the vector: 2 x K x 64, times 4 with stripes."""
        return 2 * self.means.size * (4 if self.stripes else 1)

    def encode(self, descriptors: Floats, heights: Floats) -> Floats:
        """The Fisher vector of an image, of norm 1.

        Args:
            descriptors: T x D.
            heights: their vertical positions, T values from 0 to 1.
        """
        x = ((descriptors - self.centre) @ self.axes).astype(np.float32, copy=False)
        gamma = self._posteriors(x)
        regions = [np.ones(len(x), dtype=bool)]
        if self.stripes:
            stripe = np.minimum((3 * heights).astype(int), 2)
            regions += [stripe == index for index in range(3)]
        parts = [_normalised(self._gradients(x[region], gamma[region])) for region in regions]
        return np.concatenate(parts) / np.float32(np.sqrt(len(parts)))

    def _posteriors(self, x: Floats) -> Floats:
        """gamma, T x K."""
        precisions = self.deviations**-2
        constants = np.log(self.weights) - np.log(self.deviations).sum(1) - 0.5 * (self.means**2 * precisions).sum(1)
        logs = constants + x @ (self.means * precisions).T - 0.5 * (x**2 @ precisions.T)
        gamma = np.exp(logs - logs.max(1, keepdims=True))
        return gamma / gamma.sum(1, keepdims=True)

    def _gradients(self, x: Floats, gamma: Floats) -> Floats:
        """g_mu and g_sigma, from the sums of gamma, gamma x and gamma x^2 over the descriptors."""
        count, sums, squares = gamma.sum(0)[:, None], gamma.T @ x, gamma.T @ x**2
        by_mean = (sums - count * self.means) / self.deviations
        by_deviation = (squares - 2 * self.means * sums + count * self.means**2) / self.deviations**2 - count
        scale = 1 / (max(len(x), 1) * np.sqrt(self.weights[:, None]))
        return np.concatenate([(by_mean * scale).ravel(), (by_deviation * scale / np.sqrt(2)).ravel()])


def _normalised(vector: Floats) -> Floats:
    """Power normalisation, then division by the norm."""
    vector = np.sign(vector) * np.sqrt(np.abs(vector))
    return (vector / max(float(np.linalg.norm(vector)), 1e-12)).astype(np.float32)

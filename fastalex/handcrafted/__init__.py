"""Image classification with hand-crafted features, the state of the art before 2012, as a baseline.

Every image is described by dense SIFT descriptors encoded as a Fisher vector, or by histograms of oriented gradients,
and classified by linear support vector machines. :func:`classify` trains and evaluates such a classifier on a prepared
data set.
"""

from fastalex.handcrafted.classify import ClassificationResult, HandcraftedMethod, classify

__all__ = ["ClassificationResult", "HandcraftedMethod", "classify"]

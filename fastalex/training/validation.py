"""Error rates of a network over a data set, with one view of each image or ten."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

import kernels
from dataloading.loader import Batch
from fastalex.parallel.engine import SingleDevice
from fastalex.parallel.pipeline import Pipeline


def count_errors(
    engine: SingleDevice | Pipeline,
    batches: Iterable[Batch],
    *,
    views: int = 1,
    stopped: Callable[[], bool] = lambda: False,
) -> Tensor | None:
    """Counts (:func:`kernels.cross_entropy`, on the CPU) over all batches.

    Images of one view have the shape N x 3 x S x S. Those of several, N x V x 3 x S x S, are classified by the mean of
    their softmax outputs, as the paper does with ten.

    Args:
        engine: runs the network; every worker of a pipeline calls this with batches of its own loader.
        batches: the labels are needed where the last stage is, the images where the first is.
        stopped: asked after each batch, and on all workers with one answer; True gives up.

    Returns:
        The counts where the last stage is and zeros elsewhere, or None after giving up.
    """
    totals = torch.zeros(4, dtype=torch.float64)
    for batch in batches:
        scores = classify(engine, batch, views)
        if scores is not None:
            assert batch.labels is not None
            labels = batch.labels.to(scores.device)
            totals += kernels.cross_entropy(scores, labels)[1].cpu()
        if stopped():
            return None
    return totals


def classify(engine: SingleDevice | Pipeline, batch: Batch, views: int) -> Tensor | None:
    """The scores of a batch's images, N x classes: logits of one view, or the logarithm of the mean softmax of several.

    Softmax makes probabilities of either. A batch smaller than the engine's is filled up and cut again. None where the
    last stage is not.
    """
    if views == 1:
        logits = engine.logits(fill_up(batch.images, engine.batch_size))
        return None if logits is None else logits[: len(batch.samples)]
    scores = []
    for view in range(views):
        images = None if batch.images is None else batch.images[:, view]
        logits = engine.logits(fill_up(images, engine.batch_size))
        if logits is not None:
            scores.append(logits[: len(batch.samples)].float().log_softmax(1))
    # In logarithms throughout: the mean of probabilities that round to zero would have none.
    return torch.stack(scores).logsumexp(0) - math.log(views) if scores else None


def fill_up(images: Tensor | None, rows: int) -> Tensor | None:
    """The images with zeros appended up to ``rows``, because a pipeline runs one batch shape only."""
    if images is None or images.shape[0] == rows:
        return images
    return torch.cat([images, images.new_zeros(rows - images.shape[0], *images.shape[1:])])

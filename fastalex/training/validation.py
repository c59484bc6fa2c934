"""Error rates of a network on a data set, from one view of each image or from several."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

import kernels
from dataloading import Batch
from fastalex.parallel.engine import Engine


def count_errors(
    engine: Engine,
    batches: Iterable[Batch],
    *,
    views: int = 1,
    stopped: Callable[[], bool] = lambda: False,
) -> Tensor | None:
    """The counts (:func:`kernels.cross_entropy`) over all batches: float64, on the CPU.

    Images have shape N x 3 x S x S with one view, N x V x 3 x S x S with several. Several views are combined by the
    mean of their softmax outputs, as in the paper.

    Args:
        engine: runs the network. Every worker of a pipeline calls this function, with batches of its own loader.
        batches: need images where the first stage is, and labels where the last stage is.
        stopped: called after each batch; must return the same answer on all workers. True ends the evaluation.

    Returns:
        The counts where the last stage is, zeros elsewhere; None if ``stopped`` ended the evaluation.
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


def classify(engine: Engine, batch: Batch, views: int) -> Tensor | None:
    """Scores of a batch's images, N x classes, whose softmax is the predicted probability; None without the last stage.

    Scores are the logits of one view, or the logarithm of the mean softmax of several views. A batch smaller than the
    engine's is padded, and the padding's scores are removed.
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
    return mean_of_views(scores) if scores else None


def mean_of_views(log_probabilities: Sequence[Tensor]) -> Tensor:
    """The logarithm of the mean probability over views, from their logarithms, N x classes each.

    The mean is taken in log space: a mean of probabilities could underflow to zero.
    """
    return torch.stack(list(log_probabilities)).logsumexp(0) - math.log(len(log_probabilities))


def fill_up(images: Tensor | None, rows: int) -> Tensor | None:
    """Pad a batch with zeros to ``rows`` images, because a pipeline runs batches of one shape only."""
    if images is None or images.shape[0] == rows:
        return images
    return torch.cat([images, images.new_zeros(rows - images.shape[0], *images.shape[1:])])

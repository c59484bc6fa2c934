"""Error rates and predictions of one network or an ensemble over a split of a data set.

An ensemble predicts the weighted mean of its networks' softmax outputs, as the entries of 2012 did. The weights are
called coefficients: given, equal, or fitted on another split. The authors of 2012 searched for the coefficients with
the lowest top-5 error on the validation set. Here they maximise the likelihood of the labels: that function is concave,
and needs one number per image and network.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

import kernels
from dataloading import Batch, Loader
from fastalex.console import batch_progress
from fastalex.datasets import open_prepared
from fastalex.errors import Interrupted
from fastalex.evaluation.trained_network import TrainedNetwork, open_loader
from fastalex.metrics import Metrics
from fastalex.network.precision import Precision
from fastalex.parallel.engine import Engine
from fastalex.parallel.layout import ParallelPlan
from fastalex.parallel.world import World
from fastalex.training.validation import classify
from kernels.reference import misses

TOP = 5

# What a network needs from its loader: crop size, data set whose mean image is subtracted, whether its mean colour is.
Inputs = tuple[int, str | None, bool]


@dataclass(frozen=True)
class Evaluation:
    """One evaluation, fully resolved.

    Args:
        networks: the networks of the ensemble; all have the classes of the data, in any order.
        plans: the parallel plan of each network; all have the same layout.
        data: the prepared data set.
        split: the split to evaluate on.
        views: views per image, 1 or 10.
        coefficients: weights of the networks' softmax outputs, with sum 1; None to fit them on ``fitted_on``.
        fitted_on: the split that coefficients are fitted on; None if they are given.
        batch_size: images per batch.
        precision: ``fp32``, ``tf32`` or ``bf16``.
    """

    networks: tuple[TrainedNetwork, ...]
    plans: tuple[ParallelPlan, ...]
    data: str
    split: str
    views: int
    coefficients: tuple[float, ...] | None
    fitted_on: str | None
    batch_size: int
    precision: Precision


@dataclass(frozen=True)
class Predictions:
    """Predictions for N images by M networks; K is 5, or the number of classes if there are fewer.

    Classes are numbered as in the data set.

    Args:
        labels: int64, N.
        top1_misses: bool, N, as :func:`kernels.reference.misses` defines them.
        top5_misses: bool, N.
        top_classes: int64, N x K, most probable first.
        top_probabilities: fp32, N x K.
        losses: float64, N: cross-entropy in nats.
        network_counts: float64, M x 4: the counts of each network alone, as :func:`kernels.cross_entropy` returns them.
    """

    labels: Tensor
    top1_misses: Tensor
    top5_misses: Tensor
    top_classes: Tensor
    top_probabilities: Tensor
    losses: Tensor
    network_counts: Tensor

    @property
    def metrics(self) -> Metrics:
        """Mean loss and error rates."""
        errors = [self.top1_misses.sum(), self.top5_misses.sum()]
        images = torch.tensor(len(self.labels))
        return Metrics.from_counts(torch.stack([self.losses.sum(), *errors, images]).double())


@dataclass(frozen=True)
class EvaluationResult:
    """The result of an evaluation. ``seconds`` is the time taken by ``split``, without fitting."""

    predictions: Predictions
    coefficients: tuple[float, ...]
    seconds: float


def evaluate(world: World, evaluation: Evaluation) -> EvaluationResult | None:
    """Evaluate the networks. All workers call this; the first one gets the result, the others None.

    Raises:
        Interrupted: a signal asked to stop.
        dataloading.DatasetError: an image is damaged.
    """
    world.arrange(evaluation.plans[0].layout)
    evaluator = _Evaluator(world, evaluation)
    coefficients = evaluation.coefficients
    if coefficients is None:
        assert evaluation.fitted_on is not None
        # Only the last stage has scores to fit to. The other workers contribute zeros to the sum.
        fitted = torch.zeros(len(evaluation.networks), dtype=torch.float64)
        log_likelihoods = list(evaluator.label_log_likelihoods(evaluation.fitted_on))
        if log_likelihoods:
            fitted = fit_coefficients(torch.cat(log_likelihoods))
        coefficients = tuple(world.sum(fitted).tolist())
    started = time.perf_counter()
    batches = list(evaluator.predictions(evaluation.split, coefficients))
    merged: dict[str, Tensor] = {}
    if batches:
        merged = {field.name: torch.cat([getattr(b, field.name) for b in batches]) for field in fields(Predictions)}
        merged["network_counts"] = torch.stack([batch.network_counts for batch in batches]).sum(0)
    gathered = world.gather(merged)
    if not world.is_first:
        return None
    return EvaluationResult(Predictions(**gathered), coefficients, time.perf_counter() - started)


def mix(scores: Sequence[Tensor], coefficients: Sequence[float]) -> Tensor:
    """The logarithm of the weighted mean of the networks' softmax outputs.

    Args:
        scores: of each network, N x classes: logits, or logarithms of probabilities. A single network's scores are
            returned as they are.
        coefficients: the weight of each network.
    """
    if len(scores) == 1:
        return scores[0]
    # Logarithms throughout: probabilities that round to zero would lose their ranking.
    weighted = [s.float().log_softmax(1) + math.log(c) for s, c in zip(scores, coefficients, strict=True) if c > 0]
    return torch.stack(weighted).logsumexp(0)


def fit_coefficients(log_likelihoods: Tensor, *, tolerance: float = 1e-7, limit: int = 10_000) -> Tensor:
    """Maximum-likelihood coefficients: argmax over c >= 0, sum(c) = 1, of sum_n log sum_m c_m p_nm.

    The objective is concave. Expectation maximisation sets each coefficient to the network's mean share of the mixed
    probability, and stops when no coefficient changes by more than ``tolerance``, or after ``limit`` iterations.

    Args:
        log_likelihoods: log p, float64, N x M: the log-probability of each image's label under each network.

    Returns:
        float64, M.
    """
    coefficients = torch.full(log_likelihoods.shape[1:], 1 / log_likelihoods.shape[1], dtype=torch.float64)
    for _ in range(limit):
        updated = (log_likelihoods + coefficients.log()).softmax(1).mean(0)
        converged = (updated - coefficients).abs().max() <= tolerance
        coefficients = updated
        if converged:
            break
    return coefficients / coefficients.sum()


class _Evaluator:
    """This worker's engines, one per network, and the loaders that feed them."""

    def __init__(self, world: World, evaluation: Evaluation) -> None:
        self.world, self.evaluation = world, evaluation
        dataset = open_prepared(evaluation.data)
        self.engines: list[Engine] = []
        self.class_orders: list[Tensor | None] = []
        self.inputs: list[Inputs] = []
        for network, plan in zip(evaluation.networks, evaluation.plans, strict=True):
            engine = network.build_engine(world, plan, evaluation.batch_size, evaluation.precision)
            self.engines.append(engine)
            self.class_orders.append(_class_order(network, dataset.classes, world.device))
            size, mean = engine.stage.architecture.image_size, network.mean_image_for(dataset)
            self.inputs.append((size, mean, network.spec.channel_means))

    def label_log_likelihoods(self, split: str) -> Iterator[Tensor]:
        """The argument of :func:`fit_coefficients`, batch by batch, on the worker with the last stage."""
        for labels, scores in self._scores(split, f"fitting on {split}"):
            columns = [s.double().log_softmax(1).gather(1, labels.unsqueeze(1)) for s in scores]
            yield torch.cat(columns, 1).cpu()

    def predictions(self, split: str, coefficients: Sequence[float]) -> Iterator[Predictions]:
        """Predictions of each batch, on the worker with the last stage."""
        for labels, scores in self._scores(split, f"evaluating {split}"):
            mixed = mix(scores, coefficients)
            top = mixed.float().softmax(1).topk(min(TOP, mixed.shape[1]), 1)
            top1, top5 = misses(mixed, labels)
            losses = torch.nn.functional.cross_entropy(mixed.float(), labels, reduction="none").double()
            counts = torch.stack([kernels.cross_entropy(s, labels)[1] for s in scores])
            tensors = (labels, top1, top5, top.indices, top.values, losses, counts)
            yield Predictions(*(tensor.cpu() for tensor in tensors))

    def _scores(self, split: str, title: str) -> Iterator[tuple[Tensor, list[Tensor]]]:
        """Labels and the scores of each network, with classes in the order of the data set, batch by batch."""
        evaluation, world = self.evaluation, self.world
        # Networks with the same inputs share a loader.
        loaders = {
            (size, mean, by_channel): open_loader(
                world,
                evaluation.data,
                mean,
                split,
                evaluation.batch_size,
                size,
                evaluation.views,
                by_channel=by_channel,
            )
            for size, mean, by_channel in set(self.inputs)
        }
        try:
            for batches in self._batches(loaders, title):
                scores = [self._classify(index, batches) for index in range(len(self.engines))]
                on_last_stage = [s for s in scores if s is not None]
                if on_last_stage:
                    labels = batches[self.inputs[0]].labels
                    assert labels is not None
                    yield labels.to(on_last_stage[0].device), on_last_stage
                if world.stop_requested():
                    raise Interrupted("interrupted; nothing was written", world.signal_number or signal.SIGINT)
        finally:
            for loader in loaders.values():
                loader.close()

    def _batches(self, loaders: dict[Inputs, Loader], title: str) -> Iterator[dict[Inputs, Batch]]:
        total = len(next(iter(loaders.values())))
        epochs = (loader.epoch(0) for loader in loaders.values())
        with batch_progress(title, total, shown=self.world.is_first) as advance:
            for batches in zip(*epochs, strict=True):
                yield dict(zip(loaders, batches, strict=True))
                advance()

    def _classify(self, index: int, batches: dict[Inputs, Batch]) -> Tensor | None:
        scores = classify(self.engines[index], batches[self.inputs[index]], self.evaluation.views)
        order = self.class_orders[index]
        return scores if scores is None or order is None else scores[:, order]


def _class_order(network: TrainedNetwork, classes: Sequence[str], device: torch.device) -> Tensor | None:
    """The index of each of the data set's classes among the network's outputs; None if the orders agree."""
    outputs = network.spec.classes
    if tuple(classes) == outputs:
        return None
    indices = {name: index for index, name in enumerate(outputs)}
    return torch.tensor([indices[name] for name in classes], device=device)

"""Trained networks judged over a split, alone or together: errors, and what was said of every image.

Several networks answer with the weighted mean of their softmax outputs, as the entries of 2012 did. Their weights, the
coefficients, are given, equal, or fitted on a split of their own. (In 2012 a search over coefficients lowered the top-5
error of the validation set; here they maximise the likelihood of its labels, which has one maximum, found from two
numbers an image and network, and no ties.)
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import kernels
from dataloading.loader import Batch, Loader
from fastalex.console import batch_progress
from fastalex.datasets import open_prepared
from fastalex.errors import Interrupted
from fastalex.evaluation.trained_network import TrainedNetwork, open_loader
from fastalex.metrics import Metrics
from fastalex.network.precision import Precision
from fastalex.parallel.engine import SingleDevice
from fastalex.parallel.pipeline import Pipeline
from fastalex.parallel.world import World
from fastalex.training.validation import classify
from kernels.reference import misses

TOP = 5


@dataclass(frozen=True)
class Evaluation:
    """Which networks are judged on what.

    Args:
        networks: one or more, all of the same classes as the data, in any order.
        data: the prepared data set.
        split: which part of it.
        views: 1 or 10 of each image.
        coefficients: of the networks' softmax outputs, summing to 1; None fits them on ``fitted_on``.
        fitted_on: the split that coefficients are fitted on; None where they are given.
        batch_size: images at a time.
        precision: ``fp32`` or ``bf16``.
    """

    networks: tuple[TrainedNetwork, ...]
    data: str
    split: str
    views: int
    coefficients: tuple[float, ...] | None
    fitted_on: str | None
    batch_size: int
    precision: Precision


@dataclass(frozen=True)
class Predictions:
    """What was said of N images: M networks, K = 5 or, with fewer classes, all of them.

    Classes are numbered as the data set numbers them. ``labels`` (int64, N); ``top1_misses`` and ``top5_misses``
    (bool, N), by the rule of :func:`fastalex.metrics.misses`; ``top_classes`` (int64, N x K) and ``top_probabilities``
    (fp32, N x K), most probable first; ``losses`` (float64, N): cross-entropy in nats; ``members`` (float64, M x 4):
    each network's own counts as :func:`kernels.cross_entropy` has them.
    """

    labels: Tensor
    top1_misses: Tensor
    top5_misses: Tensor
    top_classes: Tensor
    top_probabilities: Tensor
    losses: Tensor
    members: Tensor

    @property
    def metrics(self) -> Metrics:
        """Mean loss and error rates."""
        errors = [self.top1_misses.sum(), self.top5_misses.sum()]
        images = torch.tensor(len(self.labels))
        return Metrics.from_counts(torch.stack([self.losses.sum(), *errors, images]).double())


@dataclass(frozen=True)
class EvaluationResult:
    """An evaluation's outcome, on the first worker. ``seconds`` is how long the judged split took."""

    predictions: Predictions
    coefficients: tuple[float, ...]
    seconds: float


def evaluate(world: World, evaluation: Evaluation) -> EvaluationResult | None:
    """Judge the networks; all workers call this, the first one gets the outcome.

    Raises:
        Interrupted: told to stop.
        dataloading.DatasetError: an image is damaged.
    """
    judge = _Evaluator(world, evaluation)
    coefficients = evaluation.coefficients
    if coefficients is None:
        assert evaluation.fitted_on is not None
        # The last stage fits; all others learn the result as a sum.
        fitted = torch.zeros(len(evaluation.networks), dtype=torch.float64)
        likelihoods = list(judge.label_scores(evaluation.fitted_on))
        if likelihoods:
            fitted = fit_coefficients(torch.cat(likelihoods))
        coefficients = tuple(world.sum(fitted).tolist())
    started = time.perf_counter()
    parts = list(judge.predictions(evaluation.split, coefficients))
    names = list(Predictions.__dataclass_fields__)
    merged: dict[str, Tensor] = {}
    if parts:
        merged = {name: torch.cat([getattr(part, name) for part in parts]) for name in names if name != "members"}
        merged["members"] = torch.stack([part.members for part in parts]).sum(0)
    gathered = world.gather(merged)
    if not world.is_first:
        return None
    return EvaluationResult(Predictions(**gathered), coefficients, time.perf_counter() - started)


def mix(scores: Sequence[Tensor], coefficients: Sequence[float]) -> Tensor:
    """The logarithm of the weighted mean softmax of networks' scores, N x classes each; a single one's stay as is."""
    if len(scores) == 1:
        return scores[0]
    # In logarithms throughout: a mean of probabilities that round to zero would have none.
    weighted = [s.float().log_softmax(1) + math.log(c) for s, c in zip(scores, coefficients, strict=True) if c > 0]
    return torch.stack(weighted).logsumexp(0)


def fit_coefficients(likelihoods: Tensor, *, tolerance: float = 1e-7, limit: int = 10_000) -> Tensor:
    """The coefficients c, summing to 1, under which the labels are likeliest: max over c of sum_n log sum_m c_m p_nm.

    The sum is concave in c, so expectation maximisation finds its one maximum: each network's coefficient becomes its
    mean share in the labels' probabilities, until none changes by more than ``tolerance`` (or ``limit`` times).

    Args:
        likelihoods: log p, float64, N x M: the log-probability that each network gives each image's label.
    """
    coefficients = torch.full(likelihoods.shape[1:], 1 / likelihoods.shape[1], dtype=torch.float64)
    for _ in range(limit):
        updated = (likelihoods + coefficients.log()).softmax(1).mean(0)
        settled = (updated - coefficients).abs().max() <= tolerance
        coefficients = updated
        if settled:
            break
    return coefficients / coefficients.sum()


class _Evaluator:
    """This worker's part: an engine for each network, and the loaders that feed them."""

    def __init__(self, world: World, evaluation: Evaluation) -> None:
        self.world, self.evaluation = world, evaluation
        self.dataset = open_prepared(evaluation.data)
        self.engines: list[SingleDevice | Pipeline] = []
        self.orders: list[Tensor | None] = []  # where the data set's classes are among a network's outputs
        self.inputs: list[tuple[int, str | None]] = []  # crop size and mean image of each network
        for network in evaluation.networks:
            engine = network.build_engine(world, evaluation.batch_size, evaluation.precision)
            self.engines.append(engine)
            self.orders.append(_class_order(network, self.dataset.classes, world.device))
            self.inputs.append((engine.stage.architecture.image_size, network.mean_image_for(self.dataset)))

    def label_scores(self, split: str) -> Iterator[Tensor]:
        """Batches of what :func:`fit_coefficients` takes, where the last stage is."""
        for labels, scores in self._scores(split, f"fitting on {split}"):
            own = [s.double().log_softmax(1).gather(1, labels.unsqueeze(1)) for s in scores]
            yield torch.cat(own, 1).cpu()

    def predictions(self, split: str, coefficients: Sequence[float]) -> Iterator[Predictions]:
        """The predictions of each batch, where the last stage is."""
        for labels, scores in self._scores(split, f"evaluating {split}"):
            mixed = mix(scores, coefficients)
            top = mixed.float().softmax(1).topk(min(TOP, mixed.shape[1]), 1)
            top1, top5 = misses(mixed, labels)
            losses = _losses(mixed, labels)
            members = torch.stack([kernels.cross_entropy(s, labels)[1] for s in scores])
            found = (labels, top1, top5, top.indices, top.values, losses, members)
            yield Predictions(*(tensor.cpu() for tensor in found))

    def _scores(self, split: str, title: str) -> Iterator[tuple[Tensor, list[Tensor]]]:
        """Labels and each network's scores, in the data set's order of classes, batch by batch."""
        evaluation, world = self.evaluation, self.world
        loaders = {
            (size, mean): open_loader(
                world, evaluation.data, mean, split, evaluation.batch_size, size, evaluation.views
            )
            for size, mean in set(self.inputs)
        }
        try:
            for batches in self._batches(loaders, title):
                scores = [self._classify(number, batches) for number in range(len(self.engines))]
                found = [s for s in scores if s is not None]
                if found:
                    labels = batches[self.inputs[0]].labels
                    assert labels is not None
                    yield labels.to(found[0].device), found
                _stop_if_told(world)
        finally:
            for loader in loaders.values():
                loader.close()

    def _batches(
        self, loaders: dict[tuple[int, str | None], Loader], title: str
    ) -> Iterator[dict[tuple[int, str | None], Batch]]:
        total = len(next(iter(loaders.values())))
        epochs = (loader.epoch(0) for loader in loaders.values())
        with batch_progress(title, total, shown=self.world.is_first) as advance:
            for batches in zip(*epochs, strict=True):
                yield dict(zip(loaders, batches, strict=True))
                advance()

    def _classify(self, number: int, batches: dict[tuple[int, str | None], Batch]) -> Tensor | None:
        scores = classify(self.engines[number], batches[self.inputs[number]], self.evaluation.views)
        order = self.orders[number]
        return scores if scores is None or order is None else scores[:, order]


def _class_order(network: TrainedNetwork, classes: Sequence[str], device: torch.device) -> Tensor | None:
    own = network.description.classes
    if tuple(classes) == own:
        return None
    places = {name: place for place, name in enumerate(own)}
    return torch.tensor([places[name] for name in classes], device=device)


def _losses(scores: Tensor, labels: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(scores.float(), labels, reduction="none").double()


def _stop_if_told(world: World) -> None:
    """All workers stop at the same batch."""
    told = world.sum(torch.tensor([float(world.signal_number)]))
    if told.item():
        raise Interrupted("interrupted; nothing was written", world.signal_number or signal.SIGINT)

"""TODO."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

import kernels
from fastalex.network.model import AlexNet, Stage


@dataclass(frozen=True)
class Replica:
    """This worker's place among those that hold the same blocks: the batch's rows are shared out over them.

    Args:
        index: which of them; its rows come after those of all lower ones.
        group: the process group of all of them, over which gradients are averaged.
    """

    index: int
    group: Any

    def wrap(self, stage: Stage) -> DistributedDataParallel:
        """The stage with its gradients averaged while backward runs. All replicas begin with the same weights."""
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", FutureWarning
            )  # torch 2.13 renames broadcast_buffers, 2.11 has no other name
            return DistributedDataParallel(
                stage, process_group=self.group, broadcast_buffers=False, init_sync=False, gradient_as_bucket_view=True
            )


class SingleDevice:
    """All blocks on one device; micro-batches bound the memory, as gradient accumulation does.

    Args:
        model: the network, which is moved to ``device``.
        batch_size: rows of every batch.
        micro_batches: in how many parts a batch is run.
    """

    is_first = is_last = True

    def __init__(self, model: AlexNet, device: torch.device, batch_size: int, micro_batches: int = 1) -> None:
        self.device = device
        self.batch_size = batch_size
        self.micro_batches = micro_batches
        self.stage = model.to(device).stage(model.architecture.block_names)
        self.stage.defer_weight_gradients()

    def train_step(self, images: Tensor | None, labels: Tensor | None, seed: int | Tensor) -> Tensor | None:
        """Accumulate the gradients of the mean loss over one batch.

        Args:
            images: batch x 3 x S x S; None where this worker does not hold the first stage.
            labels: int64, batch; None where this worker does not hold the last stage.
            seed: key of this step's dropout masks; a tensor where a CUDA graph is to read a new one in every replay.

        Returns:
            The batch's counts (:func:`kernels.cross_entropy`) where the last stage is, else None.
        """
        assert images is not None
        assert labels is not None
        self.stage.train()
        self.stage.begin_step()
        rows = self.batch_size // self.micro_batches
        counts: list[Tensor] = []
        images, labels = images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)
        for first_row in range(0, self.batch_size, rows):
            part = slice(first_row, first_row + rows)
            logits = self.stage(images[part], seed=seed, first_row=first_row)
            loss, counted = kernels.cross_entropy(logits, labels[part], scale=1 / self.batch_size)
            loss.backward()
            counts.append(counted)
        self.stage.finish_gradients()
        return _sum(counts)

    @torch.inference_mode()
    def logits(self, images: Tensor | None) -> Tensor | None:
        """Logits of one batch in evaluation mode (dropout off) where the last stage is, else None.

        Args:
            images: batch x 3 x S x S; None where this worker does not hold the first stage.

        Returns:
            batch x classes, fp32.
        """
        assert images is not None
        self.stage.eval()
        rows = self.batch_size // self.micro_batches
        images = images.to(self.device, non_blocking=True)
        return torch.cat([self.stage(part) for part in images.split(rows)])

    def watch(self, tell: Callable[[str, Tensor], None]) -> None:
        """From now on call ``tell(name, value)`` with every activation that :meth:`logits` computes here."""
        self.stage.watch = tell


class DataParallel(SingleDevice):
    """All blocks on each of several devices; every replica runs its rows of the batch.

    Args:
        batch_size: rows of this replica; its rows of the whole batch are those from ``replica.index * batch_size``.
    """

    def __init__(
        self, model: AlexNet, device: torch.device, batch_size: int, micro_batches: int, replica: Replica
    ) -> None:
        super().__init__(model, device, batch_size, micro_batches)
        self.stage.defer_weight_gradients(micro_batches)  # no later: their reduction takes the longest
        self._first_row = replica.index * batch_size
        self._parallel = replica.wrap(self.stage)

    def train_step(self, images: Tensor | None, labels: Tensor | None, seed: int | Tensor) -> Tensor | None:
        """As :meth:`SingleDevice.train_step`, on this replica's rows; gradients are those of the whole batch."""
        assert images is not None
        assert labels is not None
        self.stage.train()
        self.stage.begin_step()
        rows = self.batch_size // self.micro_batches
        counts: list[Tensor] = []
        images, labels = images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)
        for first in range(0, self.batch_size, rows):
            part = slice(first, first + rows)
            self._parallel.require_backward_grad_sync = part.stop == self.batch_size
            logits = self._parallel(images[part], seed=seed, first_row=self._first_row + first)
            loss, counted = kernels.cross_entropy(logits, labels[part], scale=1 / self.batch_size)
            loss.backward()
            counts.append(counted)
        return _sum(counts)


def _sum(counts: Sequence[Tensor]) -> Tensor:
    """Of the micro-batches' counts; with one there is nothing to launch."""
    return counts[0] if len(counts) == 1 else torch.stack(list(counts)).sum(0)

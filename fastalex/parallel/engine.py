"""Engines compute the gradients of one batch; the caller updates the weights.

All engines give the same gradients: a batch is cut into micro-batches, the loss of each is divided by the size of the
whole batch, and dropout masks depend on an image's row in the batch, not on the micro-batch or device that computes it.
"""

from __future__ import annotations

import abc
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import kernels
from fastalex.network.model import AlexNet, Stage
from fastalex.parallel.cuda_graphs import Record


@dataclass(frozen=True)
class Replica:
    """One of several workers that hold the same blocks and compute different rows of the batch.

    Args:
        index: of the replica; replica i computes the i-th part of the batch.
        group: process group of these workers, over which gradients are averaged.
    """

    index: int
    group: Any

    def wrap(self, module: nn.Module) -> DistributedDataParallel:
        """The module with gradients averaged during backward. All replicas must start from the same weights."""
        with warnings.catch_warnings():
            # torch 2.13 renames broadcast_buffers; torch 2.11 does not know the new name.
            warnings.simplefilter("ignore", FutureWarning)
            return DistributedDataParallel(
                module, process_group=self.group, broadcast_buffers=False, init_sync=False, gradient_as_bucket_view=True
            )


class Engine(abc.ABC):
    """Computes gradients and logits of batches on this worker.

    Attributes:
        device: where this worker computes.
        batch_size: images per step of this replica.
        micro_batches: parts that a batch is cut into.
        stage: the module that holds this worker's parameters.
        is_first, is_last: whether this worker runs the first or the last stage.
        captures_passes: what CUDA graphs can hold: True for single passes, False for the whole step.
    """

    device: torch.device
    batch_size: int
    micro_batches: int
    stage: Stage
    is_first: bool
    is_last: bool
    captures_passes = False

    @abc.abstractmethod
    def train_step(self, images: Tensor | None, labels: Tensor | None, seed: int | Tensor) -> Tensor | None:
        """Accumulate the gradients of the mean loss over one batch.

        Args:
            images: batch x 3 x S x S; None where this worker does not run the first stage.
            labels: int64, batch; None where this worker does not run the last stage.
            seed: key of this step's dropout masks; a tensor if a CUDA graph is to read a new one at every replay.

        Returns:
            The batch's counts (:func:`kernels.cross_entropy`) where the last stage runs, else None.
        """

    @abc.abstractmethod
    def logits(self, images: Tensor | None) -> Tensor | None:
        """Logits of one batch in evaluation mode, fp32, batch x classes; None where the last stage does not run.

        Args:
            images: batch x 3 x S x S; None where this worker does not run the first stage.
        """

    @abc.abstractmethod
    def watch(self, tell: Callable[[str, Tensor], None]) -> None:
        """Call ``tell(name, value)`` with every activation that :meth:`logits` computes on this worker."""

    @abc.abstractmethod
    def capture_obstacle(self, requested: bool | None) -> str | None:
        """Why training steps cannot run from CUDA graphs, in one line; None if they can.

        Args:
            requested: what the user asked for; None leaves the choice to the engine.
        """

    def capture(self, record: Record) -> None:
        """Capture the passes of a training step; only where :attr:`captures_passes`."""
        raise RuntimeError(f"{type(self).__name__} does not capture single passes")


def common_capture_obstacle(device: torch.device, requested: bool | None, *, replicated: bool) -> str | None:
    """The obstacles to CUDA graphs that all engines share."""
    if device.type != "cuda":
        return "CUDA graphs are off: the device is a CPU"
    if requested is False:
        return "CUDA graphs are off, as requested"
    if replicated:
        return "CUDA graphs are off: replicas exchange gradients during backward"
    return None


class WholeNetwork(Engine):
    """The whole network on one device, alone or as one of several replicas.

    Micro-batches bound the memory, as gradient accumulation does.

    Args:
        model: the network; it moves to ``device``.
        batch_size: images per step of this replica.
        replica: which replica this is; None if there is only one.
    """

    is_first = is_last = True

    def __init__(
        self,
        model: AlexNet,
        device: torch.device,
        batch_size: int,
        micro_batches: int = 1,
        replica: Replica | None = None,
    ) -> None:
        self.device = device
        self.batch_size = batch_size
        self.micro_batches = micro_batches
        self.stage = model.to(device).stage(model.architecture.block_names)
        # Replicas average gradients during the last backward pass, so none may be left for later.
        self.stage.configure_deferral(micro_batches if replica else None, convolutions=False)
        self._first_row = replica.index * batch_size if replica else 0
        self._replicated = replica.wrap(self.stage) if replica else None

    @property
    def is_replicated(self) -> bool:
        """Whether this is one of several replicas."""
        return self._replicated is not None

    def train_step(self, images: Tensor | None, labels: Tensor | None, seed: int | Tensor) -> Tensor | None:
        """See :meth:`Engine.train_step`."""
        assert images is not None
        assert labels is not None
        self.stage.train()
        self.stage.begin_step()
        images, labels = images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)
        rows = self.batch_size // self.micro_batches
        counts: list[Tensor] = []
        for first in range(0, self.batch_size, rows):
            part = slice(first, first + rows)
            if self._replicated is not None:
                self._replicated.require_backward_grad_sync = part.stop == self.batch_size
            module = self.stage if self._replicated is None else self._replicated
            logits = module(images[part], seed=seed, first_row=self._first_row + first)
            loss, counted = kernels.cross_entropy(logits, labels[part], scale=1 / self.batch_size)
            loss.backward()
            counts.append(counted)
        self.stage.finish_gradients()
        return sum_counts(counts)

    @torch.inference_mode()
    def logits(self, images: Tensor | None) -> Tensor | None:
        """See :meth:`Engine.logits`."""
        assert images is not None
        self.stage.eval()
        rows = self.batch_size // self.micro_batches
        images = images.to(self.device, non_blocking=True)
        parts = [self.stage(part) for part in images.split(rows)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def watch(self, tell: Callable[[str, Tensor], None]) -> None:
        """See :meth:`Engine.watch`."""
        self.stage.watch = tell

    def capture_obstacle(self, requested: bool | None) -> str | None:
        """See :meth:`Engine.capture_obstacle`."""
        return common_capture_obstacle(self.device, requested, replicated=self.is_replicated)


def sum_counts(counts: Sequence[Tensor]) -> Tensor:
    """The sum of the micro-batches' counts, without a kernel launch if there is only one."""
    return counts[0] if len(counts) == 1 else torch.stack(list(counts)).sum(0)

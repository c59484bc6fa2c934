"""One training step: on one device, or over stages with ``torch.distributed.pipelining``.

Both engines offer the same three things: :meth:`train_step` (forward, loss and backward of one batch; the caller
updates), :meth:`logits` (evaluation), and ``stage`` (the module whose parameters live here). Both give the same
gradients: a batch is cut into micro-batches, the loss of each is divided by the whole batch, and dropout masks follow
an image's row in the batch, not the micro-batch or device that it lands on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe
from torch.distributed.pipelining.schedules import PipelineScheduleSingle

from fastalex.architecture import Architecture, block_shapes
from fastalex.errors import ConfigurationError
from fastalex.metrics import count, summed_loss
from fastalex.model import AlexNet

ScheduleName = Literal["1f1b", "gpipe"]
SCHEDULES: dict[ScheduleName, type[PipelineScheduleSingle]] = {"1f1b": Schedule1F1B, "gpipe": ScheduleGPipe}


def check_micro_batches(batch_size: int, micro_batches: int, stages: int, schedule: ScheduleName) -> None:
    """Refuse what the engines cannot run.

    Raises:
        ConfigurationError: micro-batches do not divide the batch, or are fewer than 1F1B needs.
    """
    if micro_batches < 1:
        raise ConfigurationError(f"--micro-batches is {micro_batches}; at least 1 is wanted")
    if batch_size % micro_batches:
        divisors = [m for m in range(1, min(batch_size, 64) + 1) if batch_size % m == 0]
        raise ConfigurationError(
            f"{micro_batches} micro-batches do not divide a batch of {batch_size}; choose --micro-batches from "
            f"{', '.join(map(str, divisors))}"
        )
    if schedule == "1f1b" and micro_batches < stages:
        raise ConfigurationError(
            f"the 1F1B schedule needs at least as many micro-batches as stages: {micro_batches} micro-batches, "
            f"{stages} stages; raise --micro-batches or choose --schedule gpipe"
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
            The batch's counts (:func:`fastalex.metrics.count`) where the last stage is, else None.
        """
        assert images is not None
        assert labels is not None
        self.stage.train()
        self.stage.drop_kept_factors()
        rows = self.batch_size // self.micro_batches
        counts = torch.zeros(4, dtype=torch.float64, device=self.device)
        images, labels = images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)
        for first_row in range(0, self.batch_size, rows):
            part = slice(first_row, first_row + rows)
            logits = self.stage(images[part], seed=seed, first_row=first_row)
            loss = summed_loss(logits, labels[part])
            (loss / self.batch_size).backward()
            counts += count(logits.detach(), labels[part], loss.detach())
        self.stage.finish_gradients()
        return counts

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


class Pipeline:
    """One of several stages, each in a worker process with a device of its own.

    Args:
        model: the whole network (same weights on every worker); the blocks of this rank's stage move to ``device``.
        stages: block names of every stage, in order; stage i belongs to rank i of the default process group.
        rank: this worker's stage.
        schedule: ``1f1b`` (a micro-batch's backward as soon as possible; activations of at most `stages` micro-batches
            are alive) or ``gpipe`` (all forwards, then all backwards).
    """

    def __init__(
        self,
        model: AlexNet,
        stages: Sequence[Sequence[str]],
        rank: int,
        device: torch.device,
        batch_size: int,
        micro_batches: int,
        schedule: ScheduleName = "1f1b",
    ) -> None:
        check_micro_batches(batch_size, micro_batches, len(stages), schedule)
        self.device = device
        self.batch_size = batch_size
        self.micro_batches = micro_batches
        self.is_first = rank == 0
        self.is_last = rank == len(stages) - 1
        self.stage = model.stage(stages[rank]).to(device)
        self.stage.defer_weight_gradients()  # to the end, when the stages before are still busy
        self._counts: list[Tensor] = []
        self._first_rows = torch.arange(0, batch_size, batch_size // micro_batches, device=device)
        # The loss's gradient is scaled here, never by a schedule: its own scaling divides whatever gradients there are,
        # those of earlier steps as well, and even when it only evaluates.
        self._train = SCHEDULES[schedule](
            self._pipeline_stage(stages, rank, training=True), micro_batches, loss_fn=self._loss, scale_grads=False
        )
        self._evaluate = ScheduleGPipe(
            self._pipeline_stage(stages, rank, training=False), micro_batches, scale_grads=False
        )

    def train_step(self, images: Tensor | None, labels: Tensor | None, seed: int | Tensor) -> Tensor | None:
        """As :meth:`SingleDevice.train_step`."""
        self.stage.train()
        self.stage.drop_kept_factors()
        self._counts.clear()
        inputs = () if images is None else (images.to(self.device, non_blocking=True),)
        target = None if labels is None else labels.to(self.device, non_blocking=True)
        # The schedule cuts tensor keyword arguments into micro-batches with the images: one row number each.
        self._train.step(*inputs, target=target, return_outputs=False, seed=seed, first_row=self._first_rows)
        self.stage.finish_gradients()
        return torch.stack(self._counts).sum(0) if self.is_last else None

    @torch.no_grad()  # the schedule's own eval() leaves gradients on, and with them every micro-batch's activations
    def logits(self, images: Tensor | None) -> Tensor | None:
        """As :meth:`SingleDevice.logits`."""
        self.stage.eval()
        inputs = () if images is None else (images.to(self.device, non_blocking=True),)
        return self._evaluate.eval(*inputs)

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        loss = summed_loss(logits, labels)
        self._counts.append(count(logits.detach(), labels, loss.detach()))
        return loss / self.batch_size

    def _pipeline_stage(self, stages: Sequence[Sequence[str]], rank: int, *, training: bool) -> PipelineStage:
        # Explicit shapes on both sides. Without them the engine runs a forward pass of its own to find out,
        # differently in each torch release; and nothing checks them, so they are computed from the architecture and
        # nowhere written by hand. A pair of stage and schedule keeps its buffers' shape for life: hence one for
        # training, one for evaluation.
        architecture = self.stage.architecture
        rows = self.batch_size // self.micro_batches
        dtype = self.stage.compute_dtype
        inputs = _boundary(architecture, stages, rank, rows, dtype, training and not self.is_first)
        outputs = _boundary(architecture, stages, rank + 1, rows, torch.float32 if self.is_last else dtype, training)
        return PipelineStage(self.stage, rank, len(stages), self.device, input_args=(inputs,), output_args=(outputs,))


def _boundary(
    architecture: Architecture, stages: Sequence[Sequence[str]], rank: int, rows: int, dtype: torch.dtype, grad: bool
) -> Tensor:
    """A meta tensor like the one that enters stage ``rank`` for one micro-batch."""
    if rank == 0:
        size = architecture.image_size
        return torch.empty(rows, 3, size, size, device="meta")
    shapes = {shape.name: shape.output for shape in block_shapes(architecture)}
    return torch.empty(rows, *shapes[stages[rank - 1][-1]], dtype=dtype, device="meta", requires_grad=grad)

"""One training step as the trainer calls it: forward, loss, backward and update, with what keeps it from waiting.

The same calls on every device. On one GPU the step is captured in CUDA graphs, because its hundred launches take the
host longer than the GPU takes to compute them; over stages the passes are, if that is asked for. What differs from step
to step is read from the device's memory: images, labels, the key of the dropout masks and the learning rates.

torch.compile has no part in this: what it would fuse is fused by hand in :mod:`kernels`, the launches that it would
save are in the graphs, and it would have to compile anew for every architecture, batch size and cut.
``bench/train_step.py`` times it beside this step.

Nothing here waits for the device. Counts stay on it; :class:`DelayedReadback` copies them while later steps run.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastalex.parallel.engine import Engine
from fastalex.recipes.optimizer import KrizhevskySGD
from fastalex.training.config import NonFinitePolicy


class TrainingStep:
    """Forward, loss, backward and update of one batch.

    Args:
        engine: computes the gradients.
        optimizer: updates the engine's parameters.
        on_non_finite: ``stop`` leaves it to the caller to look at the losses; ``skip`` leaves weights and velocities as
            they are in steps whose loss or gradients are not finite.
        agree: replaces a tensor of one element, in place, by its minimum over all workers; wanted for ``skip`` with
            several stages.

    Attributes:
        skipped: how many steps were skipped: int64, on the device.
        first_bad: the first step, counted from 1, whose loss was not finite, or 0: int64, on the device. Known where
            the last stage is.
    """

    def __init__(
        self,
        engine: Engine,
        optimizer: KrizhevskySGD,
        on_non_finite: NonFinitePolicy = "stop",
        agree: Callable[[Tensor], object] | None = None,
    ) -> None:
        self.engine, self.optimizer = engine, optimizer
        self.on_non_finite, self.agree = on_non_finite, agree
        self.made, self.skipped, self.first_bad = (
            torch.zeros((), dtype=torch.int64, device=engine.device) for _ in range(3)
        )

    def __call__(self, images: Tensor | None, labels: Tensor | None, seed: int | Tensor) -> Tensor | None:
        """Make one step; see :meth:`fastalex.parallel.engine.SingleDevice.train_step` for the arguments.

        Returns:
            The batch's counts, on the device, where the last stage is, else None; zeros for a skipped step. They are
            overwritten by the next call.
        """
        counts, enabled = self.compute_gradients(images, labels, seed)
        self.optimizer.step(enabled=enabled)
        self.optimizer.zero_grad()
        return counts

    def compute_gradients(
        self, images: Tensor | None, labels: Tensor | None, seed: int | Tensor
    ) -> tuple[Tensor | None, Tensor | None]:
        """The step up to its update: the counts, and whether the update is to be made (None: it is)."""
        counts = self.engine.train_step(images, labels, seed)
        self.made += 1
        if counts is not None:
            is_first_bad = (self.first_bad == 0) & ~torch.isfinite(counts[0])
            self.first_bad += self.made * is_first_bad
        if self.on_non_finite == "stop":
            return counts, None
        enabled = self._all_finite(counts)
        if self.agree is not None:
            self.agree(enabled)
        self.skipped += 1 - enabled.to(torch.int64)
        if counts is not None:
            counts = torch.where(enabled > 0, counts, torch.zeros_like(counts))
        return counts, enabled

    def _all_finite(self, counts: Tensor | None) -> Tensor:
        """1 if this worker's loss and gradients are finite, else 0: float64, one element, on the device."""
        gradients = [p.grad for p in self.engine.stage.parameters() if p.grad is not None]
        sums = [norm.double() for norm in torch._foreach_norm(gradients)]
        if counts is not None:
            sums.append(counts[0])
        return torch.isfinite(torch.stack(sums)).all().double()

"""TODO."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from fastalex.errors import ConfigurationError

Parameters = Literal["weights", "biases", "all"]


@dataclass(frozen=True)
class Change:
    """What a new epoch brings.

    Args:
        epoch: the first epoch (from 0) that it holds for.
        lr_scale: learning rate as a multiple of the initial one; 0 freezes: no update, no decay, no momentum. None
            leaves learning rates alone.
        layers: the blocks whose learning rate it sets; empty means all.
        parameters: which of their parameters.
        color_noise: the colour noise from now on; None leaves it.
    """

    epoch: int
    lr_scale: float | None = None
    layers: tuple[str, ...] = ()
    parameters: Parameters = "all"
    color_noise: float | None = None


@dataclass(frozen=True)
class Plateau:
    """Multiply all learning rates by ``factor`` once the top-1 validation error stalls for ``patience`` epochs.

    ``times`` limits how often.
    """

    factor: float = 0.1
    patience: int = 5
    times: int = 3


@dataclass(frozen=True)
class Recipe:
    """Everything about a training run that is neither the network, nor the data, nor the machine.

    Args:
        lr: learning rate of the weights at the start.
        bias_lr_multiplier: the biases' learning rate as a multiple of the weights'.
        weight_decay: on weights only; biases have none.
        crops: whether training images are cropped at random places; otherwise at the centre.
        flip: whether training images are mirrored half the time.
        crops_shared_by: so many consecutive images of an epoch's order share one crop place and one flip, as 32 did in
            2012's source; with 1 each image has its own.
        color_noise: standard deviations of PCA colour noise; 0 switches it off.
        changes: in order of epochs.
        plateau: None, or when to divide the learning rate.
        warmup_epochs: for how long all learning rates rise on a straight line to what they would be.
        warmup_start: the share of it that they rise from.
        lars: None, or the trust coefficient of layer-wise adaptive rates (:mod:`fastalex.recipes.optimizer`).
    """

    name: str
    epochs: int
    batch_size: int
    lr: float
    momentum: float = 0.9
    weight_decay: float = 5e-4
    bias_lr_multiplier: float = 2.0
    crops: bool = True
    flip: bool = True
    crops_shared_by: int = 1
    color_noise: float = 0.1
    changes: tuple[Change, ...] = ()
    plateau: Plateau | None = None
    warmup_epochs: float = 0.0
    warmup_start: float = 0.0
    lars: float | None = None

    def __post_init__(self) -> None:
        for name, minimum in {
            "epochs": 1, "batch_size": 1, "lr": 0, "momentum": 0, "weight_decay": 0, "color_noise": 0,
            "crops_shared_by": 1,
        }.items():  # fmt: skip
            value = getattr(self, name)
            if not value >= minimum:
                raise ConfigurationError(f"{name} is {value}; at least {minimum} is wanted")
        if self.momentum >= 1:
            raise ConfigurationError(f"momentum is {self.momentum}; less than 1 is wanted")
        if not self.warmup_epochs >= 0:
            raise ConfigurationError(f"warmup_epochs is {self.warmup_epochs}; at least 0 is wanted")
        if self.lars is not None and not self.lars > 0:
            raise ConfigurationError(f"lars is {self.lars}; a positive trust coefficient is wanted, such as 0.001")

    def with_scaled_lr(self, batch_size: int) -> Recipe:
        """For another batch size: a learning rate that is as many times higher, reached from this one by warm-up.

        Source: Goyal et al. 2017, "Accurate, Large Minibatch SGD".
        """
        factor = batch_size / self.batch_size
        return replace(self, batch_size=batch_size, lr=self.lr * factor, warmup_start=min(1.0, 1 / factor))

    def warmup_at(self, epochs: float) -> float:
        """The share of their learning rates that all parameters have after so many epochs of training."""
        if epochs >= self.warmup_epochs:
            return 1.0
        return self.warmup_start + (1 - self.warmup_start) * epochs / self.warmup_epochs

    def color_noise_at(self, epoch: int) -> float:
        """Colour noise in an epoch, in standard deviations."""
        noise = self.color_noise
        for change in self.changes:
            if change.epoch <= epoch and change.color_noise is not None:
                noise = change.color_noise
        return noise

    def lr_scale_at(self, epoch: int, layer: str, parameter: Literal["weights", "biases"]) -> float:
        """The learning rate of one parameter in an epoch, as a multiple of its initial one (without the plateau's)."""
        scale = 1.0
        for change in self.changes:
            concerned = (not change.layers or layer in change.layers) and change.parameters in (parameter, "all")
            if change.epoch <= epoch and change.lr_scale is not None and concerned:
                scale = change.lr_scale
        return scale

    def lr_summary(self, layer: str) -> str:
        """The learning rate of a layer's weights in words, from first to last; epochs count from 1 here."""
        rates = [f"lr {self.lr:g}"]
        scale = self.lr_scale_at(0, layer, "weights")
        for epoch in sorted({change.epoch for change in self.changes}):
            before, scale = scale, self.lr_scale_at(epoch, layer, "weights")
            if scale != before:
                rates.append(f"{self.lr * scale:.3g} from epoch {epoch + 1}")
        if self.plateau is not None:
            rates.append(
                f"times {self.plateau.factor:g} after {self.plateau.patience} epochs without a better top-1 error, up "
                f"to {self.plateau.times} times"
            )
        return ", ".join(rates)

    def with_epochs(self, epochs: int) -> Recipe:
        """The same recipe stretched or shrunk to ``epochs``, its changes at the same fractions of the run.

        A change neither moves to the first epoch nor out of the run; in a run of one epoch nothing changes.
        """

        def moved(change: Change) -> Change:
            return replace(change, epoch=max(1, min(round(change.epoch * epochs / self.epochs), epochs - 1)))

        return replace(self, epochs=epochs, changes=tuple(moved(change) for change in self.changes))


def plateau_divisions(errors: Sequence[float], plateau: Plateau) -> int:
    """How often ``plateau`` has divided the learning rate after these validation errors, one an epoch.

    A pure function of the history, so that a resumed run needs nothing but the errors it has seen.
    """
    divisions, best, waited = 0, float("inf"), 0
    for error in errors:
        if error < best:
            best, waited = error, 0
            continue
        waited += 1
        if waited >= plateau.patience and divisions < plateau.times:
            divisions, waited = divisions + 1, 0
    return divisions

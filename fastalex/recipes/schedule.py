"""A recipe as plain data: everything about a training run that is neither network, data nor machine.

A :class:`Recipe` holds initial values and a list of :class:`Change` entries that take effect when an epoch begins,
which is how the 2012 runs were steered: learning rates dropped by hand, conv1 slowed and then frozen, colour noise
switched off for the last quarter. Alternatively a :class:`Plateau` divides the learning rate when the validation error
stalls, as the paper describes.

Learning rates of changes are multiples of the recipe's ``lr``, and their epochs scale with the recipe's length, so a
recipe keeps its shape when ``lr`` or ``epochs`` change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from fastalex.errors import ConfigurationError

Parameters = Literal["weights", "biases", "all"]


@dataclass(frozen=True)
class Change:
    """New values that take effect when an epoch begins.

    Args:
        epoch: the first epoch that it applies to, counted from 0.
        lr_scale: learning rate as a multiple of the initial one. 0 freezes: no update, no decay, no momentum. None
            changes no learning rate.
        layers: blocks whose learning rate changes; empty means all.
        parameters: which of their parameters change.
        color_noise: new standard deviation of the colour noise; None does not change it.
    """

    epoch: int
    lr_scale: float | None = None
    layers: tuple[str, ...] = ()
    parameters: Parameters = "all"
    color_noise: float | None = None


@dataclass(frozen=True)
class Plateau:
    """Multiply all learning rates by ``factor`` when the top-1 validation error stalls for ``patience`` epochs.

    This happens at most ``times`` times.
    """

    factor: float = 0.1
    patience: int = 5
    times: int = 3


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters of a training run and their changes over the epochs.

    Args:
        lr: initial learning rate of the weights.
        bias_lr_multiplier: learning rate of the biases as a multiple of the weights'.
        weight_decay: applied to weights only.
        crops: crop training images at random offsets; False crops at the centre.
        flip: mirror training images with probability 1/2.
        crops_shared_by: number of consecutive images in an epoch's order that share one crop offset and one flip: 32 in
            the 2012 source; 1 gives each image its own.
        color_noise: standard deviation of the PCA colour noise; 0 disables it.
        changes: in order of epochs.
        plateau: when to divide the learning rate; None never does.
        warmup_epochs: epochs over which all learning rates rise linearly to their normal values.
        warmup_start: fraction of the normal learning rates at which the warm-up starts.
        lars: trust coefficient of layer-wise adaptive rates (:mod:`fastalex.recipes.optimizer`); None disables them.

    Raises:
        ConfigurationError: a value is out of range.
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
                raise ConfigurationError(f"{name} must be at least {minimum}, got {value}")
        if self.momentum >= 1:
            raise ConfigurationError(f"momentum must be less than 1, got {self.momentum}")
        if not self.warmup_epochs >= 0:
            raise ConfigurationError(f"warmup_epochs must be at least 0, got {self.warmup_epochs}")
        if self.lars is not None and not self.lars > 0:
            raise ConfigurationError(f"lars must be a positive trust coefficient such as 0.001, got {self.lars}")

    def with_scaled_lr(self, batch_size: int) -> Recipe:
        """The recipe for another batch size: a learning rate scaled in proportion, and a warm-up from the old one.

        Source: Goyal et al. 2017, "Accurate, Large Minibatch SGD".
        """
        factor = batch_size / self.batch_size
        return replace(self, batch_size=batch_size, lr=self.lr * factor, warmup_start=min(1.0, 1 / factor))

    def warmup_at(self, epochs: float) -> float:
        """Warm-up factor of all learning rates after a number of epochs of training, at most 1."""
        if epochs >= self.warmup_epochs:
            return 1.0
        return self.warmup_start + (1 - self.warmup_start) * epochs / self.warmup_epochs

    def color_noise_at(self, epoch: int) -> float:
        """Standard deviation of the colour noise in an epoch."""
        noise = self.color_noise
        for change in self.changes:
            if change.epoch <= epoch and change.color_noise is not None:
                noise = change.color_noise
        return noise

    def lr_scale_at(self, epoch: int, layer: str, parameter: Literal["weights", "biases"]) -> float:
        """Learning rate of a parameter in an epoch, as a multiple of its initial one and before plateau divisions."""
        scale = 1.0
        for change in self.changes:
            applies = (not change.layers or layer in change.layers) and change.parameters in (parameter, "all")
            if change.epoch <= epoch and change.lr_scale is not None and applies:
                scale = change.lr_scale
        return scale

    def lr_summary(self, layer: str) -> str:
        """Learning rates of a layer's weights over the run, as text; epochs are counted from 1 here."""
        rates = [f"lr {self.lr:g}"]
        scale = self.lr_scale_at(0, layer, "weights")
        for epoch in sorted({change.epoch for change in self.changes if change.epoch < self.epochs}):
            before, scale = scale, self.lr_scale_at(epoch, layer, "weights")
            if scale != before:
                rates.append(f"{self.lr * scale:.3g} from epoch {epoch + 1}")
        if self.plateau is not None:
            rates.append(
                f"times {self.plateau.factor:g} after {self.plateau.patience} epochs without a better top-1 error, at "
                f"most {self.plateau.times} times"
            )
        return ", ".join(rates)

    def with_epochs(self, epochs: int) -> Recipe:
        """The recipe stretched or shrunk to ``epochs``, with its changes at the same fractions of the run.

        Changes stay between the second and the last epoch; a run of one epoch reaches none of them.
        """

        def move(change: Change) -> Change:
            return replace(change, epoch=max(1, min(round(change.epoch * epochs / self.epochs), epochs - 1)))

        return replace(self, epochs=epochs, changes=tuple(move(change) for change in self.changes))


def plateau_divisions(errors: Sequence[float], plateau: Plateau) -> int:
    """How often ``plateau`` has divided the learning rate after these validation errors, one per epoch.

    A pure function of the history: resuming a run needs only its previous errors.
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

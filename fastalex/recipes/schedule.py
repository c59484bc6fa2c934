"""A recipe as plain data: everything about a training run that is neither network, data nor machine.

A :class:`Recipe` holds initial values and a list of :class:`Change` entries that take effect when an epoch begins,
which is how the 2012 runs were steered: learning rates dropped by hand, conv1 slowed and then frozen, colour noise
switched off for the last quarter. Alternatively a :class:`Plateau` divides the learning rate when the validation error
stalls, as the paper describes.

Epochs count from 1, as in the 2012 source: what changes from epoch 25 on changes after 24 finished epochs.

Learning rates of changes are multiples of the recipe's ``lr``, and their epochs scale with the recipe's length, so a
recipe keeps its shape when ``lr`` or ``epochs`` change.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from fastalex.errors import ConfigurationError

Parameters = Literal["weights", "biases", "all"]
Order = Literal["fixed", "shuffled"]

_COASTING = 10.0
"""A velocity fades over 1 / (1 - momentum) steps. In epochs of fewer than ten times that, the fading shows."""


@dataclass(frozen=True)
class Change:
    """New values that take effect when an epoch begins.

    Args:
        from_epoch: the first epoch that it applies to, counted from 1.
        lr_scale: learning rate as a multiple of the initial one. 0 freezes: no update, no decay, no momentum. None
            changes no learning rate.
        layers: blocks whose learning rate changes; empty means all.
        parameters: which of their parameters change.
        color_noise: new standard deviation of the colour noise; None does not change it.
    """

    from_epoch: int
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
        weight_decay: applied to weights, and to biases with ``decay_biases``.
        decay_biases: whether weight decay applies to biases, too, as in PyTorch.
        rescale_velocity: whether a velocity follows a change of the learning rate at once, as in PyTorch, where the
            rate stands outside the velocity. In the 2012 update rule the earlier, larger updates fade instead.
        order: of the training images. ``shuffled`` draws a new order for every epoch. ``fixed`` draws one, which all
            epochs repeat, as in 2012: the same images share a batch, and a crop, during the whole run.
        crops: crop training images at random offsets; False crops at the centre.
        resized_crops: crop a random part of 8 to 100 % of the area with a random aspect ratio, and resize it, instead
            of cropping at a random offset.
        channel_means: subtract the mean of each colour channel instead of the mean image.
        flip: mirror training images with probability 1/2.
        crops_shared_by: number of consecutive images in an epoch's order that share one crop and one flip: 32 in the
            2012 source; 1 gives each image its own. Crops and flips are drawn anew in every epoch.
        color_noise: standard deviation of the PCA colour noise; 0 disables it.
        changes: in order of epochs.
        plateau: when to divide the learning rate; None never does.
        warmup_epochs: epochs over which all learning rates rise linearly to their normal values.
        warmup_start: fraction of the normal learning rates at which the warm-up starts.
        lars: trust coefficient of layer-wise adaptive rates (:mod:`fastalex.recipes.optimizer`); None disables them.
        least_steps: where ``epochs`` make fewer updates than this, :meth:`for_data` adds epochs.
        least_steps_per_rate: :meth:`for_data` leaves out drops of the learning rate before or after which a rate would
            hold for fewer updates than this; 0 leaves out none.
        drops_left_out: how many it has left out.

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
    decay_biases: bool = False
    rescale_velocity: bool = False
    order: Order = "shuffled"
    crops: bool = True
    resized_crops: bool = False
    channel_means: bool = False
    flip: bool = True
    crops_shared_by: int = 1
    color_noise: float = 0.1
    changes: tuple[Change, ...] = ()
    plateau: Plateau | None = None
    warmup_epochs: float = 0.0
    warmup_start: float = 0.0
    lars: float | None = None
    least_steps: int = 0
    least_steps_per_rate: int = 0
    drops_left_out: int = 0

    def __post_init__(self) -> None:
        for name, minimum in {
            "epochs": 1, "batch_size": 1, "lr": 0, "momentum": 0, "weight_decay": 0, "color_noise": 0,
            "crops_shared_by": 1, "least_steps": 0, "least_steps_per_rate": 0,
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
        if self.resized_crops and not self.crops:
            raise ConfigurationError("resized crops are random crops: switch both on, or resized crops off")

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
        """Standard deviation of the colour noise in an epoch, counted from 1."""
        noise = self.color_noise
        for change in self.changes:
            if change.from_epoch <= epoch and change.color_noise is not None:
                noise = change.color_noise
        return noise

    def lr_scale_at(self, epoch: int, layer: str, parameter: Literal["weights", "biases"]) -> float:
        """Learning rate of a parameter as a multiple of its initial one, before plateau divisions.

        Args:
            epoch: counted from 1.
        """
        scale = 1.0
        for change in self.changes:
            applies = (not change.layers or layer in change.layers) and change.parameters in (parameter, "all")
            if change.from_epoch <= epoch and change.lr_scale is not None and applies:
                scale = change.lr_scale
        return scale

    def lr_summary(self, layer: str) -> str:
        """Learning rates of a layer's weights over the run, as text."""
        scale = self.lr_scale_at(1, layer, "weights")
        rates = [f"lr {self.lr * scale:g}"]
        for epoch in sorted({change.from_epoch for change in self.changes if change.from_epoch <= self.epochs}):
            before, scale = scale, self.lr_scale_at(epoch, layer, "weights")
            if scale != before:
                rates.append(f"{self.lr * scale:.3g} from epoch {epoch}")
        if self.plateau is not None:
            rates.append(
                f"times {self.plateau.factor:g} after {self.plateau.patience} epochs without a better top-1 error, at "
                f"most {self.plateau.times} times"
            )
        if self.drops_left_out:
            drops = "a drop" if self.drops_left_out == 1 else f"{self.drops_left_out} drops"
            rates.append(f"{drops} left out because the run is so short")
        return ", ".join(rates)

    def with_epochs(self, epochs: int) -> Recipe:
        """The recipe stretched or shrunk to ``epochs``, with its changes at the same fractions of the run.

        Changes stay between the second and the last epoch; a run of one epoch reaches none of them.
        """

        def move(change: Change) -> Change:
            finished = round((change.from_epoch - 1) * epochs / self.epochs)
            return replace(change, from_epoch=1 + max(1, min(finished, epochs - 1)))

        return replace(self, epochs=epochs, changes=tuple(move(change) for change in self.changes))

    def for_data(self, images: int, epochs: int | None = None) -> Recipe:
        """The recipe for a number of training images.

        Args:
            epochs: length of the run; None takes the recipe's, or as many as ``least_steps`` need.
        """
        steps = max(1, images // self.batch_size)
        if epochs is None:
            epochs = max(self.epochs, math.ceil(self.least_steps / steps))
        recipe = self.with_epochs(epochs)

        # A drop is made if the rates before and after it hold for long enough; after the first that is not, none is.
        starts = [1, *(change.from_epoch for change in recipe.changes)]
        lengths = [min(end - start, epochs + 1 - end) * steps for start, end in itertools.pairwise(starts)]
        made = len(list(itertools.takewhile(lambda length: length >= self.least_steps_per_rate, lengths)))
        return replace(recipe, changes=recipe.changes[:made], drops_left_out=len(lengths) - made)

    def coasting_note(self, steps_per_epoch: int) -> str | None:
        """A note on runs whose epochs are so short that the fading of old velocities takes much of one; else None."""
        drops = self.plateau is not None or any(change.lr_scale is not None for change in self.changes)
        fading = 1 / (1 - self.momentum)
        if self.rescale_velocity or not drops or steps_per_epoch >= round(_COASTING * fading):
            return None
        return (
            f"note: an epoch has only {steps_per_epoch} steps, and after a drop of the learning rate earlier updates "
            f"still move the weights for some {2 * fading:.0f} steps, as in 2012; the recipe small drops at once"
        )


def epochs_in_words(count: int) -> str:
    """``1 epoch``, ``2 epochs``."""
    return "1 epoch" if count == 1 else f"{count} epochs"


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

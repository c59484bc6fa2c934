"""How a network is trained: plain data, and the named recipes.

A recipe is a starting point and a list of :class:`Change` that take effect when an epoch begins, because that is how
the 2012 runs were steered: learning rates dropped by hand, conv1 slowed and then frozen, colour noise switched off for
the last quarter. Or it has a :class:`Plateau`, which divides the learning rate when validation stalls, as the paper
says.

Learning rates are written as multiples of the recipe's ``lr``, and epochs scale with its length, so a recipe keeps its
shape when a user asks for another ``--lr`` or ``--epochs``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
        flip: whether training images are mirrored half the time.
        color_noise: standard deviations of PCA colour noise; 0 switches it off.
        changes: in order of epochs.
        plateau: None, or when to divide the learning rate.
    """

    name: str
    epochs: int
    batch_size: int
    lr: float
    momentum: float = 0.9
    weight_decay: float = 5e-4
    bias_lr_multiplier: float = 2.0
    flip: bool = True
    color_noise: float = 0.1
    changes: tuple[Change, ...] = ()
    plateau: Plateau | None = None

    def __post_init__(self) -> None:
        for name, minimum in (("epochs", 1), ("batch_size", 1), ("lr", 0), ("momentum", 0), ("weight_decay", 0)):
            value = getattr(self, name)
            if not value >= minimum:
                raise ConfigurationError(f"{name} is {value}; at least {minimum} is wanted")
        if self.momentum >= 1:
            raise ConfigurationError(f"momentum is {self.momentum}; less than 1 is wanted")

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


# --- the named recipes ------------------------------------------------------------------------------------------------


def krizhevsky() -> Recipe:
    """What configuration 145 did (its saved options): biases keep their rate, conv1 slows at 67 and freezes at 72."""
    return Recipe(
        name="krizhevsky",
        epochs=91,
        batch_size=128,
        lr=0.01,
        changes=(
            Change(25, 1e-1, parameters="weights"),
            Change(51, 1e-2, parameters="weights"),
            Change(67, 1e-3, layers=("conv1",), parameters="weights", color_noise=0.0),
            Change(72, 0.0, layers=("conv1",)),
            Change(
                79,
                1e-3,
                layers=("conv2", "conv3", "conv4", "conv5", "conv6", "fc6", "fc7", "fc8"),
                parameters="weights",
            ),
        ),
    )


def paper() -> Recipe:
    """The paper's text: equal rates for all layers, divided by 10 three times when the validation error stalls."""
    return Recipe(
        name="paper", epochs=90, batch_size=128, lr=0.01, bias_lr_multiplier=1.0, plateau=Plateau(patience=5, times=3)
    )


def small() -> Recipe:
    """For sets of hundreds to tens of thousands of images: small batches, a lower rate, two drops near the end."""
    return Recipe(
        name="small",
        epochs=20,
        batch_size=32,
        lr=0.002,
        changes=(Change(14, 1e-1), Change(18, 1e-2, color_noise=0.0)),
    )


def digits() -> Recipe:
    """A few minutes on the bundled digits. No flips: a mirrored 2 is no 2."""
    return Recipe(name="digits", epochs=5, batch_size=32, lr=0.002, flip=False, changes=(Change(4, 1e-1),))


RECIPES: dict[str, Callable[[], Recipe]] = {f.__name__: f for f in (krizhevsky, paper, small, digits)}


def build_recipe(name: str) -> Recipe:
    """The named recipe.

    Raises:
        ConfigurationError: an unknown name.
    """
    if name not in RECIPES:
        raise ConfigurationError(f"unknown recipe {name!r}; choose one of {', '.join(RECIPES)}")
    return RECIPES[name]()

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
        crops: whether training images are cropped at random places; otherwise at the centre.
        flip: whether training images are mirrored half the time.
        crops_shared_by: so many consecutive images of an epoch's order share one crop place and one flip, as 32 did in
            2012's source; with 1 each image has its own.
        color_noise: standard deviations of PCA colour noise; 0 switches it off.
        changes: in order of epochs.
        plateau: None, or when to divide the learning rate.
        warmup_epochs: for how long all learning rates rise on a straight line to what they would be.
        warmup_start: the share of it that they rise from.
        lars: None, or the trust coefficient of layer-wise adaptive rates (:class:`fastalex.optimizer.KrizhevskySGD`).
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


# --- the named recipes ------------------------------------------------------------------------------------------------


_SHARED_IN_2012 = 32  # the released source draws one offset and one flip for so many images; the paper says nothing


def krizhevsky() -> Recipe:
    """What configuration 145 did (its saved options): biases keep their rate, conv1 slows at 67 and freezes at 72."""
    return _by_hand("krizhevsky", 91, (25, 51, 67, 72, 79))


def source_145_2010() -> Recipe:
    """What the same network did on ILSVRC-2010 (37.5 % top-1 error).

    Its saved file ends with biases at a tenth of their first rate. When they dropped is not recorded; here they do so
    with the last change.
    """
    recipe = _by_hand("source-145-2010", 93, (23, 51, 68, 72, 78))
    return replace(recipe, changes=(*recipe.changes[:-1], Change(78, 1e-1, parameters="biases"), recipe.changes[-1]))


def _by_hand(name: str, epochs: int, events: tuple[int, int, int, int, int]) -> Recipe:
    """The schedule of 2012: two drops; conv1 slower and colour noise off; conv1 frozen; the others slower."""
    first, second, quiet, frozen, last = events
    return Recipe(
        name=name,
        epochs=epochs,
        batch_size=128,
        lr=0.01,
        crops_shared_by=_SHARED_IN_2012,
        changes=(
            Change(first, 1e-1, parameters="weights"),
            Change(second, 1e-2, parameters="weights"),
            Change(quiet, 1e-3, layers=("conv1",), parameters="weights", color_noise=0.0),
            Change(frozen, 0.0, layers=("conv1",)),
            Change(last, 1e-3, parameters="weights"),
            Change(last, 0.0, layers=("conv1",)),
        ),
    )


def source_170() -> Recipe:
    """Configuration 170 of 2013, without anybody's hand: four equal quarters from 0.01 down to 4e-5, biases in halves.

    Colour noise went off between epochs 61 and 68 and conv1 was frozen between 73 and 78; here in the middle of these.
    """
    quarter, half, three_quarters = 24, 48, 72  # of 95: the first epochs that begin in them
    return Recipe(
        name="source-170",
        epochs=95,
        batch_size=128,
        lr=0.01,
        crops_shared_by=_SHARED_IN_2012,
        changes=(
            Change(quarter, 250 ** (-1 / 3), parameters="weights"),
            Change(half, 250 ** (-2 / 3), parameters="weights"),
            Change(half, 1e-1, parameters="biases"),
            Change(64, color_noise=0.0),
            Change(three_quarters, 1 / 250, parameters="weights"),
            Change(75, 0.0, layers=("conv1",)),
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


def four_layer() -> Recipe:
    """For the network of the same name: constant rates, no regularisation of any kind, as in the paper's figure 1."""
    return Recipe(
        name="four-layer",
        epochs=40,
        batch_size=128,
        lr=0.001,
        weight_decay=0.0,
        crops=False,
        flip=False,
        color_noise=0.0,
    )


RECIPES: dict[str, Callable[[], Recipe]] = {
    f.__name__.replace("_", "-"): f for f in (krizhevsky, source_145_2010, source_170, paper, small, digits, four_layer)
}
ALIASES = {"source-145": "krizhevsky"}


def build_recipe(name: str) -> Recipe:
    """The named recipe.

    Raises:
        ConfigurationError: an unknown name.
    """
    name = ALIASES.get(name, name)
    if name not in RECIPES:
        raise ConfigurationError(f"unknown recipe {name!r}; choose one of {', '.join([*RECIPES, *ALIASES])}")
    return RECIPES[name]()

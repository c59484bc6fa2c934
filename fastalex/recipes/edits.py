"""Changes of a run's schedule by hand, as runs were steered in 2012: ``epoch=67:conv1.lr=1e-5``.

An edit says from which epoch on (counted from 0: so many are finished by then) which quantity has which value:

- ``lr``, ``conv1.lr``: the weights' learning rate, everywhere or in one layer. The biases' follows at its multiple.
- ``conv1.weight.lr``, ``conv1.bias.lr``: one of the two alone. 0 freezes.
- ``color_noise``: the standard deviations of the colour noise.

Options that change the recipe of a resumed run are kept in the same list: ``lr=0.02``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from fastalex.errors import ConfigurationError
from fastalex.recipes.schedule import Change, Parameters, Recipe

_FORM = re.compile(
    r"epoch=(\d+):(?:(?:(?!weight|bias)(\w+)\.)?(?:(weight|bias)\.)?(lr)|(color_noise))=([^=:]+)", re.ASCII
)


_NUMBER = re.compile(r"(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", re.ASCII)


_PARAMETERS: dict[str | None, Parameters] = {"weight": "weights", "bias": "biases", None: "all"}


@dataclass(frozen=True)
class Edit:
    """What was changed by hand, and after which step."""

    step: int
    text: str


def edited(recipe: Recipe, texts: Sequence[str], *, layers: Sequence[str], epoch: int) -> Recipe:
    """The recipe with these edits.

    Args:
        layers: names of the network's blocks.
        epoch: the epoch that the run is in; what was is not changed.

    Raises:
        ConfigurationError: an edit that cannot be read, that is of the past, or of a layer or an epoch that is not.
    """
    changes = list(recipe.changes)
    for text in texts:
        changes.append(_change(text, recipe, layers, epoch))
    # In order of epochs, and after the recipe's own changes of the same epoch.
    return replace(recipe, changes=tuple(sorted(changes, key=lambda change: change.epoch)))


def _change(text: str, recipe: Recipe, layers: Sequence[str], now: int) -> Change:
    match = _FORM.fullmatch(text)
    if match is None:
        raise ConfigurationError(
            f"--set {text} cannot be read; write epoch=67:lr=1e-4, epoch=67:conv1.lr=1e-5, epoch=67:conv1.bias.lr=0 or "
            "epoch=67:color_noise=0"
        )
    epoch, layer, kind, _, noise, value = match.groups()
    number = _number(text, value, "colour noise" if noise else "rate")
    if not now <= int(epoch) < recipe.epochs:
        raise ConfigurationError(
            f"--set {text}: epoch {epoch} is not ahead of the run, which has finished {now} of {recipe.epochs} epochs; "
            f"name one from {now} to {recipe.epochs - 1}"
        )
    if noise:
        return Change(int(epoch), color_noise=number)
    if layer is not None and layer not in layers:
        raise ConfigurationError(f"--set {text}: the network has no layer {layer!r}; it has {', '.join(layers)}")
    if not recipe.lr:
        raise ConfigurationError(f"--set {text}: rates are kept as multiples of the run's lr, which is 0")
    scale = number / recipe.lr
    if kind == "bias":
        scale /= recipe.bias_lr_multiplier
    return Change(int(epoch), scale, (layer,) if layer else (), _PARAMETERS[kind])


def _number(text: str, value: str, kind: str) -> float:
    number = float(value) if _NUMBER.fullmatch(value) else math.nan
    if not math.isfinite(number):
        raise ConfigurationError(f"--set {text}: {value!r} is no {kind}; a number from 0 up is wanted")
    return number


def overridden(edits: Sequence[Edit], before: Recipe, after: Recipe) -> list[str]:
    """What options changed in the recipe of a run that goes on, as texts of edits.

    Args:
        edits: what was changed before.

    Raises:
        ConfigurationError: another ``lr`` where rates were set by hand, which are kept as its multiples.
    """
    by_hand = [edit.text for edit in edits if edit.text.startswith("epoch=") and "lr=" in edit.text]
    if after.lr != before.lr and by_hand:
        raise ConfigurationError(
            f"--lr {after.lr:g} would also change the rates that were set by hand ({', '.join(by_hand)}); set the rate "
            "from an epoch on, such as --set epoch=67:lr=1e-4"
        )
    names = [field.name for field in fields(Recipe) if field.name != "changes"]
    pairs = [(name, getattr(before, name), getattr(after, name)) for name in names]
    return [f"{name}={new}" for name, old, new in pairs if new != old]

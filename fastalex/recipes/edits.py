"""Edits: changes that a user makes to a run's recipe by hand, as text: ``epoch=67:conv1.weight.lr=1e-5``.

An edit gives the epoch from which a value applies, counted from 1, and the value:

- ``lr``, ``conv1.lr``: learning rate of the weights, in all layers or in one. The biases' rate follows with its
  multiplier.
- ``conv1.weight.lr``, ``conv1.bias.lr``, ``bias.lr``: only the weights or only the biases. 0 freezes.
- ``color_noise``: standard deviation of the colour noise.

Options that change the recipe of a resumed run are recorded in the same list, without an epoch: ``lr=0.02``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from fastalex.errors import ConfigurationError
from fastalex.recipes.schedule import Change, Parameters, Recipe, epochs_in_words

_EDIT = re.compile(
    r"epoch=(\d+):(?:(?:(?!weight|bias)(\w+)\.)?(?:(weight|bias)\.)?(lr)|(color_noise))=([^=:]+)", re.ASCII
)
_NUMBER = re.compile(r"(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", re.ASCII)
_PARAMETERS: dict[str | None, Parameters] = {"weight": "weights", "bias": "biases", None: "all"}


@dataclass(frozen=True)
class Edit:
    """An edit that was applied to a run, and the step after which it was made."""

    step: int
    text: str


def edited(recipe: Recipe, texts: Sequence[str], *, layers: Sequence[str], finished: int) -> Recipe:
    """The recipe with edits applied.

    Args:
        layers: names of the network's blocks.
        finished: number of epochs that the run has finished; edits apply to later ones.

    Raises:
        ConfigurationError: an edit cannot be parsed, or names an unknown layer or an epoch that the run has
            finished or does not reach.
    """
    changes = list(recipe.changes)
    for text in texts:
        changes.append(_parse(text, recipe, layers, finished))
    # Sorting is stable: edits follow the recipe's own changes of the same epoch and so override them.
    return replace(recipe, changes=tuple(sorted(changes, key=lambda change: change.from_epoch)))


def _parse(text: str, recipe: Recipe, layers: Sequence[str], finished: int) -> Change:
    match = _EDIT.fullmatch(text)
    if match is None:
        raise ConfigurationError(
            f"edit {text} cannot be parsed; write epoch=67:lr=1e-4, epoch=67:conv1.lr=1e-5, "
            "epoch=67:conv1.weight.lr=0 or epoch=67:color_noise=0"
        )
    epoch, layer, kind, _, noise, value = match.groups()
    number = _parse_number(text, value, "colour noise" if noise else "learning rate")
    if not finished < int(epoch) <= recipe.epochs:
        reason = f"the run has already finished epoch {int(epoch)}"
        if int(epoch) == 0:
            reason = "epochs count from 1"
        elif int(epoch) > recipe.epochs:
            reason = f"the run has only {epochs_in_words(recipe.epochs)}"
        raise ConfigurationError(f"edit {text}: {reason}; choose an epoch from {finished + 1} to {recipe.epochs}")
    if noise:
        return Change(int(epoch), color_noise=number)
    if layer is not None and layer not in layers:
        raise ConfigurationError(f"edit {text}: the network has no layer {layer!r}; choose from {', '.join(layers)}")
    if not recipe.lr:
        raise ConfigurationError(f"edit {text}: rates are stored as multiples of the recipe's lr, which is 0")
    scale = number / recipe.lr
    if kind == "bias":
        scale /= recipe.bias_lr_multiplier
    return Change(int(epoch), scale, (layer,) if layer else (), _PARAMETERS[kind])


def _parse_number(text: str, value: str, quantity: str) -> float:
    number = float(value) if _NUMBER.fullmatch(value) else math.nan
    if not math.isfinite(number):
        raise ConfigurationError(f"edit {text}: {quantity} must be a number of at least 0, got {value!r}")
    return number


def last_of_each(edits: Sequence[Edit]) -> list[str]:
    """The texts of the edits without those that a later edit of the same value has replaced, in order."""
    last: dict[str, str] = {}
    for edit in reversed(edits):
        last.setdefault(edit.text.rpartition("=")[0], edit.text)
    return list(reversed(last.values()))


def overridden(edits: Sequence[Edit], before: Recipe, after: Recipe) -> list[str]:
    """What options changed in the recipe of a resumed run, as texts of edits.

    Args:
        edits: earlier edits of the run.

    Raises:
        ConfigurationError: ``lr`` changed although earlier edits set learning rates, which are stored as its multiples.
    """
    rates = [edit.text for edit in edits if edit.text.startswith("epoch=") and "lr=" in edit.text]
    if after.lr != before.lr and rates:
        raise ConfigurationError(
            f"lr={after.lr:g} would also change the rates set by earlier edits ({', '.join(rates)}); use "
            "another edit instead, such as epoch=67:lr=1e-4"
        )
    names = [field.name for field in fields(Recipe) if field.name not in ("changes", "drops_left_out")]
    pairs = [(name, getattr(before, name), getattr(after, name)) for name in names]
    return [f"{name}={new}" for name, old, new in pairs if new != old]

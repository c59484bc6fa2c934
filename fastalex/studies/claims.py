"""The paper's claims and published figures, read from ``claims.toml``.

A study trains variants that differ from a base in one thing. A variant is data: the options of ``fastalex.train`` in
which it differs. The base is the first variant and reproduces the network of 2012. A published difference is the
variant's error minus the base's, in percentage points.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from importlib.resources import files
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from fastalex.errors import ConfigurationError
from fastalex.options.training import NetworkOptions, RecipeOptions

Measure = Literal["error", "epochs"]
T = TypeVar("T")

_ERROR_KEYS = ("error", "base_error")


@dataclass(frozen=True)
class PublishedError:
    """Published error rates in percent.

    Args:
        method: what was evaluated.
        images: on which images.
        source: where the figures were published.
        top5, top1: error rates; ``top1`` is None where it was not published.
        views: views per image; None for methods without views.
    """

    method: str
    images: str
    source: str
    top5: float
    top1: float | None = None
    views: int | None = None

    def __str__(self) -> str:
        digits = 2 if self.source.startswith("2012 source") else 1
        top1 = "-" if self.top1 is None else f"{self.top1:.{digits}f}"
        return f"{top1} / {self.top5:.{digits}f}"


@dataclass(frozen=True)
class PublishedDifference:
    """A published difference between two networks, in percentage points.

    Args:
        top1, top5: the differences; ``top5`` is None where it was not published.
        source: where.
        qualifier: precedes the figure, such as "about".
        error, base_error: the published errors behind the difference, if known.
    """

    top1: float
    source: str
    top5: float | None = None
    qualifier: str = ""
    error: PublishedError | None = None
    base_error: PublishedError | None = None

    def __str__(self) -> str:
        top5 = "" if self.top5 is None else f" / {self.top5:+.1f}"
        return f"{self.qualifier} {self.top1:+.1f}{top5}".strip()

    @property
    def details(self) -> str:
        """The source, and the errors behind the difference."""
        if self.error is None or self.base_error is None:
            return self.source
        errors = f"{self.error.source}: {self.error} against {self.base_error}"
        return f"{self.source}; {errors}, {self.error.views} views, {self.error.images}"


@dataclass(frozen=True)
class Variant:
    """One row of a study.

    Args:
        name: also the name of the folder of its runs, with hyphens for spaces.
        formerly: its name in earlier versions, if that was another one.
        network, training: fields of :class:`NetworkOptions` and :class:`RecipeOptions` that differ from the base.
        published: its published difference from the base, or None.
    """

    name: str
    network: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    published: PublishedDifference | None = None
    formerly: str = ""

    @property
    def folder(self) -> str:
        """The name as a folder name."""
        return _as_folder(self.name)

    def folder_in(self, study: Path) -> Path:
        """The folder of its runs: the one that an earlier version has made under the former name, if it is there."""
        former = study / _as_folder(self.formerly)
        return former if self.formerly and former.is_dir() else study / self.folder


def _as_folder(name: str) -> str:
    return "-".join("".join(c if c.isalnum() or c in ".-" else " " for c in name).split())


@dataclass(frozen=True)
class Study:
    """A claim and the networks that test it.

    Args:
        name: as the command line takes it.
        claim: the claim, as a sentence.
        question: what the study finds out, in a few words; the title of its picture.
        variants: the base first.
        measure: ``error`` compares validation errors; ``epochs`` compares the number of epochs until the mean training
            error of an epoch is at most :data:`TRAINING_ERROR_GOAL`, between families of variants.
        network, training: options of all variants; the user's options override them.
        families: for ``epochs``: the first words of the variants' names. The fastest variants of each are compared.
        published_ratio: for ``epochs``: epochs of the second family divided by those of the first.
        source: where the ratio was published.
        note: what a reader of the results must know.
        formerly: its name in earlier versions, if that was another one.
    """

    name: str
    claim: str
    question: str
    variants: tuple[Variant, ...]
    measure: Measure = "error"
    network: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    families: tuple[str, ...] = ()
    published_ratio: float | None = None
    source: str = ""
    note: str = ""
    formerly: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """Its name, and the former one if there is one."""
        return (self.name, self.formerly) if self.formerly else (self.name,)


@dataclass(frozen=True)
class OtherClaim:
    """A claim that other commands test.

    Args:
        claim: the claim, as a sentence.
        commands: what to run after ``python -m fastalex.``, in order.
        comparisons: pairs of published errors, from worse to better.
        published: the published figures that are not errors.
    """

    claim: str
    commands: tuple[str, ...]
    comparisons: tuple[tuple[PublishedError, PublishedError], ...] = ()
    published: str = ""


@dataclass(frozen=True)
class Claims:
    """The contents of ``claims.toml``."""

    training_error_goal: float
    errors: Mapping[str, PublishedError]
    studies: Mapping[str, Study]
    others: tuple[OtherClaim, ...]


def read_claims(text: str) -> Claims:
    """Parse the text of ``claims.toml``.

    Raises:
        ConfigurationError: a key is unknown or missing, a value has the wrong type, or a name refers to nothing. The
            message names the key.
    """
    values = tomllib.loads(text)
    errors = {
        name: _build(PublishedError, _table(table, f"errors.{name}"), f"errors.{name}")
        for name, table in _table(values.get("errors", {}), "errors").items()
    }
    studies = {
        name: _study(name, _table(table, f"studies.{name}"), errors)
        for name, table in _table(values.get("studies", {}), "studies").items()
    }
    others = [_other_claim(table, where, errors) for table, where in _tables(values.get("others", []), "others")]
    return _build(Claims, values, "the top level", errors=errors, studies=studies, others=tuple(others))


def _study(name: str, table: dict[str, Any], errors: Mapping[str, PublishedError]) -> Study:
    where = f"studies.{name}"
    tables = _tables(table.get("variants", []), f"{where}.variants")
    variants = tuple(_variant(variant, place, errors) for variant, place in tables)
    if not variants:
        raise ConfigurationError(f"claims.toml: {where} has no variants; add a base and the variants to compare")
    return _build(Study, table, where, name=name, variants=variants, **_options(table, where))


def _variant(table: dict[str, Any], where: str, errors: Mapping[str, PublishedError]) -> Variant:
    built: dict[str, Any] = _options(table, where)
    if "published" in table:
        place = f"{where}.published"
        published = _table(table["published"], place)
        found = {name: _find_error(published[name], place, errors) for name in _ERROR_KEYS if name in published}
        built["published"] = _build(PublishedDifference, published, place, **found)
    return _build(Variant, table, where, **built)


def _other_claim(table: dict[str, Any], where: str, errors: Mapping[str, PublishedError]) -> OtherClaim:
    pairs = []
    for names in table.get("comparisons", []):
        if not isinstance(names, list) or len(names) != 2:
            raise ConfigurationError(f"claims.toml: {where}.comparisons must hold pairs of error names, got {names!r}")
        pairs.append(tuple(_find_error(name, f"{where}.comparisons", errors) for name in names))
    return _build(OtherClaim, table, where, comparisons=tuple(pairs))


def _find_error(name: Any, where: str, errors: Mapping[str, PublishedError]) -> PublishedError:
    if name not in errors:
        raise ConfigurationError(f"claims.toml: {where} names the unknown error {name!r}; add it to the table errors")
    return errors[name]


def _options(table: dict[str, Any], where: str) -> dict[str, Any]:
    """The options in ``network`` and ``training``; lists become tuples."""
    result = {}
    for key, options in (("network", NetworkOptions), ("training", RecipeOptions)):
        if key not in table:
            continue
        known = [option.name for option in fields(options)]
        for name in _table(table[key], f"{where}.{key}"):
            if name not in known:
                raise ConfigurationError(
                    f"claims.toml: {where}.{key} has the unknown option {name!r}; choose from {', '.join(known)}"
                )
        result[key] = {name: tuple(v) if isinstance(v, list) else v for name, v in table[key].items()}
    return result


def _build(cls: type[T], table: dict[str, Any], where: str, **built: Any) -> T:
    """An object of a dataclass from a TOML table. ``built`` holds values that have been converted already."""
    types = get_type_hints(cls)
    for name in table:
        if name not in types:
            raise ConfigurationError(
                f"claims.toml: {where} has the unknown key {name!r}; choose from {', '.join(types)}"
            )
    checked = {name: _checked(table[name], types[name], f"{where}.{name}") for name in table if name not in built}
    values = checked | built
    for entry in fields(cls):  # type: ignore[arg-type]
        if entry.name not in values and entry.default is MISSING and entry.default_factory is MISSING:
            raise ConfigurationError(f"claims.toml: {where} lacks the key {entry.name!r}")
    return cls(**values)


def _checked(value: Any, expected: Any, where: str) -> Any:
    """The value as the expected type: integers become floats, and arrays become tuples."""
    if isinstance(expected, UnionType):  # such as float | None; TOML has no null
        (expected,) = (option for option in get_args(expected) if option is not NoneType)
    if get_origin(expected) is tuple and isinstance(value, list):
        return tuple(_checked(item, get_args(expected)[0], f"{where}[{index}]") for index, item in enumerate(value))
    if get_origin(expected) is Literal and value in get_args(expected):
        return value
    if expected is float and type(value) is int:
        return float(value)
    if type(value) is expected:
        return value
    raise ConfigurationError(f"claims.toml: {where} must be {_type_name(expected)}, got {value!r}")


def _type_name(expected: Any) -> str:
    if get_origin(expected) is Literal:
        return " or ".join(map(repr, get_args(expected)))
    return "an array" if get_origin(expected) is tuple else f"a {expected.__name__}"


def _table(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigurationError(f"claims.toml: {where} must be a table, got {value!r}")
    return value


def _tables(value: Any, where: str) -> list[tuple[dict[str, Any], str]]:
    """The tables of an array, each with its path."""
    if not isinstance(value, list):
        raise ConfigurationError(f"claims.toml: {where} must be an array of tables, got {value!r}")
    return [(_table(item, f"{where}[{index}]"), f"{where}[{index}]") for index, item in enumerate(value)]


_CLAIMS = read_claims(files("fastalex.studies").joinpath("claims.toml").read_text(encoding="utf-8"))

TRAINING_ERROR_GOAL = _CLAIMS.training_error_goal
"""Training error in percent that the study of activations counts epochs to."""

PUBLISHED_ERRORS = _CLAIMS.errors
"""All published errors, by name."""

STUDIES = _CLAIMS.studies
"""All studies, by name."""

OTHER_CLAIMS = _CLAIMS.others
"""Claims that other commands test."""


def find_study(name: str) -> Study:
    """The study of that name, or of that former name.

    Raises:
        ConfigurationError: the name is unknown.
    """
    name = next((study.name for study in STUDIES.values() if name in study.names), name)
    if name not in STUDIES:
        raise ConfigurationError(f"unknown study {name!r}; choose one of {', '.join(STUDIES)}")
    return STUDIES[name]

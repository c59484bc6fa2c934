"""Values from JSON files, checked against the annotations of the dataclass that they are to become."""

from __future__ import annotations

import math
import types
from collections.abc import Collection
from dataclasses import is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

_NAMES = {int: "an integer", float: "a finite number", str: "text", bool: "true or false", type(None): "null"}


def check_json(kind: type, values: Any, name: str = "", *, required: Collection[str] = ()) -> None:
    """Check the entries of a JSON object that are fields of a dataclass, and those of the objects within.

    Entries that are no fields are not looked at.

    Args:
        kind: the dataclass. Tuples are lists in JSON.
        values: what ``json.loads`` returned.
        name: of the object, for messages; empty for the whole content.
        required: entries that must be there.

    Raises:
        ValueError: ``values`` is no object, lacks an entry, or has one of another type; the message names it.
    """
    _check(kind, values, name)
    for field in required:
        if field not in values:
            raise ValueError(f"there is no {_join(name, field)}")


def _check(wanted: Any, value: Any, name: str) -> None:
    arguments, origin = get_args(wanted), get_origin(wanted)
    if is_dataclass(wanted):
        _expect(isinstance(value, dict), name, "an object", value)
        for field, hint in get_type_hints(wanted).items():
            if field in value:
                _check(hint, value[field], _join(name, field))
    elif origin in (Union, types.UnionType):
        others = [kind for kind in arguments if kind is not type(None)]
        if value is not None or len(others) == len(arguments):
            _check(others[0], value, name)  # the only union in our files is with None
    elif origin is Literal:
        _expect(isinstance(value, str) and value in arguments, name, f"one of {', '.join(map(str, arguments))}", value)
    elif origin in (tuple, list):
        _expect(isinstance(value, list), name, "a list", value)
        for index, entry in enumerate(value):
            _check(arguments[0], entry, f"{name}[{index}]")
    elif origin is dict:
        _expect(isinstance(value, dict), name, "an object", value)
        for key, entry in value.items():
            _check(arguments[1], entry, _join(name, key))
    elif wanted is float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        _expect(is_number and abs(value) <= 1e300 and math.isfinite(value), name, _NAMES[float], value)
    elif wanted in _NAMES:
        _expect(type(value) is wanted, name, _NAMES[wanted], value)


def _expect(is_right: bool, name: str, wanted: str, value: Any) -> None:
    if not is_right:
        text = repr(value)
        found = text if len(text) <= 60 else text[:57] + "..."
        raise ValueError(f"{name or 'the content'} must be {wanted}, got {found}")


def _join(name: str, field: str) -> str:
    return f"{name}.{field}" if name else field

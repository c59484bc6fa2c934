"""Values from JSON files against the fields of a dataclass."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal

import pytest

from fastalex.json_types import check_json


@dataclass
class Inner:
    names: tuple[str, ...] = ()
    kind: Literal["a", "b"] | None = None


@dataclass
class Outer:
    count: int = 0
    rate: float = 0.0
    is_on: bool = False
    inner: Inner | None = None
    lists: tuple[tuple[str, ...], ...] = ()
    samples: dict[str, list[int]] | None = None


def test_right_types_are_accepted():
    check_json(Outer, {})
    text = '{"count": 3, "rate": 1, "is_on": true, "inner": {"names": ["x"], "kind": "b"}, "lists": [["y"], []]}'
    check_json(Outer, json.loads(text), required=("count",))
    check_json(Outer, {"inner": None, "samples": {"train": [1, 2]}, "unknown": 5})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "the run must be an object, got []"),
        ("5", "the run must be an object, got 5"),
        ('{"count": "3"}', "the run.count must be an integer, got '3'"),
        ('{"count": true}', "the run.count must be an integer, got True"),
        ('{"count": 3.5}', "the run.count must be an integer, got 3.5"),
        ('{"rate": NaN}', "the run.rate must be a finite number, got nan"),
        ('{"rate": false}', "the run.rate must be a finite number, got False"),
        (f'{{"rate": {10**400}}}', "the run.rate must be a finite number, got 1000000"),
        ('{"is_on": 1}', "the run.is_on must be true or false, got 1"),
        ('{"inner": {"names": "x"}}', "the run.inner.names must be a list, got 'x'"),
        ('{"inner": {"names": [5]}}', r"the run.inner.names\[0\] must be text, got 5"),
        ('{"inner": {"kind": "c"}}', "the run.inner.kind must be one of a, b, got 'c'"),
        ('{"inner": {"kind": ["a"]}}', "the run.inner.kind must be one of a, b"),
        ('{"lists": [["y"], null]}', r"the run.lists\[1\] must be a list, got None"),
        ('{"samples": {"train": ["1"]}}', r"the run.samples.train\[0\] must be an integer, got '1'"),
        ("{}", "there is no the run.count"),
    ],
)
def test_wrong_types_are_named(text, message):
    with pytest.raises(ValueError, match=message.replace("[]", r"\[\]")):
        check_json(Outer, json.loads(text), "the run", required=("count",))

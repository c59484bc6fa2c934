"""What Triton's intermediate code says of a launch: how often loops run, and which tensors are read and written."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

_ARGUMENT = re.compile(r"%(\w+): (!tt\.ptr)?")
_CONSTANT = re.compile(r"(%\S+) = arith\.constant (-?\d+) : i\d+")
_LOOP = re.compile(r"scf\.for %\S+ = (%\S+) to (%\S+) step (%\S+)")
_OPERATION = re.compile(r"\s*(%[\w.$-]+)(?::\d+)? = (.*)")
_PASSED = re.compile(r"(%[\w.$-]+) = (%[\w.$-]+)")  # to a loop
_VALUE = re.compile(r"%[\w.$-]+")


def trip_counts(ttgir: str, arguments: Mapping[str, Any]) -> list[int | None]:
    """How often each loop's body runs, in the order of the loops; None if that follows from no argument.

    Args:
        ttgir: Triton's code for the GPU, after pipelining.
        arguments: the launch's arguments by name.
    """
    values = {f"%{name}": value for name, value in arguments.items()}
    values |= {name: int(value) for name, value in _CONSTANT.findall(ttgir)}
    counts: list[int | None] = []
    for bounds in _LOOP.findall(ttgir):
        first, end, step = (values.get(name) for name in bounds)
        known = first is not None and end is not None and step
        counts.append(max(0, math.ceil((end - first) / step)) if known else None)  # type: ignore[operator]
    return counts


def read_and_written(ttir: str) -> tuple[set[str], set[str]]:
    """Names of the pointer arguments that the kernel loads from and stores to.

    Args:
        ttir: Triton's code before it depends on a GPU. Loops and branches may pass pointers on.
    """
    signature = re.search(r"tt\.func public @.*", ttir)
    assert signature is not None
    # The arguments that each value is computed from. A loaded value is computed from none.
    roots = {f"%{name}": {name} for name, is_pointer in _ARGUMENT.findall(signature[0]) if is_pointer}
    read: set[str] = set()
    written: set[str] = set()
    for line in ttir.partition(signature[0])[2].splitlines():
        text = line.split(" loc(")[0]
        match = _OPERATION.match(text)
        result, operation = (match[1], match[2]) if match else (None, text)
        for inner, outer in _PASSED.findall(operation):
            roots[inner] = roots.get(outer, set())
        found = [roots.get(value, set()) for value in _VALUE.findall(operation)]
        if "tt.load" in operation:
            read |= found[0]
        elif "tt.store" in operation:
            written |= found[0]
        elif result is not None:
            # An address is that of its first operand; the second is an offset.
            roots[result] = found[0] if "tt.addptr" in operation else set().union(*found)
    return read, written

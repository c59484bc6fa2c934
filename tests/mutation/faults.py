"""What a fault is: a few characters of one file, and what stands there instead."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass


def both_ways(*pairs: tuple[str, str]) -> dict[str, str]:
    """Each text of a pair with the other one."""
    return dict([*pairs, *((other, one) for one, other in pairs)])


# Operators that are mistaken for each other, in Python and C.
OPERATORS = {
    **both_ways(("<", "<="), (">", ">="), ("==", "!="), ("is", "is not"), ("in", "not in"), ("and", "or")),
    **both_ways(("&&", "||"), ("+", "-"), ("//", "%"), ("<<", ">>"), ("&", "|")),
    "*": "+",
    "/": "*",
    "**": "*",
    "^": "|",
}
OPPOSITES = both_ways(("<", ">"), ("<=", ">="))

# Words, alone or as part of a name, that are mistaken for each other.
_WORDS = (
    ("height", "width"), ("row", "column"), ("rows", "columns"), ("top", "bottom"), ("left", "right"), ("top", "left"),
    ("first", "last"), ("start", "end"), ("start", "stop"), ("before", "after"), ("mean", "std"), ("train", "val"),
    ("low", "high"), ("lowest", "highest"), ("smallest", "largest"), ("x", "y"), ("weight", "bias"), ("full", "last"),
    ("stage", "rank"), ("stages", "replicas"), ("stage", "replica"), ("top1", "top5"), ("old", "new"),
    ("source", "target"), ("alpha", "beta"), ("forward", "backward"), ("input", "output"), ("squares", "spread"),
    ("epoch", "step"), ("epochs", "steps"), ("p", "q"), ("i", "j"), ("a", "b"), ("dh", "dw"), ("h", "w"), ("m", "n"),
    ("done", "total"), ("down", "right"), ("group", "groups"), ("stride", "window"), ("given", "wanted"),
)  # fmt: skip
_PARTNERS: dict[str, list[str]] = {}
for _one, _other in _WORDS:
    _PARTNERS.setdefault(_one, []).append(_other)
    _PARTNERS.setdefault(_other, []).append(_one)


@dataclass(frozen=True)
class Edit:
    """Characters ``start`` to ``end`` of a text become ``replacement``; ``kind`` says what mistake that is."""

    kind: str
    start: int
    end: int
    replacement: str


@dataclass(frozen=True)
class Fault:
    """An edit of a file. ``path`` is relative to the checkout; ``before`` and ``after`` are the line that changes."""

    path: str
    line: int
    before: str
    after: str
    edit: Edit

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.change}"

    @property
    def change(self) -> str:
        """The line before and after."""
        return f"{self.before} -> {self.after}"

    def applied(self, text: str) -> str:
        """The file's text with the fault in it."""
        return text[: self.edit.start] + self.edit.replacement + text[self.edit.end :]


def faults(path: str, text: str, edits: Iterable[Edit]) -> list[Fault]:
    """One fault for each edit that changes the text, in the order of their places."""
    starts = [0, *(index + 1 for index, character in enumerate(text) if character == "\n")]
    places: dict[tuple[int, int, str], Edit] = {}
    for edit in edits:
        if text[edit.start : edit.end] != edit.replacement:
            places.setdefault((edit.start, edit.end, edit.replacement), edit)
    found = []
    for _, edit in sorted(places.items()):
        line = bisect.bisect_right(starts, edit.start)
        head, last = starts[line - 1], text.find("\n", edit.end)
        last = len(text) if last < 0 else last
        before = text[head:last]
        after = text[head : edit.start] + edit.replacement + text[edit.end : last]
        found.append(Fault(path, line, _one_line(before), _one_line(after), edit))
    return found


def swapped_names(name: str, known: Iterable[str]) -> Iterator[str]:
    """Names among ``known`` that differ from this one in one word, which is mistaken for another."""
    words = name.split("_")
    for index, word in enumerate(words):
        for partner in _PARTNERS.get(word, ()):
            other = "_".join([*words[:index], partner, *words[index + 1 :]])
            if other in known:
                yield other


def _one_line(text: str) -> str:
    return " ".join(text.split())

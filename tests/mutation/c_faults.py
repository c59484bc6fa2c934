"""Places for faults in C, found by regular expressions outside comments, strings and preprocessor lines."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise

from tests.mutation.faults import OPERATORS, OPPOSITES, Edit, swapped_names

_NOT_CODE = re.compile(
    r"""/\*.*?\*/ | //[^\n]* | "(?:\\.|[^"\\\n])*" | '(?:\\.|[^'\\\n])*' | ^[ \t]*\#(?:\\\n|[^\n])*""",
    re.DOTALL | re.MULTILINE | re.VERBOSE,
)
_COMPARISON = re.compile(r"(?<= )(<=|>=|==|!=|<|>)(?= )")
_ARITHMETIC = re.compile(r"(?<= )([-+*&|^]|<<|>>|&&|\|\|)(?= )")  # `float *x` has no space behind the asterisk
_DIVISION = re.compile(r"(?<= )([/%])(?= )")
_ASSIGNMENT = re.compile(r"(?<= )([-+*/])=(?= )")
_INTEGER = re.compile(r"(?<![\w.])\d+(?![\w.])")
_FLOAT = re.compile(r"(?<![\w.])\d+\.\d+f?")
_NEGATION = re.compile(r"!(?=[\w(])")
_NAME = re.compile(r"[A-Za-z_]\w*")
_TOP_LEVEL = re.compile(r".+?(?:^\}|\Z)", re.DOTALL | re.MULTILINE)  # a function, or what stands between two
_CONDITION = re.compile(r"\bif \(")
_CALL = re.compile(r"\w+\(([^()]*)\)")
_PLAIN = re.compile(r"[\w.>-]+")
_STATEMENT = re.compile(
    r"^[ ]+((?:\w+(?:->|\.))*\w+(?:\[[^\]\n]*\])?\ [-+*/]?=\ [^;\n]*; | \w+\([^;\n]*\); | continue; | break;)$",
    re.MULTILINE | re.VERBOSE,
)


def c_edits(text: str) -> Iterator[Edit]:
    """All faults of a C file that the patterns know, as edits of its text."""
    code = _NOT_CODE.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), text)
    yield from _operators(code)
    yield from _values(code)
    yield from _conditions(code)
    yield from _arguments(code)
    yield from (Edit("removed statement", *found.span(1), ";") for found in _STATEMENT.finditer(code))


def _operators(code: str) -> Iterator[Edit]:
    for found in _COMPARISON.finditer(code):
        # `a < b ? a : b` is the same with `<=`.
        chooses = re.match(r"[^;?{}]*\?", code[found.end() :]) and found[1] in OPPOSITES
        yield Edit("comparison", *found.span(1), (OPPOSITES if chooses else OPERATORS)[found[1]])
    for found in _ARITHMETIC.finditer(code):
        yield Edit("operator", *found.span(1), OPERATORS[found[1]])
    for found in _DIVISION.finditer(code):
        yield Edit("operator", *found.span(1), {"/": "*", "%": "/"}[found[1]])
    for found in _ASSIGNMENT.finditer(code):
        yield Edit("operator", *found.span(1), {"+": "-", "-": "+", "*": "/", "/": "*"}[found[1]])


def _values(code: str) -> Iterator[Edit]:
    for found in _INTEGER.finditer(code):
        value = int(found[0])
        yield Edit("constant", *found.span(), str(value + 1))
        if value:
            yield Edit("constant", *found.span(), str(value - 1))
    for found in _FLOAT.finditer(code):
        yield Edit("constant", *found.span(), f"(2 * {found[0]})")
    for part in _TOP_LEVEL.finditer(code):  # names of other functions would not compile
        names = set(_NAME.findall(part[0]))
        for found in _NAME.finditer(code, *part.span()):
            yield from (Edit("swapped name", *found.span(), other) for other in swapped_names(found[0], names))


def _conditions(code: str) -> Iterator[Edit]:
    for found in _NEGATION.finditer(code):
        yield Edit("missing not", *found.span(), "")
    for found in _CONDITION.finditer(code):
        end, depth = found.end(), 1
        while depth and end < len(code):
            depth += {"(": 1, ")": -1}.get(code[end], 0)
            end += 1
        yield from (Edit("dropped condition", found.end(), end - 1, value) for value in "01")


def _arguments(code: str) -> Iterator[Edit]:
    for call in _CALL.finditer(code):
        place, arguments = call.start(1), call[1].split(", ")
        for one, other in pairwise(arguments):
            if _PLAIN.fullmatch(one) and _PLAIN.fullmatch(other):
                both = len(one) + len(", ") + len(other)
                yield Edit("swapped arguments", place, place + both, f"{other}, {one}")
            place += len(one) + len(", ")

"""Places for faults in Python, found in the syntax tree: never in a docstring, comment, annotation or message."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from itertools import pairwise

from tests.mutation.faults import OPERATORS, OPPOSITES, Edit, both_ways, swapped_names

_LEFT_OUT = {"annotation", "returns", "decorator_list", "bases", "msg", "type"}  # `type` of exceptions that are caught
_TELLS = re.compile(r"_?(print|say|note|tell|warn|warning|warn_once|log|info|debug|write_line|simplefilter)")
_DURATION = re.compile(r"_?\w*(SECONDS|TIMEOUT|INTERVAL|PAUSE|WAIT|CHUNK)\w*")  # one more of them shows nowhere
_CALLS = both_ways(
    *[("min", "max"), ("any", "all"), ("floor", "ceil"), ("minimum", "maximum"), ("amin", "amax")],
    *[("argmin", "argmax"), ("zeros_like", "ones_like"), ("startswith", "endswith"), ("lstrip", "rstrip")],
)
_SYMMETRIC = {*_CALLS, "isinstance", "issubclass", "gcd", "lcm", "equal", "isclose", "allclose", "add", "mul", "zip"}
_SYMBOLS: dict[type[ast.AST], str] = {
    ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!=", ast.Is: "is",
    ast.IsNot: "is not", ast.In: "in", ast.NotIn: "not in", ast.And: "and", ast.Or: "or", ast.Add: "+", ast.Sub: "-",
    ast.Mult: "*", ast.Div: "/", ast.FloorDiv: "//", ast.Mod: "%", ast.Pow: "**", ast.LShift: "<<", ast.RShift: ">>",
    ast.BitAnd: "&", ast.BitOr: "|", ast.BitXor: "^",
}  # fmt: skip
_ORDERED = ast.Sub | ast.Div | ast.FloorDiv | ast.Mod | ast.Pow
_PLAIN = ast.Name | ast.Attribute | ast.Subscript | ast.Constant | ast.Call
_TEXTS = ast.JoinedStr | ast.List | ast.Tuple
_FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef


def python_edits(text: str) -> Iterator[Edit]:
    """All faults of a Python file that the patterns know, as edits of its text.

    Raises:
        SyntaxError: the file is not Python.
    """
    finder = _Finder(text)
    yield from finder.visit(finder.tree)


class _Finder:
    def __init__(self, text: str) -> None:
        self.text = text
        self.tree = ast.parse(text)
        self._lines = [line + "\n" for line in text.split("\n")]
        self._starts = [0]
        for line in self._lines:
            self._starts.append(self._starts[-1] + len(line))
        self._names = {node.id for node in ast.walk(self.tree) if isinstance(node, ast.Name)}
        self._attributes = {node.attr for node in ast.walk(self.tree) if isinstance(node, ast.Attribute)}

    def visit(self, node: ast.AST) -> Iterator[Edit]:
        """The faults in a node and all below it."""
        if _tells(node):
            return
        outer = self._names
        if isinstance(node, _FUNCTIONS):  # where one name is mistaken for another, both stand in the same function
            self._names = {child.id for child in ast.walk(node) if isinstance(child, ast.Name)}
            self._names |= {child.arg for child in ast.walk(node) if isinstance(child, ast.arg)}
        for look in (self._operators, self._conditions, self._values, self._calls, self._statements):
            yield from look(node)
        for child in _children(node):
            yield from self.visit(child)
        self._names = outer

    # --- places in the text -------------------------------------------------------------------------------------------

    def _place(self, line: int, column: int) -> int:
        """The index of a character; columns of the syntax tree count bytes of UTF-8."""
        return self._starts[line - 1] + len(self._lines[line - 1].encode()[:column].decode())

    def _span(self, node: ast.expr | ast.stmt | ast.keyword) -> tuple[int, int]:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return self._place(node.lineno, node.col_offset), self._place(node.end_lineno, node.end_col_offset)

    def _of(self, node: ast.expr | ast.stmt) -> str:
        start, end = self._span(node)
        return self.text[start:end]

    def _wrapped(self, node: ast.expr) -> str:
        return self._of(node) if isinstance(node, _PLAIN) else f"({self._of(node)})"

    def _replace(self, kind: str, node: ast.expr | ast.stmt | ast.keyword, replacement: str) -> Edit:
        return Edit(kind, *self._span(node), replacement)

    def _swap(self, kind: str, one: ast.expr, other: ast.expr) -> Edit:
        (start, middle), (after, end) = self._span(one), self._span(other)
        return Edit(kind, start, end, self._of(other) + self.text[middle:after] + self._of(one))

    def _between(self, kind: str, left: ast.expr, right: ast.expr, old: str, new: str) -> Iterator[Edit]:
        """A fault in the operator between two operands, where also brackets and comments may be."""
        start, end = self._span(left)[1], self._span(right)[0]
        gap = re.sub(r"#[^\n]*", lambda comment: " " * len(comment[0]), self.text[start:end])
        at = re.search(r"\s+".join(map(re.escape, old.split())), gap)
        if at:
            yield Edit(kind, start + at.start(), start + at.end(), new)

    # --- patterns -----------------------------------------------------------------------------------------------------

    def _operators(self, node: ast.AST) -> Iterator[Edit]:
        match node:
            case ast.Compare():
                for left, operator, right in zip(
                    [node.left, *node.comparators], node.ops, node.comparators, strict=False
                ):
                    old = _SYMBOLS[type(operator)]
                    yield from self._between("comparison", left, right, old, OPERATORS[old])
            case ast.IfExp(test=ast.Compare(left=left, ops=[operator], comparators=[right])):
                old = _SYMBOLS[type(operator)]
                if old in OPPOSITES:
                    yield from self._between("comparison", left, right, old, OPPOSITES[old])
            case ast.BoolOp():
                old = _SYMBOLS[type(node.op)]
                for left, right in pairwise(node.values):
                    yield from self._between("and, or", left, right, old, OPERATORS[old])
                for dropped in node.values:
                    kept = [self._wrapped(value) for value in node.values if value is not dropped]
                    yield self._replace("dropped condition", node, f" {old} ".join(kept))
            case ast.BinOp() if not (_is_text(node.left) or _is_text(node.right)) and type(node.op) in _SYMBOLS:
                old = _SYMBOLS[type(node.op)]
                yield from self._between("operator", node.left, node.right, old, OPERATORS[old])
                if isinstance(node.op, _ORDERED):
                    yield Edit(
                        "swapped operands",
                        *self._span(node),
                        f"{self._wrapped(node.right)} {old} {self._wrapped(node.left)}",
                    )
            case ast.AugAssign() if type(node.op) in _SYMBOLS and not _is_text(node.value):
                old = _SYMBOLS[type(node.op)]
                yield from self._between("operator", node.target, node.value, f"{old}=", f"{OPERATORS[old]}=")
            case ast.UnaryOp(op=ast.USub() | ast.Not()):
                kind = "sign" if isinstance(node.op, ast.USub) else "missing not"
                yield self._replace(kind, node, self._wrapped(node.operand))

    def _conditions(self, node: ast.AST) -> Iterator[Edit]:
        match node:
            case ast.If(test=test) | ast.IfExp(test=test) if not isinstance(test, ast.Compare | ast.UnaryOp):
                yield self._replace("missing not", test, f"not {self._wrapped(test)}")
            case ast.comprehension(ifs=[*conditions]):
                for condition in conditions:
                    yield self._replace("dropped condition", condition, "True")
            case ast.With(items=items) if all(item.optional_vars is None for item in items):
                start, end = self._span(items[0].context_expr)[0], self._span(items[-1].context_expr)[1]
                yield Edit("dropped context", start, end, "__import__('contextlib').nullcontext()")

    def _values(self, node: ast.AST) -> Iterator[Edit]:
        match node:
            case ast.Constant(value=bool(value)):
                yield self._replace("constant", node, str(not value))
            case ast.Constant(value=int(value)):
                yield self._replace("constant", node, str(value + 1))
                if value:
                    yield self._replace("constant", node, str(value - 1))
            case ast.Constant(value=float(value)):
                yield self._replace("constant", node, "1.0" if value == 0 else f"(2 * {self._of(node)})")
            case ast.Name():
                yield from (self._replace("swapped name", node, name) for name in swapped_names(node.id, self._names))
            case ast.Attribute():
                start, end = self._span(node)[1] - len(node.attr), self._span(node)[1]
                for name in swapped_names(node.attr, self._attributes):
                    yield Edit("swapped name", start, end, name)
            case ast.Slice():
                for bound, step in ((node.lower, "+"), (node.upper, "-")):
                    if bound is not None and not isinstance(bound, ast.Constant | ast.UnaryOp):
                        yield self._replace("bound", bound, f"{self._wrapped(bound)} {step} 1")
            case (
                ast.Return(value=ast.Tuple(elts=[first, second]))
                | ast.Assign(targets=[ast.Tuple(elts=[first, second])])
                | ast.For(target=ast.Tuple(elts=[first, second]))
                | ast.comprehension(target=ast.Tuple(elts=[first, second]))
            ) if _are_alike(first, second):
                yield self._swap("swapped names", first, second)

    def _calls(self, node: ast.AST) -> Iterator[Edit]:
        if not isinstance(node, ast.Call):
            return
        name = _name(node)
        if name in _CALLS and self._of(node.func).endswith(name):
            end = self._span(node.func)[1]
            yield Edit("min, max", end - len(name), end, _CALLS[name])
        if name == "range" and not isinstance(node.args[-1], ast.Starred):
            last = node.args[1] if len(node.args) > 1 else node.args[0]
            yield self._replace("bound", last, f"{self._wrapped(last)} - 1")
        if name not in _SYMMETRIC:
            for one, other in pairwise(node.args):
                if _are_alike(one, other):
                    yield self._swap("swapped arguments", one, other)
            for first, second in pairwise(node.keywords):
                if first.arg and second.arg and _are_alike(first.value, second.value):
                    yield self._swap("swapped keyword arguments", first.value, second.value)

    def _statements(self, node: ast.AST) -> Iterator[Edit]:
        for block in (getattr(node, field, None) for field in ("body", "orelse", "finalbody")):
            if not isinstance(block, list):
                continue
            for statement in block:
                match statement:
                    case (
                        ast.Expr(value=ast.Call())
                        | ast.AugAssign()
                        | ast.Continue()
                        | ast.Break()
                        | ast.Assign(targets=[ast.Attribute() | ast.Subscript()])
                    ) if not _tells(statement):
                        yield self._replace("removed statement", statement, "pass")
                    # Code that raises these two is meant never to run, so no test can miss it.
                    case ast.Raise(exc=exception) if _name(exception) not in ("NotImplementedError", "AssertionError"):
                        yield self._replace("removed statement", statement, "pass")
                    case ast.Return() if isinstance(node, ast.If):
                        yield self._replace("removed statement", statement, "pass")


def _children(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes directly below a node in which faults may be."""
    if isinstance(node, ast.Raise):
        return
    if isinstance(node, ast.Call) and _name(node) in ("isinstance", "issubclass"):
        yield node.args[0]
        return
    for field, child in ast.iter_fields(node):
        if field not in _LEFT_OUT and not (field == "keywords" and isinstance(node, ast.ClassDef)):
            yield from (one for one in (child if isinstance(child, list) else [child]) if isinstance(one, ast.AST))


def _name(node: ast.AST | None) -> str:
    """The last part of a function's name, or nothing."""
    if isinstance(node, ast.Call):
        return _name(node.func)
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _are_alike(one: ast.expr, other: ast.expr) -> bool:
    """Whether two values may be mistaken for each other: both are constants, or neither is."""
    plain = isinstance(one, _PLAIN) and isinstance(other, _PLAIN)
    return plain and isinstance(one, ast.Constant) == isinstance(other, ast.Constant)


def _is_text(node: ast.expr) -> bool:
    """Whether this is a text or a list, where other operators than `+` are no fault that anybody would make."""
    return isinstance(node, _TEXTS) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def _tells(node: ast.AST) -> bool:
    """Whether a node only says something, to people or to type checkers, or sets how long to wait."""
    match node:
        case ast.JoinedStr() | ast.Import() | ast.ImportFrom():
            return True
        case ast.Expr(value=value):
            return isinstance(value, ast.Constant) or _tells(value)
        case ast.Call():
            return _TELLS.fullmatch(_name(node)) is not None
        case ast.keyword(arg="strict"):  # of `zip`, which then only checks less
            return True
        case ast.If(test=test):
            return _name(test) == "TYPE_CHECKING" or "__name__" in {
                child.id for child in ast.walk(test) if isinstance(child, ast.Name)
            }
        case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
            return _DURATION.fullmatch(name) is not None
    return False

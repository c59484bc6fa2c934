"""Command lines as tyro reads them, with one line for a mistake where tyro prints a box."""

from __future__ import annotations

import contextlib
import difflib
import io
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

import tyro

# Private, but nothing public tells the parts of a mistake; for its sake pyproject.toml bounds the version of tyro.
from tyro import _errors
from tyro._arguments import ArgumentDefinition

T = TypeVar("T")


def parse(command: Callable[..., T], *, prog: str | None = None, description: str | None = None) -> T:
    """What a function returns, or the instance of a dataclass, with its arguments from the command line.

    A mistake in them ends the program with code 2 and one line: the option, the value found and the values wanted.
    """

    def refuse(event: _errors.ParseErrorEvent) -> None:
        message: str | None
        if isinstance(event, _errors.MissingArgs | _errors.UnrecognizedArgs):
            message = _missing_or_unknown(event, command)
        else:
            message = _bad_value(event, command)
        if message is None:
            return  # tyro says it
        if os.environ.get("LOCAL_RANK", "0") == "0":  # torchrun gives all workers of a machine the same command line
            print(f"error: {message}", file=sys.stderr)
        sys.exit(2)

    with _errors.on_parse_error(refuse):
        # Nobody writes None: an option that may be left out is left out.
        return tyro.cli(command, prog=prog, description=description, config=(tyro.conf.DisallowNone,))


def _bad_value(event: _errors.ParseErrorEvent, command: Callable[..., object]) -> str | None:
    argument = getattr(event, "argument", None)
    if argument is None:
        return None
    name = _name(argument)
    if isinstance(event, _errors.BadValue) and argument.is_positional():  # an option stands in its place
        return _unknown(sys.argv[1:], command) or f"{name} is missing; --help says what is wanted"
    if isinstance(event, _errors.BadValue):
        return f"{name} has no value; write {name} {argument.lowered.metavar}"
    if isinstance(event, _errors.InvalidChoice):
        value = event.value
    else:
        reason = str(getattr(event, "message", "")).partition("\n")[0]  # it quotes the value as Python does
        value = " ".join(value for _, value in re.findall(r"""(['"])(.*?)\1""", reason))
    return f"{name} is {value!r}; {_wanted(argument)}"


def _wanted(argument: ArgumentDefinition) -> str:
    if argument.lowered.choices:
        return f"choose one of {', '.join(sorted({*argument.lowered.choices} - {'None'}))}"
    noun = "whole number" if "int" in str(argument.field.type_stripped) else "number"
    return f"{noun}s are wanted" if argument.lowered.nargs == "*" else f"a {noun} is wanted"


def _missing_or_unknown(event: _errors.MissingArgs | _errors.UnrecognizedArgs, command: Callable[..., object]) -> str:
    tokens = event.tokens if isinstance(event, _errors.UnrecognizedArgs) else event.unrecognized_tokens
    if unknown := _unknown(tokens, command):
        return unknown
    if isinstance(event, _errors.MissingArgs):
        names = [_name(missing.arg) for missing in event.missing_arguments]
        verb = "is" if len(names) == 1 else "are"
        return f"{', '.join(names)} {verb} missing; --help says what is wanted"
    return f"{tokens[0]!r} is one argument too many; --help says what is wanted"


def _unknown(tokens: Sequence[str], command: Callable[..., object]) -> str | None:
    """The first option among the words of a command line that there is not."""
    there = _options(command)
    for token in tokens:
        option = token.partition("=")[0]
        if option.startswith("-") and option not in there:
            near = difflib.get_close_matches(option, there, 1, cutoff=0.75)
            return f"there is no option {option}; " + (f"did you mean {near[0]}?" if near else "--help lists all")
    return None


def _name(argument: ArgumentDefinition) -> str:
    return str(argument.lowered.metavar) if argument.is_positional() else argument.lowered.name_or_flags[-1]


def _options(command: Callable[..., object]) -> Sequence[str]:
    """The names of all options, read from the help text."""
    with contextlib.redirect_stdout(io.StringIO()) as text, contextlib.suppress(SystemExit):
        tyro.cli(command, args=["--help"], config=(tyro.conf.DisallowNone,))
    return re.findall(r"--?[a-z][a-z0-9-]*", text.getvalue())

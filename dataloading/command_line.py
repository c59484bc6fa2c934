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
        message = _message(event, command)
        if message is None:
            return  # tyro says it
        if os.environ.get("LOCAL_RANK", "0") == "0":  # torchrun gives all workers of a machine the same command line
            print(f"error: {message}", file=sys.stderr)
        sys.exit(2)

    with _errors.on_parse_error(refuse):
        # Nobody writes None: an option that may be left out is left out.
        return tyro.cli(command, prog=prog, description=description, config=(tyro.conf.DisallowNone,))


def _message(event: _errors.ParseErrorEvent, command: Callable[..., object]) -> str | None:
    if isinstance(event, _errors.InvalidChoice):
        return f"{_name(event.argument)} is {event.value!r}; {_wanted(event.argument)}"
    if isinstance(event, _errors.InstantiationFailure) and event.argument is not None:
        reason = event.message.partition("\n")[0]  # it quotes the value as Python does
        value = " ".join(value for _, value in re.findall(r"""(['"])(.*?)\1""", reason))
        return f"{_name(event.argument)} is {value!r}; {_wanted(event.argument)}"
    if isinstance(event, _errors.BadValue) and not event.argument.is_positional():
        name = _name(event.argument)
        return f"{name} has no value; write {name} {event.argument.lowered.metavar}"
    if isinstance(event, _errors.BadValue):  # an option stands in its place, perhaps one that there is not
        return _unknown(sys.argv[1:], command) or _missing([event.argument])
    if isinstance(event, _errors.MissingArgs):
        missing = [argument.arg for argument in event.missing_arguments]
        return _unknown(event.unrecognized_tokens, command) or _missing(missing)
    if isinstance(event, _errors.UnrecognizedArgs):
        too_many = f"{event.tokens[0]!r} is one argument too many; --help says what is wanted"
        return _unknown(event.tokens, command) or too_many
    return None


def _wanted(argument: ArgumentDefinition) -> str:
    if argument.lowered.choices:
        return f"choose one of {', '.join(sorted({*argument.lowered.choices} - {'None'}))}"
    noun = "whole number" if "int" in str(argument.field.type_stripped) else "number"
    return f"{noun}s are wanted" if argument.lowered.nargs == "*" else f"a {noun} is wanted"


def _missing(arguments: Sequence[ArgumentDefinition]) -> str:
    verb = "is" if len(arguments) == 1 else "are"
    return f"{', '.join(map(_name, arguments))} {verb} missing; --help says what is wanted"


def _unknown(words: Sequence[str], command: Callable[..., object]) -> str | None:
    """Of the first word that looks like an option and is none."""
    with contextlib.redirect_stdout(io.StringIO()) as text, contextlib.suppress(SystemExit):
        tyro.cli(command, args=["--help"], config=(tyro.conf.DisallowNone,))
    options = re.findall(r"(?<![\w-])--?[a-z][a-z0-9-]*", text.getvalue())
    names = [word.partition("=")[0].replace("_", "-") for word in words if re.match("--?[a-zA-Z]", word)]
    name = next((name for name in names if name not in options), None)
    if name is None:
        return None
    long = [option[2:] for option in options if option.startswith("--")]  # without what is alike in all
    near = difflib.get_close_matches(name[2:], long, 1)
    return f"there is no option {name}; " + (f"did you mean --{near[0]}?" if near else "--help lists all")


def _name(argument: ArgumentDefinition) -> str:
    return str(argument.lowered.metavar) if argument.is_positional() else argument.lowered.name_or_flags[-1]

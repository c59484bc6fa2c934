"""Command lines: parsed by tyro, with our own help, and one line that names the option in place of tyro's boxes."""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Callable, Collection, Sequence
from typing import Annotated, Any, TypeVar

import tyro

# Private modules: no public interface exposes a command's options and the parts of a parse error. pyproject.toml pins
# tyro's version for them.
from tyro import _errors
from tyro._arguments import ArgumentDefinition
from tyro._parsers import ParserSpecification

from dataloading.errors import DatasetError
from dataloading.help_text import flags, help_text
from dataloading.process import print_anything, stop_printing, usage

T = TypeVar("T")

# None is only a default: leaving an option out is the one way to get it.
_CONFIG = (tyro.conf.DisallowNone,)

_parsed: list[Callable[..., object]] = []  # what :func:`parse` was last called with


def optional(metavar: str, *aliases: str) -> Any:
    """Type annotation of an option that may be left out; its help text names the default."""
    return tyro.conf.arg(metavar=metavar, aliases=aliases or None, help_behavior_hint="")


def parse(command: Callable[..., T], *, module: str | None = None, common: Collection[str] = ()) -> T:
    """Call a function, or build a dataclass, with arguments from the command line, and return the result.

    An invalid command line ends the program with code 2 and a one-line message: the option, the values allowed and the
    value found. ``-h`` and ``--help`` print the help and end the program with code 0.

    Args:
        module: that users run, for the help; None for a script.
        common: names of the options that ``--help`` shows; ``--help-all`` shows all. Empty: both show all.
    """

    print_anything()
    prog = usage(module) if module else f"python {sys.argv[0]}"
    _parsed[:] = [command]
    if asked := {"-h", "--help", "--help-all"} & set(sys.argv[1:]):
        print(help_text(_parser(command), prog, () if "--help-all" in asked else common), flush=True)
        sys.exit(0)

    def report(event: _errors.ParseErrorEvent) -> None:
        message = _message(event, command)
        if message is None:
            return  # tyro prints its own message
        if os.environ.get("LOCAL_RANK", "0") == "0":  # under torchrun, all workers get the same command line
            print(f"error: {message}", file=sys.stderr)
        sys.exit(2)

    with _errors.on_parse_error(report):
        return tyro.cli(command, prog=prog, config=_CONFIG)


def run(command: Callable[..., object], *, module: str, interrupted: str = "", common: Collection[str] = ()) -> None:
    """Run a command of this package, and exit with 2 and one line after a `DatasetError`, with 130 after Ctrl-C.

    Args:
        module: as for :func:`parse`.
        interrupted: the line that Ctrl-C prints; none if empty.
        common: as for :func:`parse`.
    """
    try:
        parse(command, module=module, common=common)
    except DatasetError as error:
        print(f"error: {with_option(str(error))}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        sys.exit(stop_printing())
    except KeyboardInterrupt:
        if interrupted:
            print(interrupted, file=sys.stderr)
        sys.exit(130)


def parse_color(option: str, text: str | None) -> tuple[int, int, int] | None:
    """Return a colour that is given as ``R,G,B``; None for none. Raises `DatasetError` if it is no colour."""
    if text is None:
        return None
    levels = [int(level) for level in text.split(",") if level.strip().isdecimal()]
    if len(levels) != 3 or text.count(",") != 2 or max(levels) > 255:
        raise DatasetError(f"{option} must be three numbers from 0 to 255, such as 255,255,255, got {text!r}")
    return levels[0], levels[1], levels[2]


def with_option(message: str) -> str:
    """Return the message of an error about a parameter, with the option of that name in its place.

    Libraries begin such messages with the parameter: "batch_size must be at least 1, got 0" becomes "--batch-size must
    be at least 1, got 0", if the command has that option.
    """
    found = re.match(r"([a-z][a-z_]*)(?: (?=must )|=(?=\S+ ))", message)
    option = f"--{found[1].replace('_', '-')}" if found else ""
    if not found or not _parsed or option not in _options_of(_parsed[0]):
        return message
    return f"{option} {message[found.end() :]}"


def _message(event: _errors.ParseErrorEvent, command: Callable[..., object]) -> str | None:
    """Return the message for a parse error, or None to leave it to tyro."""
    if isinstance(event, _errors.InvalidChoice):
        return f"{_name(event.argument)} must be {_allowed(event.argument)}, got {event.value!r}"
    if isinstance(event, _errors.InstantiationFailure) and event.argument is not None:
        first_line = event.message.partition("\n")[0]  # quotes the value like repr()
        value = " ".join(value for _, value in re.findall(r"""(['"])(.*?)\1""", first_line))
        return f"{_name(event.argument)} must be {_allowed(event.argument)}, got {value!r}"
    if isinstance(event, _errors.BadValue) and not event.argument.is_positional():
        name = _name(event.argument)
        return f"{name} needs a value: {name} {event.argument.lowered.metavar}"
    if isinstance(event, _errors.BadValue):  # an option, perhaps an unknown one, where a positional argument belongs
        return _unknown_option(sys.argv[1:], command) or _missing([event.argument])
    if isinstance(event, _errors.MissingArgs):
        missing = [argument.arg for argument in event.missing_arguments]
        return _unknown_option(event.unrecognized_tokens, command) or _missing(missing)
    if isinstance(event, _errors.UnrecognizedArgs):
        unexpected = f"unexpected argument {event.tokens[0]!r}; see --help"
        return _unknown_option(event.tokens, command) or unexpected
    return None


def _allowed(argument: ArgumentDefinition) -> str:
    if argument.lowered.choices:
        return f"one of {', '.join(sorted({*argument.lowered.choices} - {'None'}))}"
    is_integer = "int" in str(argument.field.type_stripped)
    if argument.lowered.nargs == "*":
        return "integers" if is_integer else "numbers"
    return "an integer" if is_integer else "a number"


def _missing(arguments: Sequence[ArgumentDefinition]) -> str:
    return f"missing {', '.join(map(_name, arguments))}; see --help"


def _unknown_option(words: Sequence[str], command: Callable[..., object]) -> str | None:
    """Return a message about the first word that looks like an option but is not one of the command's options."""
    options = _options_of(command)
    names = [word.partition("=")[0].replace("_", "-") for word in words if re.match("--?[a-zA-Z]", word)]
    name = next((name for name in names if name not in options), None)
    if name is None:
        return None
    long = [option[2:] for option in options if option.startswith("--")]  # dashes would make all options look alike
    near = difflib.get_close_matches(name[2:], long, 1)
    return f"unknown option {name}; " + (f"did you mean --{near[0]}?" if near else "--help-all lists all options")


def _options_of(command: Callable[..., object]) -> list[str]:
    """Return the command's options, with their dashes, in every way to write them."""
    arguments = [item.arg for item in _parser(command).get_args_including_children()]
    names = [name for argument in arguments if not argument.is_positional() for name in flags(argument)]
    return ["-h", "--help", "--help-all", *names]


def _parser(command: Callable[..., object]) -> ParserSpecification:
    """Return the command's arguments as tyro reads them."""
    annotated: Any = Annotated[(command, *_CONFIG)]
    return ParserSpecification.from_callable_or_type(
        annotated,
        markers=set(),
        description=None,
        parent_classes=set(),
        default_instance=tyro.MISSING_NONPROP,
        intern_prefix="",
        extern_prefix="",
        subcommand_prefix="",
        support_single_arg_types=False,
        prog_suffix="",
    )


def _name(argument: ArgumentDefinition) -> str:
    return str(argument.lowered.metavar) if argument.is_positional() else argument.lowered.name_or_flags[-1]

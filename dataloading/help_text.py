"""The text of ``--help``: usage, what the command does, and its options, in lines that fit the terminal."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Collection, Sequence

# Private modules of tyro: no public interface tells what a command's options are. pyproject.toml pins tyro for it.
from tyro._arguments import ArgumentDefinition, flag_to_inverse
from tyro._parsers import ArgWithContext, ParserSpecification

WIDEST = 100
"""Longer lines are hard to read."""

_INDENT = 6


def help_text(parser: ParserSpecification, prog: str, common: Collection[str] = (), width: int | None = None) -> str:
    """Return the text of a command's help.

    Args:
        parser: the command's arguments, as tyro reads them.
        prog: what the user types before them.
        common: names of the options to show, with underscores; all others are only counted. Empty shows all.
        width: of the lines. None means the terminal's, at most `WIDEST`.
    """
    width = width or min(shutil.get_terminal_size().columns, WIDEST)
    arguments = parser.get_args_including_children()
    positional = [item for item in arguments if item.arg.is_positional()]
    options = [item for item in arguments if not item.arg.is_positional()]
    unknown = set(common) - {item.arg.field.intern_name for item in options}
    assert not unknown, f"no options of {prog}: {unknown}"
    shown = [item for item in options if not common or item.arg.field.intern_name in common]
    needed = (item.arg.lowered for item in options if item.arg.lowered.required)
    required = [f"{lowered.name_or_flags[-1]} {lowered.metavar}" for lowered in needed]
    usage = " ".join([prog, *(str(item.arg.lowered.metavar) for item in positional), *required, "[OPTION ...]"])
    lines = [*_wrapped(f"usage: {usage}", width, later=_INDENT), ""]
    for paragraph in parser.description.split("\n\n"):
        lines += [*_wrapped(paragraph, width), ""]
    for item in positional:
        lines += _entry(str(item.arg.lowered.metavar), _description(item.arg), width)
    lines += _groups(shown, width)
    if rest := len(options) - len(shown):
        lines += ["", *_wrapped(f"--help-all shows {rest} more options.", width)]
    return "\n".join(lines)


def flags(argument: ArgumentDefinition) -> list[str]:
    """Return every way to write an option: ``-b`` and ``--batch-size``; ``--crop`` and ``--no-crop``."""
    names = list(argument.lowered.name_or_flags)
    if argument.lowered.action == "boolean_optional_action":
        names += [inverse for name in names if (inverse := flag_to_inverse(name))]
    return names


def _groups(options: Sequence[ArgWithContext], width: int) -> list[str]:
    """The options under the headings of their groups, in the order of their definition."""
    lines: list[str] = []
    heading = None
    for item in options:
        own = item.source_parser.description if item.source_parser.extern_prefix else "Options."
        if own != heading:
            lines += ["", *_wrapped(f"{own.rstrip('.')}:", width)]
            heading = own
        lines += _entry(_flags(item.arg), _description(item.arg), width)
    return lines


def _flags(argument: ArgumentDefinition) -> str:
    """``-b, --batch-size INT``; a switch that is off by default without the name that switches it off."""
    is_off = argument.field.default is False
    names = list(argument.lowered.name_or_flags) if is_off else flags(argument)
    metavar = argument.lowered.metavar or ""
    if metavar.startswith("{") and "[" not in metavar:
        metavar = metavar.replace(",", ", ")  # so that many choices can be wrapped
    return f"{', '.join(names)} {metavar}".rstrip()


def _description(argument: ArgumentDefinition) -> str:
    """The help text, and the default that the text does not name itself."""
    text = argument.field.helptext
    text = " ".join(((text() if callable(text) else text) or "").split())
    hint, default = argument.field.argconf.help_behavior_hint, argument.field.default
    if argument.lowered.required or hint == "" or default is None or default is False or default == ():
        return text
    label = "on" if default is True else str(default)
    return f"{text} Default: {label}."


def _entry(name: str, text: str, width: int) -> list[str]:
    indent = _INDENT if width >= 60 else 4
    return [*_wrapped(name, width, first=2, later=indent), *_wrapped(text, width, first=indent, later=indent)]


def _wrapped(text: str, width: int, *, first: int = 0, later: int = 0) -> list[str]:
    """Lines of at most `width` columns; a word that is longer stays whole, so that it can be copied."""
    return textwrap.wrap(
        text,
        width,
        initial_indent=" " * first,
        subsequent_indent=" " * later,
        break_long_words=False,
        break_on_hyphens=False,
    )

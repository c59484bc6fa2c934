"""The help of commands: what it shows, and that it fits the terminal."""

import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import pytest
from tyro.conf import OmitArgPrefixes, Positional, arg

from dataloading.command_line import optional, parse


@dataclass
class Looks:
    """How it looks."""

    style: Literal["plain", "decorated-with-everything-that-there-is", "neither-plain-nor-decorated"] = "plain"
    """The style."""
    margin: Annotated[float | None, optional("CM", "-m")] = None
    """The margin. Default: that of the paper."""


@dataclass
class Letter:
    """Write a letter to somebody who is far away, in lines that are
    broken in the source, but not where they are broken here.

    A second paragraph.
    """

    to: Annotated[Positional[Path], arg(metavar="NAME")]
    """Who gets it, a long explanation that has to be broken somewhere, because no terminal is wide enough for all of
    its words in one line."""
    paper: Literal["white", "blue"]
    """The paper."""
    copies: Annotated[int, arg(aliases=("-n",))] = 2
    """Number of copies."""
    folds: int = 0
    """How often it is folded."""
    stamp: bool = True
    """Put a stamp on it."""
    express: bool = False
    """Send it by express."""
    sign: bool | None = None
    """Sign it."""
    looks: OmitArgPrefixes[Looks] = field(default_factory=Looks)


def shown(monkeypatch, capsys, *words: str, width: int = 80) -> list[str]:
    """The lines of a help text."""
    monkeypatch.setattr(sys, "argv", ["letter", *words])
    monkeypatch.setenv("COLUMNS", str(width))
    with pytest.raises(SystemExit) as ended:
        parse(Letter, module="letter", common=("copies", "style"))
    assert ended.value.code == 0
    return capsys.readouterr().out.splitlines()


def test_all_of_it(monkeypatch, capsys):
    assert shown(monkeypatch, capsys, "somebody", "--help-all") == [
        "usage: python -m letter NAME --paper {white,blue} [OPTION ...]",
        "",
        "Write a letter to somebody who is far away, in lines that are broken in the",
        "source, but not where they are broken here.",
        "",
        "A second paragraph.",
        "",
        "  NAME",
        "      Who gets it, a long explanation that has to be broken somewhere, because",
        "      no terminal is wide enough for all of its words in one line.",
        "",
        "Options:",
        "  --paper {white, blue}",
        "      The paper.",
        "  -n, --copies INT",
        "      Number of copies. Default: 2.",
        "  --folds INT",
        "      How often it is folded. Default: 0.",
        "  --stamp, --no-stamp",
        "      Put a stamp on it. Default: on.",
        "  --express",
        "      Send it by express.",
        "  --sign, --no-sign",
        "      Sign it.",
        "",
        "How it looks:",
        "  --style {plain, decorated-with-everything-that-there-is,",
        "      neither-plain-nor-decorated}",
        "      The style. Default: plain.",
        "  -m, --margin CM",
        "      The margin. Default: that of the paper.",
    ]


@pytest.mark.parametrize("word", ["-h", "--help"])
def test_help_shows_what_people_use_and_counts_the_rest(monkeypatch, capsys, word):
    lines = shown(monkeypatch, capsys, word)
    names = [name for line in lines if line.startswith("  -") for name in re.findall(r"(?<!\S)--?[a-z]+", line)]
    assert names == ["-n", "--copies", "--style"]
    assert lines[-1] == "--help-all shows 6 more options."


@pytest.mark.parametrize("width", [40, 60, 79, 80, 100, 120, 250])
def test_every_line_fits(monkeypatch, capsys, width):
    lines = shown(monkeypatch, capsys, "--help-all", width=width)
    longest = "      decorated-with-everything-that-there-is,"  # a word stays whole
    assert max(len(line) for line in lines if len(line.split()) > 1) <= min(width, 100)
    assert max(map(len, lines)) <= max(min(width, 100), len(longest))

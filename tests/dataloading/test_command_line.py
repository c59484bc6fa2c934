"""Mistakes on a command line: one line each."""

import sys
from dataclasses import dataclass
from typing import Annotated, Literal

import pytest
from tyro.conf import Positional, arg

from dataloading.command_line import parse


def main(
    source: Annotated[str, Positional, arg(metavar="SOURCE")],
    dest: Annotated[str, Positional, arg(metavar="DEST")],
    size: int = 256,
    label_order: Literal["sorted", "devkit"] = "sorted",
    verify: bool = False,
    workers: int | None = None,
) -> None:
    """A command as dataloading.prepare is one."""


@dataclass
class Shares:
    """Numbers, and a switch that may be left out."""

    shares: tuple[float, ...] = ()
    flip: bool | None = None


@pytest.mark.parametrize(
    ("command", "words", "message"),
    [
        (main, "a b --label-order x", "--label-order is 'x'; choose one of devkit, sorted"),
        (main, "a b --size x", "--size is 'x'; a whole number is wanted"),
        (main, "a b --workers it's", '--workers is "it\'s"; a whole number is wanted'),
        (main, "a b --workers None", "--workers is 'None'; a whole number is wanted"),
        (main, "a b --size --verify", "--size has no value; write --size INT"),
        (main, "a b --sise=5", "there is no option --sise; did you mean --size?"),
        (main, "a --sise 5", "there is no option --sise; did you mean --size?"),
        (main, "a b --zebra", "there is no option --zebra; --help lists all"),
        (main, "a b c", "'c' is one argument too many; --help says what is wanted"),
        (main, "a", "DEST is missing; --help says what is wanted"),
        (main, "", "SOURCE, DEST are missing; --help says what is wanted"),
        (Shares, "--shares 1 x", "--shares is '1 x'; numbers are wanted"),
    ],
)
def test_a_mistake_is_one_line(monkeypatch, capsys, command, words, message):
    monkeypatch.setattr(sys, "argv", ["command", *words.split()])
    with pytest.raises(SystemExit) as ended:
        parse(command)
    assert ended.value.code == 2
    assert capsys.readouterr() == ("", f"error: {message}\n")


def test_of_torchruns_workers_one_says_it(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["command", "--zebra"])
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(SystemExit):
        parse(Shares)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("words", "flip"), [("", None), ("--flip", True), ("--no-flip", False)])
def test_a_switch_needs_no_value(monkeypatch, words, flip):
    monkeypatch.setattr(sys, "argv", ["command", *words.split()])
    assert parse(Shares) == Shares(flip=flip)

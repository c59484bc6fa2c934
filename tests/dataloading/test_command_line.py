"""Mistakes on a command line: one line each."""

import sys
from dataclasses import dataclass
from typing import Annotated, Literal

import pytest
from tyro.conf import Positional, arg

from dataloading.command_line import parse
from tests.dataloading.small_sources import command


@dataclass
class Shares:
    """Numbers, and a switch that may be left out."""

    shares: tuple[float, ...] = ()
    flip: bool | None = None


def work(
    source: Annotated[Positional[str], arg(metavar="SOURCE")],
    dest: Annotated[Positional[str], arg(metavar="DEST")],
    size: int = 256,
    workers: int | None = None,
    order: Literal["sorted", "devkit"] = "sorted",
    verify: bool = False,
) -> None:
    """What a command does; nothing is done here."""
    raise AssertionError


@pytest.mark.parametrize(
    ("what", "words", "message"),
    [
        (work, "a b --order x", "--order is 'x'; choose one of devkit, sorted"),
        (work, "a b --size x", "--size is 'x'; a whole number is wanted"),
        (work, "a b --workers it's", '--workers is "it\'s"; a whole number is wanted'),
        (work, "a b --workers None", "--workers is 'None'; a whole number is wanted"),
        (work, "a b --size --verify", "--size has no value; write --size INT"),
        (work, "a b --sise=5", "there is no option --sise; did you mean --size?"),
        (work, "a --sise 5", "there is no option --sise; did you mean --size?"),
        (work, "a b --zebra", "there is no option --zebra; --help lists all"),
        (work, "a b c", "'c' is one argument too many; --help says what is wanted"),
        (work, "a", "DEST is missing; --help says what is wanted"),
        (work, "", "SOURCE, DEST are missing; --help says what is wanted"),
        (Shares, "--shares 1 x", "--shares is '1 x'; numbers are wanted"),
    ],
)
def test_a_mistake_is_one_line(monkeypatch, capsys, what, words, message):
    monkeypatch.setattr(sys, "argv", ["command", *words.split()])
    with pytest.raises(SystemExit) as ended:
        parse(what)
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


@pytest.mark.parametrize(
    ("module", "words", "message"),
    [
        ("dataloading.prepare", ("a", "b", "--size", "x"), "--size is 'x'; a whole number is wanted"),
        ("dataloading.check", ("a", "--treads", "1"), "there is no option --treads; did you mean --threads?"),
    ],
)
def test_the_commands_do_so(module, words, message):
    done = command(module, *words)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"error: {message}\n")
    assert "(default: None)" not in command(module, "--help").stdout

"""Invalid command lines: a one-line message for each."""

import sys
from dataclasses import dataclass
from typing import Annotated, Literal

import pytest
from tyro.conf import Positional, arg

from dataloading.command_line import parse, with_option
from tests.dataloading.small_sources import command


@dataclass
class Shares:
    """Numbers, and an optional switch."""

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
    """A command; it is parsed, never run."""
    raise AssertionError


def scale(pair: Annotated[Positional[tuple[int, int]], arg(metavar="W H")], size: int = 256) -> None:
    """A command with two values in a row."""
    raise AssertionError


@pytest.mark.parametrize(
    ("what", "words", "message"),
    [
        (scale, "1", "missing W H; see --help"),
        (scale, "1 --sise", "unknown option --sise; did you mean --size?"),
        (scale, "--sise", "unknown option --sise; did you mean --size?"),
        (work, "a b --order x", "--order must be one of devkit, sorted, got 'x'"),
        (work, "a b --size x", "--size must be an integer, got 'x'"),
        (work, "a b --workers it's", '--workers must be an integer, got "it\'s"'),
        (work, "a b --workers None", "--workers must be an integer, got 'None'"),
        (work, "a b --size --verify", "--size needs a value: --size INT"),
        (work, "a b --sise=5", "unknown option --sise; did you mean --size?"),
        (work, "a --sise 5", "unknown option --sise; did you mean --size?"),
        (work, "a b --zebra", "unknown option --zebra; --help-all lists all options"),
        (work, "a b c", "unexpected argument 'c'; see --help"),
        (work, "a", "missing DEST; see --help"),
        (work, "", "missing SOURCE, DEST; see --help"),
        (Shares, "--shares 1 x", "--shares must be numbers, got '1 x'"),
    ],
)
def test_an_invalid_command_line_gets_a_one_line_message(monkeypatch, capsys, what, words, message):
    monkeypatch.setattr(sys, "argv", ["command", *words.split()])
    with pytest.raises(SystemExit) as ended:
        parse(what)
    assert ended.value.code == 2
    assert capsys.readouterr() == ("", f"error: {message}\n")


def test_only_one_of_torchruns_workers_prints_the_message(monkeypatch, capsys):
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
        ("dataloading.prepare", ("a", "b", "--size", "x"), "--size must be an integer, got 'x'"),
        ("dataloading.check", ("a", "--treads", "1"), "unknown option --treads; did you mean --threads?"),
    ],
)
def test_the_commands_print_one_line(module, words, message):
    done = command(module, *words)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"error: {message}\n")
    assert "(default: None)" not in command(module, "--help").stdout


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("size must be 16 to 4096, got 9", "--size must be 16 to 4096, got 9"),
        ("order=devkit needs archives", "--order devkit needs archives"),
        ("no_such must be 1, got 0", "no_such must be 1, got 0"),
        ("size of x must be 1", "size of x must be 1"),
        ("/data/size must be a folder", "/data/size must be a folder"),
    ],
)
def test_a_message_about_a_parameter_names_the_option(monkeypatch, message, expected):
    monkeypatch.setattr(sys, "argv", ["command", "a"])
    with pytest.raises(SystemExit):
        parse(work)
    assert with_option(message) == expected


def test_what_a_library_refuses_names_the_option(tmp_path):
    done = command("dataloading.prepare", "digits", str(tmp_path / "out"), "--shard-images", "0")
    assert (done.returncode, done.stderr) == (2, "error: --shard-images must be 1 to 100000, got 0\n")

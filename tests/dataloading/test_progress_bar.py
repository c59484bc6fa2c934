"""The progress bar and its plain lines."""

import io
import sys
import time

import pytest

from dataloading.progress_bar import ProgressBar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)


def test_without_a_terminal_there_is_a_plain_line_every_ten_seconds(monkeypatch, capsys):
    clock, lines = Clock(monkeypatch), []
    with ProgressBar("preparing x", 1090, done=90) as bar:
        for second, done in ((9.5, 95), (10, 100), (15, 150), (20, 1000), (35, 1001), (39, 1002), (50, 1090)):
            clock.now = 1000.0 + second
            bar.update(done)
            lines.append(capsys.readouterr().err)
    lines.append(capsys.readouterr().err)
    assert lines == [
        "",
        "preparing x: 100 of 1,090 images, 1 images/s, 990 s left\n",  # those of before do not count towards the rate
        "",
        "preparing x: 1,000 of 1,090 images, 46 images/s, 2 s left\n",
        "preparing x: 1,001 of 1,090 images, 26 images/s, 3 s left\n",
        "",
        "preparing x: 1,090 of 1,090 images, 20 images/s\n",
        "preparing x: 1,090 of 1,090 images, 20 images/s\n",
    ]


def test_without_a_total_there_is_no_time_left_and_no_last_line(monkeypatch, capsys):
    clock = Clock(monkeypatch)
    with ProgressBar("listing x", None) as bar:
        clock.now += 10
        bar.update(1234)
    assert capsys.readouterr().err == "listing x: 1,234 images, 123 images/s\n"


def test_before_the_first_image_there_is_no_time_left(monkeypatch, capsys):
    clock = Clock(monkeypatch)
    with ProgressBar("preparing x", 1000) as bar:
        clock.now += 10
        bar.update(0)
        assert capsys.readouterr().err == "preparing x: 0 of 1,000 images, 0 images/s\n"


def test_a_failure_has_no_last_line(capsys):
    with pytest.raises(KeyError), ProgressBar("preparing x", 10):
        raise KeyError
    assert capsys.readouterr().err == ""


def test_nobody_who_listens_is_no_error(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with ProgressBar("preparing x", 10) as bar:
        stream.close()
        bar.update(10)


def test_on_a_terminal_there_is_a_bar_with_rate_and_time_left(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    stream, clock = Terminal(), Clock(monkeypatch)
    monkeypatch.setattr(sys, "stderr", stream)
    with ProgressBar("preparing [x]", 100, done=10) as bar:
        for done in (10, 20, 30, 40):
            clock.now += 5
            bar.update(done)
    assert "preparing [x]" in stream.getvalue()
    assert "40/100" in stream.getvalue()
    assert "2 images/s" in stream.getvalue()
    assert "0:00:" in stream.getvalue()


def test_a_bar_without_a_total_shows_the_count_alone(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    with ProgressBar("listing digits", None) as bar:
        bar.update(1797)
    assert "1,797" in stream.getvalue()
    assert "/?" not in stream.getvalue()


def test_it_can_be_silent_and_count_other_things(capsys):
    with ProgressBar("preparing x", 10, shown=False) as bar:
        bar.update(10)
    assert capsys.readouterr().err == ""
    with ProgressBar("verifying x", 10, unit="bytes") as bar:
        bar.update(10)
    assert "10 of 10 bytes" in capsys.readouterr().err


def test_nothing_is_printed_unless_it_is_shown(monkeypatch, capsys):
    clock = Clock(monkeypatch)
    with ProgressBar("preparing x", 10, shown=False) as bar:
        clock.now += 100
        bar.update(5)
    assert capsys.readouterr() == ("", "")

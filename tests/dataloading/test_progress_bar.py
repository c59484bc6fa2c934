"""The progress bar and its plain lines."""

import io
import sys
import time

from dataloading.progress_bar import ProgressBar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_without_a_terminal_there_are_plain_lines(monkeypatch, capsys):
    monkeypatch.setattr("dataloading.progress_bar._PLAIN_LINE_EVERY", 0.05)
    with ProgressBar("preparing x", 1000) as bar:
        for done in (0, 250, 500):
            time.sleep(0.06)
            bar.update(done)
    first, second, third, last = capsys.readouterr().err.splitlines()
    assert first.startswith("preparing x: 0 of 1,000 images, 0 images/s")
    assert second.startswith("preparing x: 250 of 1,000 images, ")
    assert second.endswith(" s left")
    assert "500 of 1,000 images" in third
    assert "500 of 1,000 images" in last


def test_on_a_terminal_there_is_a_bar_with_rate_and_time_left(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    with ProgressBar("preparing x", 100) as bar:
        for done in (10, 20, 30, 40):
            time.sleep(0.05)
            bar.update(done)
    assert "40/100" in stream.getvalue()
    assert "images/s" in stream.getvalue()
    assert "0:00:" in stream.getvalue()


def test_images_done_before_do_not_count_towards_the_rate():
    bar = ProgressBar("preparing x", 100, done=90)
    time.sleep(0.02)
    bar.update(91)
    assert bar.rate < 1 / 0.02


def test_it_can_be_silent_and_count_other_things(capsys):
    with ProgressBar("preparing x", 10, shown=False) as bar:
        bar.update(10)
    assert capsys.readouterr().err == ""
    with ProgressBar("verifying x", 10, unit="bytes") as bar:
        bar.update(10)
    assert "10 of 10 bytes" in capsys.readouterr().err

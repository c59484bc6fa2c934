import io
import time

from dataloading.progress import ProgressReport


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_elsewhere_than_on_a_terminal_there_are_plain_lines(monkeypatch):
    monkeypatch.setattr("dataloading.progress._PLAIN_LINE_EVERY", 0.05)
    stream = io.StringIO()
    with ProgressReport("preparing x", 1000, stream=stream) as report:
        for done in (0, 250, 500):
            time.sleep(0.06)
            report.update(done)
    first, second, third, last = stream.getvalue().splitlines()
    assert first.startswith("preparing x: 0 of 1,000 images, 0 images/s")
    assert second.startswith("preparing x: 250 of 1,000 images, ")
    assert second.endswith(" s left")
    assert "500 of 1,000 images" in third
    assert "500 of 1,000 images" in last


def test_on_a_terminal_there_is_a_bar_with_rate_and_time_left(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with ProgressReport("preparing x", 100, stream=stream) as report:
        for done in (10, 20, 30, 40):
            time.sleep(0.05)
            report.update(done)
    assert "40/100" in stream.getvalue()
    assert "images/s" in stream.getvalue()
    assert "0:00:" in stream.getvalue()


def test_what_was_done_before_is_not_counted_as_speed():
    report = ProgressReport("preparing x", 100, done=90, stream=io.StringIO())
    time.sleep(0.02)
    report.update(91)
    assert report.rate < 1 / 0.02


def test_it_can_be_silent_and_count_other_things():
    stream = io.StringIO()
    with ProgressReport("preparing x", 10, shown=False, stream=stream) as report:
        report.update(10)
    assert stream.getvalue() == ""
    with ProgressReport("verifying x", 10, unit="bytes", stream=stream) as report:
        report.update(10)
    assert "10 of 10 bytes" in stream.getvalue()

"""metrics.jsonl and TensorBoard events, rates, and the plot."""

import builtins
import errno
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from fastalex.errors import ConfigurationError
from fastalex.metrics import Metrics
from fastalex.training import metrics_log
from fastalex.training.metrics_log import MetricsLog, Rate, Stopwatch, draw_curve, read_metrics

METRICS = Metrics(loss=1.23456789, top1_error=50.0, top5_error=12.5, images=8)


def test_a_line_has_these_fields(tmp_path):
    log = MetricsLog(tmp_path)
    log.write("train", 1, 1, METRICS, Rate(8, 2.0, 0.5), waiting_percent=25.0, learning_rate=0.01)
    log.write("val", 1, 1, METRICS, Rate(8, 4.0, 0.0))
    log.close()
    common = {"loss": 1.234568, "top1_error": 50.0, "top5_error": 12.5, "images": 8}
    rates = {"images_per_second": 4.0, "waiting_percent": 25.0, "learning_rate": 0.01}
    assert read_metrics(tmp_path) == [
        {"kind": "train", "epoch": 1, "step": 1, **common, **rates},
        {"kind": "val", "epoch": 1, "step": 1, **common, "images_per_second": 2.0},
    ]
    assert draw_curve(tmp_path).read_bytes()[:4] == b"\x89PNG"


def test_a_resumed_log_drops_later_lines_and_a_broken_one(tmp_path):
    log = MetricsLog(tmp_path)
    for step in (1, 2, 3):
        log.write("train", 1, step, METRICS, Rate(8, 2.0, 0.5))
    log.close()
    with log.path.open("a") as file:
        file.write('{"kind": "tra')
    log = MetricsLog(tmp_path, 2)
    log.write("train", 1, 3, METRICS, Rate(8, 2.0, 0.5))
    log.close()
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3]


def test_a_log_that_counted_epochs_from_0_goes_on_from_1(tmp_path):
    others = {"loss": 1.0, "top1_error": 50.0, "top5_error": 0.0, "images": 8}
    lines = (("train", 0, 1), ("val", 0, 1), ("train", 1, 2))
    texts = [json.dumps({"kind": kind, "epoch": epoch, "step": step, **others}) for kind, epoch, step in lines]
    (tmp_path / "metrics.jsonl").write_text("\n".join([*texts, ""]))
    log = MetricsLog(tmp_path, 2)
    log.write("val", 3, 3, METRICS, Rate(8, 2.0, 0.5))
    log.close()
    assert [line["epoch"] for line in read_metrics(tmp_path)] == [1, 1, 2, 3]
    assert [json.loads(line)["epoch"] for line in log.path.read_text().splitlines()] == [1, 1, 2, 3]


def test_events_of_a_resumed_run_replace_the_later_ones_before(tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.summary.writer import event_file_writer

    # Files are read in the order of their names: time, process, number. Another process would start at 0 again.
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))
    for resumed_at, steps, loss in ((0, (1, 2, 3), 1.0), (2, (3, 4), 2.0)):
        log = MetricsLog(tmp_path, resumed_at)
        for step in steps:
            log.write("train", 1, step, replace(METRICS, loss=loss), Rate(8, 2.0, 0.5))
        log.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(1, 1), (2, 1), (3, 2), (4, 2)]


def test_a_validation_is_on_disk_before_its_checkpoint_is_made(tmp_path, monkeypatch):
    log, synced = MetricsLog(tmp_path), []
    monkeypatch.setattr(metrics_log, "sync_descriptor", lambda descriptor: synced.append(log.path.read_text()))
    for kind in ("train", "train", "val"):
        assert synced == []
        log.write(kind, 1, 1, METRICS, Rate(8, 2.0, 0.5))
    assert [text.count("\n") for text in synced] == [3]
    log.close()


def test_rates_add_up():
    total = Rate(10, 1.0, 0.5) + Rate(20, 2.0, 0.0)
    assert (total.images_per_second, round(total.waiting_percent, 2)) == (10.0, 16.67)
    assert Rate().images_per_second == Rate().waiting_percent == 0.0


def test_laps_are_counted_from_zero():
    watch = Stopwatch()
    with watch.waiting_for_data():
        watch.images += 8
    first, second = watch.lap(), watch.lap()
    assert (first.images, second.images) == (8, 0)
    assert first.seconds >= first.waiting > 0 == second.waiting


def test_the_curve_needs_no_backend(tmp_path):
    MetricsLog(tmp_path).close()
    code = "import sys; from pathlib import Path; from fastalex.training.metrics_log import draw_curve; "
    code += "draw_curve(Path(sys.argv[1])); import os; print(os.environ['MPLBACKEND'])"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=Path(__file__).parents[3],
        env={**os.environ, "MPLBACKEND": "module://matplotlib_inline.of_a_notebook"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, "module://matplotlib_inline.of_a_notebook\n"), done.stderr
    assert (tmp_path / "curve.png").exists()


def write_some(run: Path) -> MetricsLog:
    log = MetricsLog(run)
    for step in range(1, 40):
        log.write("train", 1, step, METRICS, Rate(8, 2.0, 0.5))
    log.close()
    return log


@pytest.mark.parametrize("error", [ImportError("No module named tensorboard"), AttributeError("a broken\n tensorflow")])
def test_without_tensorboard_one_line_says_so(tmp_path, monkeypatch, capsys, error):
    load = builtins.__import__

    def broken(name, *arguments, **more):
        if name == "torch.utils.tensorboard":
            raise error
        return load(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", broken)
    write_some(tmp_path)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"no TensorBoard events from here on: {' '.join(str(error).split())}; metrics.jsonl has")
    assert len(read_metrics(tmp_path)) == 39


def test_events_that_cannot_be_written_end_with_one_line(tmp_path, monkeypatch, capfd):
    from tensorboard.summary.writer.record_writer import RecordWriter

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(RecordWriter, "write", full)  # in TensorBoard's thread
    write_some(tmp_path)
    err, deadline = "", time.monotonic() + 10
    while not err and time.monotonic() < deadline:  # the thread may not have printed it yet
        err = capfd.readouterr().err
    (line,) = err.splitlines()
    assert line.startswith("no TensorBoard events from here on: [Errno 28] No space left on device; metrics.jsonl has")
    assert len(read_metrics(tmp_path)) == 39


def test_an_editor_may_leave_marks_blank_lines_and_no_last_newline(tmp_path):
    log = write_some(tmp_path)
    text = log.path.read_bytes()
    log.path.write_bytes(b"\xef\xbb\xbf" + text.replace(b"\n", b"\r\n\r\n").rstrip())
    assert len(read_metrics(tmp_path)) == 39


@pytest.mark.parametrize("end", [b'{"kind": "train", "epo', b"\0\0\0\0", b"5", b"\xff\xfe"])
def test_the_torn_end_of_a_log_is_left_out(tmp_path, end):
    log = write_some(tmp_path)
    log.path.write_bytes(log.path.read_bytes() + end)
    assert len(read_metrics(tmp_path)) == 39


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"kind": "train", "epoch": 0', r"line 2: Expecting ',' delimiter"),
        (b"5", "line 2: the content must be an object, got 5"),
        (b'{"kind": "train", "epoch": 0}', "line 2: there is no step"),
        (b'{"kind": "trian"}', "line 2: kind must be one of train, val, got 'trian'"),
        (b'{"kind": "val", "step": "7"}', "line 2: step must be an integer, got '7'"),
        (b'{"kind": "val", "loss": NaN}', "line 2: loss must be a finite number, got nan"),
        (b"\xff\xfe", "line 2: "),
        (b"\0" * 8, "line 2: "),
        (b"[" * 100_000, "line 2: "),
    ],
)
def test_a_damaged_line_is_named_and_nothing_is_lost(tmp_path, line, message):
    log = write_some(tmp_path)
    first, _, *rest = log.path.read_bytes().split(b"\n")
    damaged = b"\n".join([first, line, *rest])
    log.path.write_bytes(damaged)
    for use in (lambda: read_metrics(tmp_path), lambda: MetricsLog(tmp_path, 10), lambda: draw_curve(tmp_path)):
        with pytest.raises(ConfigurationError, match=message) as error:
            use()
        assert str(error.value).startswith(f"{log.path} is damaged in line 2: ")
        assert str(error.value).endswith("; correct or remove that line")
        assert "\n" not in str(error.value)
    assert log.path.read_bytes() == damaged


def test_a_log_knows_which_epochs_it_has(tmp_path):
    assert read_metrics(tmp_path) == []
    log = MetricsLog(tmp_path)
    for epoch, step in ((0, 4), (1, 8)):
        log.write("train", epoch, step, METRICS, Rate(8, 2.0, 0.5))
        log.write("val", epoch, step, METRICS, Rate(8, 2.0, 0.5))
    log.close()
    for step, epochs in ((8, 2), (4, 1), (3, 0)):  # each drops lines of the one before
        log = MetricsLog(tmp_path, step)
        assert log.validated_epochs == epochs
        log.close()

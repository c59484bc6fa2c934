"""What a run prints: its lines, and the bar of a terminal."""

import io
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from fastalex.datasets import open_prepared
from fastalex.metrics import Metrics
from fastalex.network.weights import save_tensors
from fastalex.parallel.layout import Layout, ParallelPlan
from fastalex.pictures import kernel_picture
from fastalex.recipes.edits import Edit
from fastalex.training import reporting
from fastalex.training.counters import Report
from fastalex.training.metrics_log import Rate, draw_curve, read_metrics
from fastalex.training.reporting import Reporter, bar_line, describe_plan, steps_between_reports
from fastalex.training.state import TrainingState

NAMES = ("conv1", "conv2", "fc6")
CPU = torch.device("cpu")


@pytest.fixture
def reporter(config):
    """Prints into a string; three classes, four steps an epoch."""
    reporter = Reporter(config, open_prepared(config.data))
    reporter.console = Console(file=io.StringIO(), soft_wrap=True, highlight=False, markup=False, width=80)
    yield reporter
    reporter.close()


def lines(reporter: Reporter) -> list[str]:
    """What has been printed."""
    file = reporter.console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue().splitlines()


def report(samples: int, loss: float = 1.25, images: int = 16) -> Report:
    """Two steps of the first epoch."""
    state = TrainingState(samples=samples, step=samples // 8)
    return Report(state, Metrics(loss, 37.5, 0.0, images), Rate(images, 0.5, 0.1), 0.002)


def test_building_a_reporter_writes_nothing(reporter, config):
    assert sorted(path.name for path in Path(config.output).iterdir()) == ["config.json"]
    assert lines(reporter) == []


def test_the_start_says_what_is_trained_on_what(reporter, config):
    reporter.start(TrainingState())
    text = lines(reporter)
    assert [line.split()[0] for line in text] == ["data", "network", "recipe", "devices", "precision", "run"]
    assert "32 training and 7 validation images, 3 classes" in text[0]
    assert text[2].endswith("test: 2 epochs, batches of 8, lr 0.002, 0.0002 from epoch 2")
    assert text[3] == "devices     cpu; 2 micro-batches of 4 images"
    assert text[5] == f"run folder  {config.output}"  # in one piece, however long


def test_the_start_shows_all_edits_and_of_a_value_the_last(config):
    texts = ("epochs=3", "epoch=2:color_noise=0", "epoch=2:lr=1e-3", "epoch=2:conv1.weight.lr=1e-5", "epochs=4")
    edits = (Edit(0, "epoch=2:lr=1e-2"), *(Edit(4, text) for text in texts))
    edited = Reporter(replace(config, edits=edits), open_prepared(config.data))
    edited.console = Console(file=io.StringIO(), soft_wrap=True, width=200)
    edited.start(TrainingState())
    edited.close()
    assert lines(edited)[3] == (
        "edits       epoch=2:color_noise=0, epoch=2:lr=1e-3, epoch=2:conv1.weight.lr=1e-5, epochs=4"
    )


def test_a_resumed_run_says_where(reporter):
    reporter.start(TrainingState(epoch=2, step=9))
    assert "resumed     at step 9, in epoch 3" in lines(reporter)


def test_the_epochs_line(reporter):
    reporter.start(TrainingState())
    before = len(lines(reporter))
    with reporter.epoch(TrainingState()):
        reporter.trained(report(16, loss=2.0))
        reporter.trained(report(32, loss=1.0))
    state = TrainingState(epoch=0, step=4, errors=[25.0])
    reporter.validated(state, Metrics(1.0, 25.0, 0.0, 7), Rate(7, 61.2, 0.0))
    assert lines(reporter)[before:] == [
        "epoch 1/2  loss 1.500  val top-1 error 25.00 %  best 25.00 % (chance 66.67 %)  32 images/s  1:02"
    ]


def test_an_epoch_that_only_validates_has_no_loss(reporter):
    reporter.start(TrainingState())
    with reporter.epoch(TrainingState(samples=32)):
        pass
    reporter.validated(TrainingState(epoch=1, errors=[25.0, 50.0]), Metrics(1.0, 50.0, 0.0, 7), Rate(7, 1.0, 0.0))
    assert lines(reporter)[-1] == "epoch 2/2  val top-1 error 50.00 %  best 25.00 % (chance 66.67 %)  0:01"


def test_long_epochs_print_a_line_now_and_then(reporter, monkeypatch):
    clock = iter([0.0, 0.0, 61.0, 61.0, 90.0, 121.5, 121.5])
    monkeypatch.setattr(reporting.time, "monotonic", lambda: next(clock))
    reporter.start(TrainingState())
    before = len(lines(reporter))
    with reporter.epoch(TrainingState()):
        for samples in (8, 16, 24):
            reporter.trained(report(samples, images=8))
        reporter.trained(report(32, images=8))  # the last step: the epoch's line comes next
    assert lines(reporter)[before:] == [
        "epoch 1/2  step 1/4  loss 1.250  error 37.5 %  0:02 left  16 images/s  waiting for data 20 %",
        "epoch 1/2  step 3/4  loss 1.250  error 37.5 %  0:00 left  16 images/s  waiting for data 20 %",
    ]


TITLE = "epoch 12/90  step 5000/5004"
PARTS = ["loss 6.912", "error 99.9 %", "1:12:34 left"]
EXTRA = ["10,240 images/s", "waiting for data 100 %"]


def test_the_bar_fits_80_columns_and_the_rest_goes_first():
    line = bar_line(80, TITLE, 0.5, PARTS, EXTRA)
    assert len(line) == 80
    assert line.startswith(f"{TITLE}  ━━━━━")
    assert line.endswith("─  loss 6.912  error 99.9 %  1:12:34 left")
    wider = bar_line(100, TITLE, 0.5, PARTS, EXTRA)
    assert wider.endswith("left  10,240 images/s")
    assert len(wider) <= 100
    assert bar_line(200, TITLE, 0.5, PARTS, EXTRA).endswith("waiting for data 100 %")


@pytest.mark.parametrize("width", range(20, 130, 7))
def test_no_bar_is_wider_than_its_line(width):
    assert len(bar_line(width, TITLE, 0.5, PARTS, EXTRA)) <= width


@pytest.mark.parametrize(("share", "bar"), [(0.0, "--------"), (0.5, "####----"), (1.0, "########")])
def test_a_bar_is_full_at_the_end(share, bar):
    assert bar_line(11, "t", share, [], (), "#-") == f"t  {bar}"


def test_on_a_terminal_the_bar_moves_and_then_makes_room(reporter):
    out = io.StringIO()
    reporter.console = Console(file=out, force_terminal=True, width=80, soft_wrap=True, markup=False)
    reporter.start(TrainingState())
    with reporter.epoch(TrainingState()):
        reporter.trained(report(16))
        reporter.note("a note")
        reporter.trained(report(32))
    text = out.getvalue()
    assert "epoch 1/2  step 2/4  ━" in text
    assert "epoch 1/2  step 4/4  ━" in text
    assert "a note\n" in text
    assert text.endswith("\x1b[1A\x1b[2K")  # the bar's line is erased


END = (
    "trained and evaluated: top-1 error 30.00 % on 7 validation images; "
    "the best epoch, which evaluate uses, has 20.00 %"
)


def test_the_end_says_what_came_out_and_what_comes_next(reporter, config):
    reporter.start(TrainingState())
    with reporter.epoch(TrainingState()):
        reporter.trained(report(32, images=32))
    state = TrainingState(epoch=2, step=8, seconds=125.2, errors=[20.0, 30.0], skipped=1, replaced={"train": [3]})
    before = len(lines(reporter))
    reporter.end(state, [10**9, 2 * 10**9])
    run, text = config.output, lines(reporter)[before:]
    assert [" ".join(line.split()) for line in text[:-5]] == [
        "top-1 error last 30.00 %, best 20.00 % (epoch 1), chance 66.67 %",
        "time 2:05 of training, 0:00 of it since resuming, 64 images/s, waiting for data 20.0 %",
        "peak memory 1.00 GB, 2.00 GB by worker",
        f"files {run}/best.safetensors, {run}/last.safetensors",
        f"curve {draw_curve(Path(run))}",
        f"kernels {run}/conv1.png",
        "skipped 1 steps with a non-finite loss or gradient",
        "damaged images 1 of train: replaced by others of their class",
    ]
    assert text[-5].endswith(f" -m fastalex.evaluate {run}")
    assert text[-4].endswith(f" -m fastalex.predict {run} IMAGES")
    assert text[-3].endswith(f" -m fastalex.train --resume {run} --epochs 7")
    # 20 % of 7 images are not clearly less than the 67 % of guessing.
    assert text[-2].startswith("note: no error is clearly below that of guessing; ")
    assert text[-1] == END
    reporter.end(replace(state, errors=[0.0, 0.0]), [10**9])
    assert not any(line.startswith("note: ") for line in lines(reporter)[before + len(text) :])
    assert lines(reporter)[-1] == "trained and evaluated: top-1 error 0.00 % on 7 validation images"


def test_the_time_of_training_stands_beside_the_time_that_passed(reporter, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(reporting, "time", SimpleNamespace(monotonic=lambda: now[0]))
    reporter.start(TrainingState())
    with reporter.epoch(TrainingState()):
        reporter.trained(report(32, images=32))
    now[0] += 75
    seconds = reporter._total.seconds
    reporter.end(TrainingState(epoch=1, step=4, seconds=seconds, errors=[20.0]), [10**9])
    (line,) = (line for line in lines(reporter) if line.startswith("time "))
    assert line.split(",")[:2] == ["time          0:00 of training", " 1:15 with validation and saving"]


def end(reporter: Reporter) -> None:
    """A run of one epoch, whose checkpoint has only the first layer."""
    network = reporter.config.network
    kernels = {"conv1.weight": network.build(seed=1).conv1.weight.detach().contiguous()}
    save_tensors(kernels, reporter.config.folder / "last.safetensors", {"fastalex": network.to_json()})
    reporter.start(TrainingState())
    with reporter.epoch(TrainingState()):
        reporter.trained(report(32, images=32))
    reporter.end(TrainingState(epoch=2, step=8, seconds=125.2, errors=[20.0, 30.0]), [10**9])


def test_a_curve_that_cannot_be_drawn_costs_a_line_after_the_results(reporter, config, capsys):
    (Path(config.output) / "curve.png").mkdir()
    end(reporter)
    assert lines(reporter)[-1] == END
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("the curve is left out from here on: ")
    assert line.endswith("; the run goes on")
    assert not [path for path in Path(config.output).iterdir() if path.name.startswith(".curve")]


def test_the_kernels_are_drawn_as_they_were_saved(reporter, config):
    end(reporter)
    with Image.open(config.folder / "conv1.png") as picture:
        expected = kernel_picture(config.network.build(seed=1).conv1.weight, towers=2)
        assert np.array_equal(np.array(picture), np.array(expected))


def test_kernels_that_cannot_be_drawn_cost_a_line(reporter, config, capsys):
    (config.folder / "conv1.png").mkdir()
    end(reporter)
    assert lines(reporter)[-1] == END
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("the picture of the kernels is left out from here on: ")
    assert (config.folder / "curve.png").is_file()


@pytest.mark.parametrize("terminal", [False, True])
def test_output_that_nobody_can_read_does_not_end_a_run(reporter, config, capsys, terminal):
    with open("/dev/full", "w") as full:
        reporter.console = Console(file=full, force_terminal=terminal, width=80, soft_wrap=True, markup=False)
        end(reporter)
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "output is left out from here on: [Errno 28] No space left on device; the run goes on"
    assert len(said) <= 2  # and the bar
    assert (Path(config.output) / "curve.png").exists()
    assert len(read_metrics(Path(config.output))) == 1


def test_a_line_that_the_terminal_cannot_encode_is_printed_all_the_same(reporter):
    with io.TextIOWrapper(io.BytesIO(), encoding="ascii") as file:
        reporter.console = Console(file=file, soft_wrap=True, markup=False)
        reporter.note("größer")
        reporter.note("next")
        assert file.buffer.getvalue().decode().splitlines() == ["gr\\xf6\\xdfer", "next"]


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        (ParallelPlan.single(CPU, NAMES), "cpu"),
        (
            ParallelPlan((CPU, CPU), 1, Layout(1, 2, 2), (NAMES[:2], NAMES[2:]), "eager-1f1b", 4),
            "2 stages: conv1 to conv2 on cpu (worker 0), fc6 on cpu (worker 1); eager-1f1b; 4 micro-batches of "
            "16 images",
        ),
        (
            ParallelPlan((torch.device("cuda", 0), torch.device("cuda", 1)), 2, Layout(4, 1, 1), (NAMES,), "1f1b", 1),
            "4 replicas on 2 machines, 16 images per step each; cuda:0, cuda:1",
        ),
    ],
)
def test_a_plan_in_one_line(plan, expected):
    assert describe_plan(plan, 64) == expected


@pytest.mark.parametrize(("classes", "shown"), [(10, ""), (11, ", top-5 5.50 %")])
def test_many_classes_show_the_top_5_error(reporter, classes, shown):
    reporter.start(TrainingState())
    reporter.dataset = SimpleNamespace(classes=range(classes))
    reporter.validated(TrainingState(errors=[25.0]), Metrics(1.0, 25.0, 5.5, 7), Rate(7, 1.0, 0.0))
    assert f"val top-1 error 25.00 %{shown}  best" in lines(reporter)[-1]


def test_a_run_that_was_stopped_after_the_last_step_of_an_epoch_is_resumed_and_ended(reporter):
    state = TrainingState(epoch=0, samples=32, step=4, seconds=65.4)
    reporter.start(state)
    assert lines(reporter)[-1] == "resumed     at step 4, after the last step of epoch 1, which is validated now"
    with reporter.epoch(state):
        pass
    reporter.validated(replace(state, errors=[50.0]), Metrics(1.0, 50.0, 0.0, 7), Rate(7, 1.0, 0.0))
    reporter.end(replace(state, epoch=1, samples=0, errors=[50.0]), [10**9])
    assert "time          1:05 of training, all of it before resuming" in lines(reporter)


def test_a_log_that_lacks_epochs_is_noted(reporter, config):
    reporter.start(TrainingState(epoch=2, step=8))
    assert lines(reporter)[-1] == (
        f"note: {config.output}/metrics.jsonl has the validation of 0 of 2 finished epochs; the run goes on, and the "
        "curve will have a gap"
    )


def test_a_brief_run_prints_its_notes_alone(config):
    brief = Reporter(config, open_prepared(config.data), is_brief=True)
    brief.console = Console(file=io.StringIO(), soft_wrap=True, width=200)
    brief.note("a note")
    end(brief)
    brief.validated(TrainingState(errors=[25.0]), Metrics(1.0, 25.0, 5.5, 7), Rate(7, 1.0, 0.0))
    brief.close()
    assert lines(brief) == ["a note"]
    assert len(read_metrics(config.folder)) == 2
    assert (config.folder / "curve.png").exists()


@pytest.mark.parametrize(("steps", "between"), [(1, 1), (39, 1), (40, 2), (1000, 50), (10_009, 50)])
def test_reports_come_often_but_not_every_step(steps, between):
    assert steps_between_reports(steps) == between

"""What a reproduction refuses, and how its steps end. `whole.py` makes one from the data to its page."""

import signal
from dataclasses import replace

import pytest

from fastalex.errors import ConfigurationError, Interrupted, WorkerError
from fastalex.reproduction import session
from fastalex.reproduction.steps import Step
from tests.fastalex.reproduction.conftest import job_on


def test_other_options_and_other_folders_are_refused(animals, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    job = job_on(animals, tmp_path / "out", "table2", seeds=2, epochs=3)
    session.reproduce(replace(job, plan_only=True))
    assert "network on images, seed 1" in capsys.readouterr().out
    session._check_record(job, True)
    for change, message in (
        ({"epochs": 7}, r"was made with epochs 3, got 7; give the same data and options, or choose another --output"),
        ({"lr": 0.5}, r"was made with lr the default, got 0.5"),
    ):
        other = replace(job, settings=replace(job.settings, **change))
        with pytest.raises(ConfigurationError, match=message):
            session.reproduce(other)
    with pytest.raises(ConfigurationError, match=r"was made with the data set pretraining the default, got"):
        session.reproduce(job_on(animals, job.output, "table2", seeds=2, epochs=3, pretraining=animals))
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "text").write_text("mine")
    with pytest.raises(ConfigurationError, match="holds no reproduction; choose another --output"):
        session.reproduce(replace(job, output=mine))
    assert [path.name for path in mine.iterdir() if path.name != ".lock"] == ["text"]


@pytest.mark.parametrize(
    ("script", "error", "message"),
    [
        ("raise SystemExit(2)", ConfigurationError, "a failed, for the reason above; mend it, and give the same"),
        ("raise SystemExit(1)", WorkerError, "a failed, for the reason above; mend it, and give the same command"),
        ("", WorkerError, "a ended without its result .*x; run it alone to see why"),
        ("import os; os.kill(os.getpid(), 15)", Interrupted, "stopped; the same command goes on from here"),
        ("raise SystemExit(130)", Interrupted, "stopped; the same command goes on from here"),
    ],
)
def test_a_step_that_fails_is_named(tmp_path, monkeypatch, script, error, message):
    (tmp_path / "step_of_test.py").write_text(script)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(error, match=message):
        session._run(Step("a", ("step_of_test",), tmp_path / "x"), 1, 1)


def test_signals_reach_the_step(tmp_path, monkeypatch):
    """As from a batch system, which signals the first process only."""
    (tmp_path / "step_of_test.py").write_text(
        "import os, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(open('saved', 'w').close()))\n"
        "os.kill(os.getppid(), signal.SIGTERM)\n"
        "time.sleep(60)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted) as stopped:
        session._run(Step("a", ("step_of_test",), tmp_path / "x"), 1, 1)
    assert stopped.value.signal_number == signal.SIGTERM
    assert (tmp_path / "saved").exists()
    assert signal.getsignal(signal.SIGTERM) is before

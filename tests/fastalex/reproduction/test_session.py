"""A reproduction from the data to its page, killed on the way; and what it refuses."""

import json
import re
import signal
import subprocess
import time
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

from fastalex.errors import ConfigurationError, Interrupted, WorkerError
from fastalex.reproduction import session
from fastalex.reproduction.steps import Step
from fastalex.training.checkpoint import finished_epochs
from fastalex.training.metrics_log import read_metrics
from tests.fastalex.commands import assert_all_end, children, command, command_here, start
from tests.fastalex.reproduction.conftest import job_on

SECONDS = 60


class Links(HTMLParser):
    """The addresses that a page names."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if name in ("href", "src")]


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + SECONDS
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, f"{path} did not come"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def finished(animals, tmp_path_factory):
    """Table 2 and figures 3 and 4, with two networks: killed in the first training, and continued."""
    folder = tmp_path_factory.mktemp("reproduction")
    words = [
        "fastalex.reproduce",
        "table2",
        "figure2",
        "figure3",
        "figure4",
        animals,
        "--output",
        "out",
        "--seeds",
        "2",
    ]
    words += ["--width", "0.0625", "--epochs", "3", "-b", "8", "--devices", "cpu"]
    process = start(folder, *words)
    first = folder / "out" / "runs" / "images-network-0"
    wait_for(first / "last.safetensors", process)
    workers = children(process.pid)
    process.kill()
    process.communicate(timeout=SECONDS)
    assert_all_end(workers)
    code, out, err = command(folder, *words)
    assert code == 0, err
    return folder, words, out


def test_it_goes_on_where_it_was_killed(finished):
    folder, words, out = finished
    assert re.search(r"the network over the devices; its speed +│ +done", out)
    assert "measuring" not in out
    runs = [folder / "out" / "runs" / f"images-network-{seed}" for seed in (0, 1)]
    for run in runs:
        assert finished_epochs(run) == 3
        assert [line["epoch"] for line in read_metrics(run) if line["kind"] == "val"] == [1, 2, 3]
    made = {path: path.stat().st_mtime_ns for run in runs for path in run.rglob("*") if path.is_file()}
    code, out, err = command(folder, *words)
    assert code == 0, err
    assert "---" not in out  # nothing to do
    assert {path: path.stat().st_mtime_ns for run in runs for path in run.rglob("*") if path.is_file()} == made


def test_the_table_is_what_the_networks_answer(finished):
    folder, _, _ = finished
    written = json.loads((folder / "out" / "table2.json").read_text())
    assert written["is_imagenet"] is False
    rows = {row["model"]: row for row in written["rows"]}
    assert list(rows) == ["1 CNN", "5 CNNs", "1 CNN*", "7 CNNs*"]
    runs = [folder / "out" / "runs" / f"images-network-{seed}" for seed in (0, 1)]
    for model, networks in (("1 CNN", None), ("5 CNNs", runs)):
        for number, error in enumerate(rows[model]["values"]):
            words = networks or [runs[number]]
            code, out, err = command_here(
                folder, "fastalex.evaluate", *words, "--crops", "10", "--weights", "last", "--device", "cpu"
            )
            assert code == 0, err
            found = re.findall(r"^top-\d error +([\d.]+) %", out, re.MULTILINE)
            assert [f"{value:.2f}" for value in error] == found
    assert rows["1 CNN"]["published"]["top1_error"] == 40.7
    assert rows["1 CNN*"]["top1_error"] is None
    assert rows["1 CNN*"]["measured_on"] == "needs a data set to pre-train on"
    table = (folder / "out" / "table2.md").read_text()
    assert "not ILSVRC-2012" in table
    assert "| 1 CNN | 40.7 | 18.2 |" in table


def test_the_page_holds_everything_and_links_to_files_that_exist(finished):
    folder, _, _ = finished
    page = folder / "out" / "index.html"
    text = page.read_text()
    for heading in ("Table 2", "Figure 2", "Figure 3", "Figure 4"):
        assert heading in text
    assert "Table 1" not in text
    assert text.count("data:image/png;base64,") == 2
    assert text.count("data:image/svg+xml;base64,") == 1
    links = [link for link in Links(text).found if not link.startswith("data:")]
    assert {"table2.json", "figure2.svg", "figure3.svg", "figure4.json", "report.html"} <= set(links)
    assert all((page.parent / unquote(link)).is_file() for link in links)


def test_other_options_and_other_folders_are_refused(finished, animals, tmp_path):
    folder, _, _ = finished
    job = job_on(animals, folder / "out", "table2", seeds=2, epochs=3)
    session._check_record(job, True)
    for change, message in (
        ({"epochs": 7}, r"was made with epochs 3, got 7; give the same data and options, or choose another --output"),
        ({"lr": 0.5}, r"was made with lr the default, got 0.5"),
    ):
        other = replace(job, settings=replace(job.settings, **change))
        with pytest.raises(ConfigurationError, match=message):
            session.reproduce(other)
    with pytest.raises(ConfigurationError, match=r"was made with the data set pretraining the default, got"):
        session.reproduce(job_on(animals, folder / "out", "table2", seeds=2, epochs=3, pretraining=animals))
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(ConfigurationError, match="holds no reproduction; choose another --output"):
        session.reproduce(replace(job, output=tmp_path))
    assert [path.name for path in tmp_path.iterdir() if path.name != ".lock"] == ["mine"]


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

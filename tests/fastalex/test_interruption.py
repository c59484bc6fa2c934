"""Commands that are interrupted or lose a worker: what they print, what they leave behind, and how they resume."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fastalex import cli, train
from fastalex.errors import Aborted, WorkerError
from fastalex.training import session
from fastalex.training.checkpoint import latest_checkpoint, load_state
from fastalex.training.metrics_log import read_metrics
from tests.dataloading.small_sources import started
from tests.fastalex.commands import (
    SECONDS_TO_END,
    SMALL,
    assert_all_end,
    children,
    command_here,
    refused,
    start,
    wait_for_steps,
)
from tests.fastalex.conftest import save_run


def test_ctrl_c_while_modules_are_imported_prints_no_traceback():
    process = started("fastalex.plan", "--arch", "krizhevsky")
    while process.poll() is None and "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=SECONDS_TO_END)
    assert process.returncode == -signal.SIGINT
    assert err == ""


@pytest.mark.parametrize("devices", ["cpu", "cpu,cpu"])
def test_ctrl_c_leaves_a_run_that_can_be_resumed(tmp_path, prepared, devices):
    arguments = ["fastalex.train", prepared, *SMALL, "--epochs", "500", "--devices", devices, "--output", "run"]
    process = start(tmp_path, *arguments)
    wait_for_steps(tmp_path / "run", 3)
    workers = children(process.pid)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=SECONDS_TO_END)
    assert process.returncode == 128 + signal.SIGINT, err
    notice, result = err.splitlines()
    several, alone = "saving a checkpoint", "press Ctrl-C again to abort without saving"
    assert notice == f"stopping after this step; {several if ',' in devices else alone}"
    assert f"with: {sys.executable} -m fastalex.train --resume run" in result
    assert_all_end(workers)
    progress = load_state(latest_checkpoint(tmp_path / "run"))
    assert progress.step >= 3
    epochs = str(progress.epoch + 1)
    code, out, err = command_here(tmp_path, "fastalex.train", "--resume", "run", "--epochs", epochs, "--devices", "cpu")
    assert code == 0, err
    assert f"at step {progress.step}" in out
    assert read_metrics(tmp_path / "run")[-1]["step"] == 4 * (progress.epoch + 1)


@pytest.mark.parametrize(("devices", "number"), [("cpu", signal.SIGUSR1), ("cpu,cpu", signal.SIGHUP)])
def test_warnings_of_schedulers_and_closed_terminals_save_a_checkpoint(tmp_path, prepared, devices, number):
    arguments = ["fastalex.train", prepared, *SMALL, "--epochs", "500", "--devices", devices, "--output", "run"]
    process = start(tmp_path, *arguments)
    wait_for_steps(tmp_path / "run", 6)
    workers = children(process.pid)
    message = refused(tmp_path, "fastalex.train", prepared, "--output", "run", "--devices", "cpu")
    assert message.startswith(f"error: run is in use by process {process.pid} on host ")
    message = refused(tmp_path, "fastalex.train", "--resume", "run")
    assert message.startswith(f"error: run is in use by process {process.pid} on host ")
    process.send_signal(number)
    _, err = process.communicate(timeout=SECONDS_TO_END)
    assert process.returncode == 128 + number, err
    assert err.startswith("stopping after this step; ")
    assert "stopped and saved at step" in err.splitlines()[-1]
    assert_all_end(workers)
    assert load_state(latest_checkpoint(tmp_path / "run")).step >= 5
    assert not (tmp_path / "run" / ".lock").exists()


def test_output_that_nobody_reads_does_not_end_a_run(tmp_path, prepared):
    process = start(
        tmp_path, "fastalex.train", prepared, *SMALL, "--epochs", "2", "--devices", "cpu", "--output", "run"
    )
    assert process.stdout is not None
    process.stdout.close()  # as by "| head"
    assert process.stderr is not None
    err = process.stderr.read()
    assert process.wait(SECONDS_TO_END) == 0, err
    assert err.splitlines() == ["output is left out from here on: [Errno 32] Broken pipe; the run goes on"]
    assert load_state(latest_checkpoint(tmp_path / "run")).epoch == 2


@pytest.mark.parametrize("resumed", [False, True])
def test_a_run_that_is_interrupted_early_can_be_resumed_with_or_without_a_checkpoint(tmp_path, prepared, resumed):
    arguments = [prepared, *SMALL, "--output", "run"]
    if resumed:
        save_run(tmp_path / "run", prepared)
        arguments = ["--resume", "run", "--epochs", "500"]
    process = start(tmp_path, "fastalex.train", *arguments, "--devices", "cpu,cpu")
    deadline = time.monotonic() + 120
    while sum("libtorch" in Path(f"/proc/{pid}/maps").read_text() for pid in children(process.pid)) < 2:
        assert time.monotonic() < deadline, "no workers were started"
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)  # the workers still import torch
    _, err = process.communicate(timeout=SECONDS_TO_END)
    assert process.returncode == 128 + signal.SIGINT
    assert err == f"interrupted; resume with: {sys.executable} -m fastalex.train --resume run\n"
    if not resumed:
        code, out, err = command_here(
            tmp_path, "fastalex.train", "--resume", "run", "--epochs", "1", "--devices", "cpu"
        )
        assert code == 0, err
        assert "resumed" not in out


def kill_a_worker(process: subprocess.Popen) -> list[int]:
    """Kill a worker, and return the ids of all processes that the command had started."""
    everyone = children(process.pid)
    os.kill(max(pid for pid in everyone if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()), signal.SIGKILL)
    return everyone


def test_killed_workers_are_restarted_from_the_checkpoint_and_then_end_the_command(tmp_path, prepared):
    arguments = ["fastalex.train", prepared, *SMALL, "--epochs", "500", "--devices", "cpu,cpu", "--output", "run"]
    process = start(tmp_path, *arguments, "--max-restarts", "1")
    wait_for_steps(tmp_path / "run", 6)
    decided = (tmp_path / "run" / "config.json").read_text()
    started = kill_a_worker(process)
    assert_all_end([pid for pid in started if pid not in children(process.pid)])
    checkpoint = load_state(latest_checkpoint(tmp_path / "run"))
    assert checkpoint.step >= 4  # the last epoch's end
    deadline = time.monotonic() + 60
    while load_state(latest_checkpoint(tmp_path / "run")).step < checkpoint.step + 4:
        assert time.monotonic() < deadline, "the run does not continue"
        time.sleep(0.05)
    restarted = kill_a_worker(process)
    _, err = process.communicate(timeout=SECONDS_TO_END)
    assert process.returncode == 1
    said = [line for line in err.splitlines() if not line.startswith("[")]  # torch logs that a connection was lost
    assert len(said) == 2, err
    first, last = said
    assert re.match(r"worker [01] \(cpu\) was killed by SIGKILL; restarting from the last checkpoint \(1 of 1\)", first)
    assert re.match(r"error: worker [01] \(cpu\) was killed by SIGKILL", last)
    assert_all_end(restarted)
    steps = [line["step"] for line in read_metrics(tmp_path / "run") if line["kind"] == "train"]
    assert steps == list(range(1, len(steps) + 1))
    assert (tmp_path / "run" / "config.json").read_text() == decided


@pytest.mark.parametrize(
    ("error", "code", "start"),
    [
        (Aborted("interrupted", signal.SIGTERM), 128 + signal.SIGTERM, "interrupted"),
        (KeyboardInterrupt(), 128 + signal.SIGINT, "interrupted"),
        (WorkerError("worker 1 (cpu) was killed by SIGKILL"), 1, "error: worker 1 (cpu) was killed by SIGKILL"),
    ],
)
def test_what_disturbs_the_end_of_a_run_does_not_call_it_unfinished(
    tmp_path, monkeypatch, capsys, prepared, error, code, start
):
    """Its workers take a moment to end after the last checkpoint."""

    def train_and_be_disturbed(worker, config, *_, **__):
        (tmp_path / "config.json").write_bytes((config.folder / "config.json").read_bytes())
        shutil.rmtree(config.folder)
        save_run(config.folder, prepared)
        raise error

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(session, "run_workers", train_and_be_disturbed)
    for epochs in (1, 2):  # one is finished and saved
        monkeypatch.setattr(
            sys, "argv", ["train", str(prepared), *SMALL, "--epochs", str(epochs), "--output", f"run{epochs}"]
        )
        with pytest.raises(SystemExit) as ended:
            cli.main(train.main)
        assert ended.value.code == code
        err = capsys.readouterr().err
        if epochs == 1:
            remedy = (
                f"the run is finished and saved in run1; evaluate it with: {sys.executable} -m fastalex.evaluate run1"
            )
        else:
            remedy = f"resume with: {sys.executable} -m fastalex.train --resume run2"
        assert err == f"{start}; {remedy}\n"

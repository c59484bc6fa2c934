"""The root cause of a failure, from the workers' error files and exit codes."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from dataloading import DatasetError
from dataloading.errors import DamagedSample
from fastalex.errors import Aborted, ConfigurationError, Interrupted, NonFiniteLoss, WorkerError
from fastalex.evaluation.trained_network import UnknownMeanImage
from fastalex.parallel import failures
from fastalex.parallel.failures import FailureReport, as_recorded, read_reports, root_cause, watch_peers

DEVICES = [torch.device("cpu")] * 2
BUG = FailureReport(1, "RuntimeError", "a tensor went missing", "Traceback: a tensor went missing")
VICTIM = FailureReport(0, "DistBackendError", "ncclRemoteError: a remote process exited prematurely", "Traceback: nccl")


def write_report(folder: Path, rank: int, text: str, seconds: int) -> None:
    """An error file as torch writes it."""
    path = folder / "run" / "attempt_0" / str(rank) / "error.json"
    path.parent.mkdir(parents=True)
    extra = {"py_callstack": f"Traceback: {text}", "timestamp": "0"}
    path.write_text(json.dumps({"message": {"message": text, "extraInfo": extra}}))
    os.utime(path, (seconds, seconds))


def test_error_files_are_read_in_the_order_of_time(tmp_path):
    write_report(tmp_path, 0, "RuntimeError: second: with a colon", 2)
    write_report(tmp_path, 1, "ConfigurationError: first", 1)
    write_report(tmp_path, 2, "KeyError: third", 3)
    (tmp_path / "run" / "attempt_0" / "2" / "error.json").write_text('{"mess')  # killed while writing
    assert read_reports(tmp_path) == [
        FailureReport(1, "ConfigurationError", "first", "Traceback: ConfigurationError: first"),
        FailureReport(0, "RuntimeError", "second: with a colon", "Traceback: RuntimeError: second: with a colon"),
    ]


@pytest.mark.parametrize("kind", [ConfigurationError, DatasetError, NonFiniteLoss])
def test_an_error_of_the_user_keeps_its_type_and_message(kind):
    error = root_cause([BUG, FailureReport(0, kind.__name__, "lower it", "")], {1: 1}, DEVICES)
    assert (type(error), str(error)) == (kind, "lower it")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (DamagedSample("sample 3"), DatasetError),
        (UnknownMeanImage("gone"), ConfigurationError),
        (NonFiniteLoss("the loss is nan"), NonFiniteLoss),
        (Interrupted("at step 3", signal.SIGTERM), Interrupted),
        (KeyError("a bug"), KeyError),
    ],
)
def test_an_error_of_the_user_is_recorded_as_the_kind_that_the_parent_knows(error, kind):
    recorded = as_recorded(error)
    assert (type(recorded), str(recorded)) == (kind, str(error))


@pytest.mark.parametrize(
    ("exit_codes", "parents_signal", "expected"),
    [({}, signal.SIGTERM, signal.SIGTERM), ({1: 143}, 0, signal.SIGTERM), ({0: 1}, 0, signal.SIGINT)],
)
def test_an_interruption_keeps_its_signal(exit_codes, parents_signal, expected):
    error = root_cause([FailureReport(0, "Interrupted", "at step 3", "")], exit_codes, DEVICES, parents_signal)
    assert isinstance(error, Interrupted)
    assert (str(error), error.signal_number) == ("at step 3", expected)


def test_a_signal_before_any_report_aborts():
    error = root_cause([VICTIM], {}, DEVICES, signal.SIGINT)
    assert isinstance(error, Aborted)
    assert error.signal_number == signal.SIGINT


def test_the_worker_that_failed_is_named_and_not_its_victim():
    error = root_cause([VICTIM, BUG], {0: 1}, DEVICES)
    assert isinstance(error, WorkerError)
    assert str(error) == "worker 1 (cpu) failed:\nTraceback: a tensor went missing"


@pytest.mark.parametrize("reports", [[], [VICTIM]])
def test_a_killed_worker_goes_before_one_that_nccl_aborted(reports):
    exit_codes = {0: -signal.SIGABRT, 1: -signal.SIGKILL}
    assert str(root_cause(reports, exit_codes, DEVICES)) == "worker 1 (cpu) was killed by SIGKILL"


def test_workers_that_left_no_cause():
    assert str(root_cause([VICTIM], {0: 1}, DEVICES)).startswith("worker 0 (cpu) lost another worker, which left no")
    assert str(root_cause([], {0: 3}, DEVICES)) == "worker 0 (cpu) with exit code 3 ended without a message"


@pytest.fixture
def exits(monkeypatch):
    """The codes with which this process would have been ended."""
    codes = []
    monkeypatch.setattr(failures, "_GRACE", 0.5)
    monkeypatch.setattr(failures.os, "_exit", codes.append)
    return codes


@pytest.fixture
def ended_peer(tmp_path):
    """The file of a worker that has ended without removing it."""
    with subprocess.Popen(["true"]) as process:
        process.wait()
        path = tmp_path / f"{process.pid}.pid"
        path.touch()
        return path


def test_a_worker_ends_soon_after_a_peer_has_died(tmp_path, exits, ended_peer):
    with watch_peers(tmp_path):
        deadline = time.monotonic() + 30
        while not exits:
            assert time.monotonic() < deadline, "it went on without its peer"
            time.sleep(0.05)
    assert set(exits) == {1}
    assert list(tmp_path.iterdir()) == [ended_peer]


def test_a_worker_goes_on_while_peers_leave_in_agreement(tmp_path, exits, ended_peer, monkeypatch):
    looks = []

    def leaves_after_being_listed(pid):
        looks.append(pid)
        if pid == ended_peer.stem:
            ended_peer.unlink()
        return pid != ended_peer.stem

    monkeypatch.setattr(failures, "_is_running", leaves_after_being_listed)
    with watch_peers(tmp_path):
        deadline = time.monotonic() + 30
        while looks.count(str(os.getpid())) < 2:
            assert time.monotonic() < deadline, "it no longer watches"
            time.sleep(0.05)
    assert exits == []
    assert list(tmp_path.iterdir()) == []


def test_a_worker_that_has_finished_is_not_ended(tmp_path, exits, ended_peer):
    with watch_peers(tmp_path):
        time.sleep(1.2)  # the peer is missed, and the grace has begun
    time.sleep(1)
    assert exits == []
    assert list(tmp_path.iterdir()) == [ended_peer]

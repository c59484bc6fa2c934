"""Worker processes end with the command, however it ends, and its root cause is raised."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from dataloading import DatasetError
from fastalex.errors import ConfigurationError, Interrupted, WorkerError
from fastalex.parallel import launch
from fastalex.parallel.launch import run_workers
from fastalex.parallel.world import World
from tests.dataloading.damage import copied, overwritten
from tests.fastalex.workers import end_well, fail_on_last, read_images, share, wait_for_the_end

ROOT = Path(__file__).parents[3]
CPUS = [torch.device("cpu")] * 2
SECONDS_TO_END = 30


def test_an_error_of_the_data_is_one_line_of_the_parents_and_signal_handlers_are_put_back(prepared, tmp_path):
    overwritten(copied(prepared, tmp_path / "data"), "train", 13, b"?")
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGQUIT)
    before = [signal.getsignal(number) for number in numbers]
    with pytest.raises(DatasetError, match=r"^sample 13 of train \(.*train-000000.tar, offset \d+\) is dam") as error:
        run_workers(read_images, str(tmp_path / "data"), CPUS)
    assert "\n" not in str(error.value)
    assert [signal.getsignal(number) for number in numbers] == before


def test_the_cause_of_a_failure_is_named_and_not_its_victim():
    with pytest.raises(WorkerError, match=r"(?s)worker 1 \(cpu\) failed.*RuntimeError: the thing must be 4"):
        run_workers(fail_on_last, None, CPUS)


def test_a_worker_that_is_done_leaves_before_the_interpreter_shuts_down(tmp_path):
    """Beside gloo's threads a shutdown aborted now and then, after all work was done."""
    run_workers(end_well, str(tmp_path), CPUS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.left", "1.left"]


def test_workers_meet_whatever_this_machine_is_called_share_what_they_have_and_stop_together(monkeypatch, tmp_path):
    """They waited nine minutes for a name that does not resolve."""
    monkeypatch.setattr(socket, "getfqdn", lambda name="": "no-such-host.invalid")
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    with pytest.raises(Interrupted, match=r"^stopped$") as caught:
        run_workers(share, str(tmp_path), CPUS)
    assert caught.value.signal_number == signal.SIGTERM
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    gathered = {"w0": [1.0, 1.0], "b0": [1.0], "w1": [2.0, 2.0], "b1": [1.0]}
    assert (first.pop("gathered"), second.pop("gathered")) == (gathered, {})
    expected = {
        "sum": [3.0, 20.0],
        "minimum": [3.0],
        "objects": ["worker 0", "worker 1"],
        "from first": "made by 0",
        "error": "integer division or modulo by zero",
        "stop": [False, True, signal.SIGTERM],
    }
    assert first == second == expected


@pytest.fixture
def launches(monkeypatch):
    """A function that lets the launches of several workers end with these errors, or well with None.

    ``test_interruption.py`` and ``training/test_saving.py`` restart real workers.
    """

    def end_with(*outcomes: Exception | None) -> list[tuple]:
        left, made = iter(outcomes), []

        def launched(*arguments: object) -> None:
            made.append(arguments)
            if (error := next(left)) is not None:
                raise error

        monkeypatch.setattr(launch, "_run_elastic", launched)
        return made

    return end_with


def test_workers_are_started_again_as_often_as_allowed(launches, capfd):
    killed = [WorkerError(f"worker {rank} (cpu) was killed by SIGKILL:\nmore") for rank in range(3)]
    for outcomes in ([*killed[:2], None], killed):
        made = launches(*outcomes)
        with contextlib.nullcontext() if outcomes[2] is None else pytest.raises(WorkerError) as caught:
            run_workers(share, "argument", CPUS, restarts=2, saves_checkpoint=True)
        assert caught is None or caught.value is killed[2]
        assert made == [(share, "argument", CPUS, True)] * 3
        assert capfd.readouterr().err.splitlines() == [
            f"worker {n} (cpu) was killed by SIGKILL; restarting from the last checkpoint ({n + 1} of 2)"
            for n in range(2)
        ]


def test_an_error_of_the_user_is_not_tried_again(launches):
    made = launches(ConfigurationError("the thing must be 4, got 3"))
    with pytest.raises(ConfigurationError, match=r"^the thing must be 4, got 3$"):
        run_workers(share, None, CPUS[:1], restarts=3)
    assert len(made) == 1


@pytest.mark.parametrize(
    ("given", "cores", "workers", "threads"),
    [
        (None, 8, 2, 8),  # twice the share of each
        (None, 8, 3, 5),
        (None, 8, 1, 8),
        (None, 2, 8, 1),
        ("3", 8, 2, 3),
        ("4,2", 8, 2, 4),
        (" 6 ", 8, 2, 6),
        *((ignored, 8, 4, 4) for ignored in ("", "0", "many", "-1", str(2**31))),
    ],
)
def test_threads_of_a_worker_on_a_cpu(monkeypatch, given, cores, workers, threads):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    assert launch.cpu_threads(workers) == threads


def start_parent(worker: str, folder: Path) -> subprocess.Popen[str]:
    """A process that runs two workers, and exits with 100 + n after signal n."""
    code = (
        "import sys, torch\n"
        "from fastalex.errors import Interrupted\n"
        "from fastalex.parallel.launch import run_workers\n"
        f"from tests.fastalex.workers import {worker}\n"
        f"try: run_workers({worker}, sys.argv[1], [torch.device('cpu')] * 2, saves_checkpoint=True)\n"
        "except Interrupted as error: sys.exit(100 + error.signal_number)"
    )
    return subprocess.Popen([sys.executable, "-c", code, str(folder)], cwd=ROOT, stderr=subprocess.PIPE, text=True)


def test_no_worker_outlives_a_parent_that_is_killed(tmp_path: Path):
    parent = start_parent("wait_for_the_end", tmp_path)
    try:
        pids = wait_for_pids(tmp_path)
        parent.kill()
        assert parent.wait(SECONDS_TO_END) == -signal.SIGKILL
        deadline = time.monotonic() + SECONDS_TO_END
        while any(is_alive(pid) for pid in pids):
            assert time.monotonic() < deadline, "a worker is still alive"
            time.sleep(0.05)
    finally:
        parent.kill()


def test_a_hangup_that_is_ignored_stays_ignored_by_all(tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        parent = start_parent("wait_for_the_end", tmp_path)
    finally:
        signal.signal(signal.SIGHUP, before)
    try:
        pids = wait_for_pids(tmp_path)
        for pid in (*pids, parent.pid):
            os.kill(pid, signal.SIGHUP)
        time.sleep(1)
        assert parent.poll() is None
        assert all(map(is_alive, pids))
        parent.send_signal(signal.SIGTERM)
        assert parent.wait(SECONDS_TO_END) == 100 + signal.SIGTERM
        assert not any(map(is_alive, pids))
        assert parent.communicate()[1] == ""  # the parent of a failed worker sends the same signal
    finally:
        parent.kill()


def test_further_signals_do_not_abort_what_the_first_has_begun(tmp_path):
    parent = start_parent("take_two_seconds_to_end", tmp_path)
    try:
        pids = wait_for_pids(tmp_path)
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGHUP):  # as from SLURM, and as a terminal closes
            parent.send_signal(number)
            time.sleep(0.3)
        assert parent.wait(SECONDS_TO_END) == 100 + signal.SIGUSR1
        assert not any(map(is_alive, pids))
        assert len(list(tmp_path.glob("*.saved"))) == 2
        assert parent.communicate()[1] == "stopping after this step; saving a checkpoint\n"
    finally:
        parent.kill()


def test_repeated_ctrl_c_does_not_wait_for_a_worker_that_hangs(tmp_path):
    parent = start_parent("heed_nothing", tmp_path)
    try:
        pids = wait_for_pids(tmp_path)
        for _ in range(3):
            parent.send_signal(signal.SIGINT)
            time.sleep(1)
        assert parent.wait(SECONDS_TO_END) == 100 + signal.SIGINT
        assert not any(map(is_alive, pids))
    finally:
        parent.kill()


def wait_for_pids(folder: Path, seconds: float = 60) -> list[int]:
    """The workers' process ids, once all have written theirs."""
    deadline = time.monotonic() + seconds
    while len(files := [path for path in folder.glob("*.pid") if path.read_text()]) < 2:
        assert time.monotonic() < deadline, "the workers did not start"
        time.sleep(0.05)
    return [int(path.read_text()) for path in files]


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_one_device_runs_in_this_process_and_signal_handlers_are_put_back():
    before = signal.getsignal(signal.SIGINT)
    seen = []
    run_workers(lambda world, _: seen.append((world.rank, world.size, os.getpid())), None, CPUS[:1])
    assert seen == [(0, 1, os.getpid())]
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_signals_on_one_device(tmp_path: Path, capfd, number):
    before = signal.getsignal(number)

    def stop_itself(world: World, folder: str) -> None:
        for again in (number, signal.SIGTERM, signal.SIGHUP):  # further ones change nothing
            os.kill(os.getpid(), again)
        wait_for_the_end(world, folder)

    with pytest.raises(Interrupted) as caught:
        run_workers(stop_itself, str(tmp_path), CPUS[:1])
    assert caught.value.signal_number == number
    assert capfd.readouterr().err.startswith("" if number == signal.SIGTERM else "stopping after this batch")
    assert signal.getsignal(number) is before


def test_an_ignored_hangup_on_one_device():
    seen: list[World] = []
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:

        def hang_up(world: World, _: object) -> None:
            os.kill(os.getpid(), signal.SIGHUP)
            seen.append(world)

        run_workers(hang_up, None, CPUS[:1])
    finally:
        signal.signal(signal.SIGHUP, before)
    assert not seen[0].signal_number


@pytest.mark.parametrize(
    ("saves_checkpoint", "notice"),
    [
        (True, "stopping after this step; press Ctrl-C again to abort without saving\n"),
        (False, "stopping after this batch; press Ctrl-C again to abort at once\n"),
    ],
)
def test_ctrl_c_answers_at_once_and_aborts_when_repeated(capfd, saves_checkpoint, notice):
    said = []

    def press_twice(world: World, _: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        assert world.stop_requested()
        said.append(capfd.readouterr().err)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)

    with pytest.raises(KeyboardInterrupt):
        run_workers(press_twice, None, CPUS[:1], saves_checkpoint=saves_checkpoint)
    assert said == [notice]


def test_a_worker_watches_its_peers_while_it_works(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(launch, "die_with_parent", seen.append)
    monkeypatch.setattr(launch, "open_store", lambda: None)
    monkeypatch.setattr(launch, "run_worker", lambda *_, **__: seen.extend(path.name for path in tmp_path.iterdir()))
    launch._elastic_worker(print, None, (torch.device("cpu"),), str(tmp_path), 7, False)
    assert seen == [7, f"{os.getpid()}.pid"]
    assert not any(tmp_path.iterdir())

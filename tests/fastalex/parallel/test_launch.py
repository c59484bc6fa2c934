"""Devices, and worker processes that end with the command however it ends."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from fastalex.errors import ConfigurationError, Interrupted
from fastalex.parallel import rendezvous
from fastalex.parallel.devices import default_devices, parse_devices
from fastalex.parallel.failures import WorkerError, _raise_cause
from fastalex.parallel.launch import run_workers
from fastalex.parallel.layout import Layout
from fastalex.parallel.rendezvous import _check_alike, _is_said, _meet, _open_store
from fastalex.parallel.world import World
from tests.fastalex.workers import be_killed_twice, fail_on_last, wait_for_the_end

ROOT = Path(__file__).parents[3]
CPUS = [torch.device("cpu")] * 2
SECONDS_TO_END = 30


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' is not a device"),
        ("cpu,gpu", "'gpu' is not a device; write GPU numbers"),
        ("-1", "'-1' is not a device"),
        ("97", "device 97 does not exist"),
        ("cuda:97", "device 97 does not exist"),
    ],
)
def test_devices_that_are_none(text, message):
    with pytest.raises(ConfigurationError, match=message):
        parse_devices(text)


def test_devices_are_one_per_stage(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert parse_devices("0, 3") == (torch.device("cuda:0"), torch.device("cuda:3"))
    assert parse_devices("cuda:1") == (torch.device("cuda:1"),)
    assert parse_devices("cpu,cpu") == (torch.device("cpu"),) * 2
    with pytest.raises(ConfigurationError, match="names a GPU twice"):
        parse_devices("1,1")
    with pytest.raises(ConfigurationError, match="mixes CPU and GPU"):
        parse_devices("cpu,1")


@pytest.mark.parametrize(("gpus", "expected"), [(0, "cpu,cpu"), (1, "0"), (2, "0,1"), (8, "0,1")])
def test_default_devices(monkeypatch, gpus, expected):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert default_devices() == expected


def test_a_workers_bad_input_is_the_commands_bad_input():
    with pytest.raises(ConfigurationError, match=r"^the thing is 3; 4 is wanted$"):
        run_workers(fail_on_last, "configuration", CPUS)


def test_the_cause_of_a_failure_is_named_and_not_its_victim():
    with pytest.raises(WorkerError, match=r"(?s)worker 1 \(cpu\) failed.*RuntimeError: a tensor went missing"):
        run_workers(fail_on_last, "bug", CPUS)


def test_a_killed_worker_ends_the_others():
    start = time.monotonic()
    with pytest.raises(WorkerError, match=r"worker 1 \(cpu\) was killed by SIGKILL"):
        run_workers(fail_on_last, "kill", CPUS)
    assert time.monotonic() - start < SECONDS_TO_END


def test_workers_are_started_again_as_often_as_allowed(tmp_path, capfd):
    run_workers(be_killed_twice, str(tmp_path), CPUS, restarts=2)
    said = [line for line in capfd.readouterr().err.splitlines() if "restarting" in line]
    assert said == [
        f"worker 1 (cpu) was killed by SIGKILL; restarting from the last checkpoint ({n} of 2)" for n in (1, 2)
    ]


def test_what_a_user_has_to_change_is_not_tried_again(tmp_path):
    with pytest.raises(ConfigurationError, match=r"^the thing is 3; 4 is wanted$"):
        run_workers(fail_on_last, "configuration", CPUS[:1], restarts=3)


def test_workers_that_differ_are_named():
    alike = {
        "problem": "",
        "machine": "a",
        "python": "3.11",
        "torch": "2.13",
        "fastalex": "0.1",
        "kind of device": "cpu",
    }
    _check_alike([alike, {**alike, "machine": "b"}])
    for change, message in (
        ({"torch": "2.11"}, r"torch is 2\.11 for worker 1 on b and 2\.13 for worker 0 on a; make them the same"),
        (
            {"kind of device": "NVIDIA H100"},
            "kind of device is NVIDIA H100 for worker 1 on b and cpu for worker 0 on a",
        ),
        ({"problem": "device 1 does not exist"}, "^b: device 1 does not exist$"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            _check_alike([alike, {**alike, "machine": "b", **change}])


def meet(store: dist.Store, rank: int, size: int = 2) -> dist.Store:
    return _meet(store, World(rank, size, CPUS[0]))


def test_workers_that_were_restarted_meet_each_other_and_not_their_predecessors():
    store = dist.HashStore()
    with ThreadPoolExecutor() as workers:
        list(workers.map(lambda rank: meet(store, rank), range(2)))
        for early, late in ((0, 1), (1, 0)):
            waiting = workers.submit(meet, store, early)
            time.sleep(0.3)
            assert not waiting.done(), f"worker {early} took a dead worker's answer for that of worker {late}"
            meet(store, late).set("place", f"{early}")
            assert waiting.result(5).get("place") == f"{early}".encode()


def test_workers_that_do_not_come_are_named(monkeypatch):
    monkeypatch.setattr(rendezvous, "JOIN_TIMEOUT", 0.2)
    store, here = dist.HashStore(), socket.gethostname()
    with pytest.raises(ConfigurationError, match=f"worker 0 of 2 did not join .* there are workers on {here}: start"):
        meet(store, 1)
    with pytest.raises(ConfigurationError, match=f"worker 1, 2 of 3 did not join .* there are workers on {here}: "):
        meet(store, 0, 3)


def test_where_workers_meet_has_to_be_free(monkeypatch):
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "127.0.0.1")):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MASTER_PORT", raising=False)
    with pytest.raises(ConfigurationError, match="MASTER_PORT is ''; name the first machine and a free port there"):
        _open_store()
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setenv("MASTER_PORT", str(port))
        with pytest.raises(ConfigurationError, match=f"^127.0.0.1:{port} is in use; choose another port"):
            _open_store()


def test_a_message_of_all_workers_is_printed_by_one(monkeypatch):
    store = dist.HashStore()
    assert [_is_said(store, "the loss is nan") for _ in range(3)] == [False, True, True]
    assert not _is_said(store, "another message")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert not _is_said(store, "the loss is nan")
    for rank, said in (("0", False), ("1", True)):  # where they cannot ask each other
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert _is_said(None, "the loss is nan") is said


def test_a_process_that_was_killed_goes_before_one_that_nccl_aborted(tmp_path):
    failures = {
        0: SimpleNamespace(exitcode=-signal.SIGABRT, timestamp=1),
        1: SimpleNamespace(exitcode=-signal.SIGKILL, timestamp=1),
    }
    with pytest.raises(WorkerError, match=r"worker 1 .* was killed by SIGKILL"):
        _raise_cause(tmp_path, SimpleNamespace(failures=failures), CPUS)
    report = {
        "time": 1.0, "rank": 0, "device": "cuda:0", "type": "DistBackendError", "is_user_error": False, "signal": 0,
        "message": "ncclRemoteError: a remote process exited prematurely", "traceback": "ncclRemoteError",
    }  # fmt: skip
    (tmp_path / "0.json").write_text(json.dumps(report))
    with pytest.raises(WorkerError, match=r"worker 1 .* was killed by SIGKILL"):
        _raise_cause(tmp_path, SimpleNamespace(failures=failures), CPUS)
    with pytest.raises(WorkerError, match=r"(?s)worker 0 \(cuda:0\) lost another one, .*ncclRemoteError"):
        _raise_cause(tmp_path, None, CPUS)


def test_groups_of_an_earlier_layout_are_forgotten():
    world = World(0, 2, CPUS[0], _groups=("replicas", "stages"))
    world.arrange(Layout(1, 2, 2))
    assert world.replica_group is None
    assert world.pipeline_group is None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_worker_outlives_its_parent(tmp_path: Path, number):
    code = (
        "import sys, torch; from fastalex.errors import Aborted, Interrupted; from fastalex.parallel.launch import "
        "run_workers\nfrom tests.fastalex.workers import wait_for_the_end\n"
        "try: run_workers(wait_for_the_end, sys.argv[1], [torch.device('cpu')] * 2)\n"
        "except Interrupted as error: sys.exit(100 + error.signal_number)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT)
    try:
        pids = wait_for_pids(tmp_path)
        parent.send_signal(number)
        code_seen = parent.wait(SECONDS_TO_END)
        assert code_seen == (-signal.SIGKILL if number == signal.SIGKILL else 100 + number)
        deadline = time.monotonic() + SECONDS_TO_END
        while any(is_alive(pid) for pid in pids):
            assert time.monotonic() < deadline, "a worker lives on"
            time.sleep(0.05)
    finally:
        parent.kill()


def test_who_presses_ctrl_c_again_and_again_does_not_wait_for_a_worker_that_hangs(tmp_path):
    code = (
        "import sys, torch; from fastalex.errors import Aborted, Interrupted; from fastalex.parallel.launch import "
        "run_workers\nfrom tests.fastalex.workers import heed_nothing\n"
        "try: run_workers(heed_nothing, sys.argv[1], [torch.device('cpu')] * 2)\n"
        "except Aborted as error: sys.exit(100 + error.signal_number)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT)
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
    """Whether a process runs; one that only waits to be collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_signal_handlers_are_put_back():
    before = signal.getsignal(signal.SIGINT)
    seen = []
    run_workers(lambda world, _: seen.append((world.rank, world.size, os.getpid())), None, CPUS[:1])
    assert seen == [(0, 1, os.getpid())]
    assert signal.getsignal(signal.SIGINT) is before


def test_interruption_on_one_device(tmp_path: Path):
    def stop_itself(world: World, folder: str) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        wait_for_the_end(world, folder)

    with pytest.raises(Interrupted) as caught:
        run_workers(stop_itself, str(tmp_path), CPUS[:1])
    assert caught.value.signal_number == signal.SIGTERM

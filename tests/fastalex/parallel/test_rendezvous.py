"""Workers find each other, and refuse peers of other versions."""

import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from fastalex.errors import ConfigurationError
from fastalex.parallel import rendezvous
from fastalex.parallel.rendezvous import check_alike, is_reported, meet, open_store
from fastalex.parallel.world import World


def test_workers_that_differ_are_named():
    alike = {
        "problem": "",
        "machine": "a",
        "python": "3.11",
        "torch": "2.13",
        "fastalex": "0.1",
        "kind of device": "cpu",
    }
    check_alike([alike, {**alike, "machine": "b"}])
    for change, message in (
        ({"torch": "2.11"}, r"torch is 2\.11 for worker 1 on b and 2\.13 for worker 0 on a; make them the same"),
        (
            {"kind of device": "NVIDIA H100"},
            "kind of device is NVIDIA H100 for worker 1 on b and cpu for worker 0 on a",
        ),
        ({"python": "3.12"}, r"python is 3\.12 for worker 1 on b and 3\.11 for worker 0 on a"),
        ({"fastalex": "0.2"}, r"fastalex is 0\.2 for worker 1 on b and 0\.1 for worker 0 on a"),
        ({"problem": "device 1 does not exist"}, "^b: device 1 does not exist$"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            check_alike([alike, {**alike, "machine": "b", **change}])


def join(store: dist.Store, rank: int, size: int = 2) -> dist.Store:
    return meet(store, World(rank, size, torch.device("cpu")))


def test_restarted_workers_meet_each_other_and_not_their_predecessors():
    store = dist.HashStore()
    with ThreadPoolExecutor() as workers:
        list(workers.map(lambda rank: join(store, rank), range(2)))
        for early, late in ((0, 1), (1, 0)):
            waiting = workers.submit(join, store, early)
            time.sleep(0.3)
            assert not waiting.done(), f"worker {early} took a dead worker's answer for that of worker {late}"
            join(store, late).set("early", f"{early}")
            assert waiting.result(5).get("early") == f"{early}".encode()


@pytest.mark.parametrize(("read_after", "waited"), [(3, 3 * 0.01), (10**9, 5.0)])
def test_the_first_worker_stays_until_the_others_have_read_but_not_for_ever(monkeypatch, read_after, waited):
    """The store may end with it. On a clock that only its waiting moves."""
    store, sleeps = dist.HashStore(), []

    def sleep(seconds: float) -> None:
        """The other worker joins in the first pause, and reads in a later one."""
        sleeps.append(seconds)
        roll = store.get("fastalex/roll").decode()
        if len(sleeps) == 1:
            mine = json.loads(store.get(f"{roll}/0"))
            store.set(f"{roll}/1", json.dumps({**mine, "worker": "another"}))
        elif len(sleeps) == 1 + read_after:
            store.add(f"{roll}/read", 1)

    monkeypatch.setattr(rendezvous, "time", SimpleNamespace(sleep=sleep, monotonic=lambda: sum(sleeps)))
    join(store, 0)
    assert sleeps[0] == 0.05
    assert sum(sleeps[1:]) == pytest.approx(waited, abs=0.02)


def test_missing_workers_are_named(monkeypatch):
    monkeypatch.setattr(rendezvous, "JOIN_TIMEOUT", 0.2)
    store, here = dist.HashStore(), socket.gethostname()
    with pytest.raises(ConfigurationError, match=f"worker 0 of 2 did not join .* there are workers on {here}: start"):
        join(store, 1)
    with pytest.raises(ConfigurationError, match=f"worker 1, 2 of 3 did not join .* there are workers on {here}: "):
        join(store, 0, 3)


def test_the_stores_address_has_to_be_given_and_free(monkeypatch):
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "127.0.0.1")):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MASTER_PORT", raising=False)
    with pytest.raises(ConfigurationError, match="MASTER_PORT is ''; set them to the first machine and a free port"):
        open_store()
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setenv("MASTER_PORT", str(port))
        with pytest.raises(ConfigurationError, match=f"^127.0.0.1:{port} is in use; choose another port"):
            open_store()


def test_a_name_that_does_not_resolve_is_refused_at_once(monkeypatch):
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("MASTER_PORT", "29500")):
        monkeypatch.setenv(name, value)
    started = time.monotonic()
    for host in ("no-such-host.invalid", "a" * 70, "300.300.300.300"):
        monkeypatch.setenv("MASTER_ADDR", host)
        with pytest.raises(ConfigurationError, match=f"^MASTER_ADDR is {host}, which .* cannot resolve .*; give") as no:
            open_store()
        assert "Errno" not in str(no.value)
    assert time.monotonic() - started < 60  # of 549 before; a name server may take its time
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    for port in ("0", "65536", "-1", "http"):
        monkeypatch.setenv("MASTER_PORT", port)
        with pytest.raises(ConfigurationError, match=f"MASTER_PORT is '{port}'; set them"):
            open_store()


def test_a_message_of_all_workers_is_printed_by_one(monkeypatch):
    store = dist.HashStore()
    assert [is_reported(store, "the loss is nan") for _ in range(3)] == [False, True, True]
    assert not is_reported(store, "another message")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert not is_reported(store, "the loss is nan")
    for rank, expected in (("0", False), ("1", True)):  # without a store to ask
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert is_reported(None, "the loss is nan") is expected
